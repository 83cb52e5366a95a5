"""From any orientation and voxel size to the model's grid; and what is no stripped brain is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

import cftools.prepare
from cftools.errors import RegistrationError, VolumeError
from cftools.prepare import (
    GRID_1MM,
    GRID_2MM,
    Grid,
    bounding_box,
    brain_mask,
    intensity_scale,
    prepare,
    resample,
)
from cftools.register import Registration, register, template
from cftools.volume import Volume


def template_brain_mask(grid: Grid) -> np.ndarray:
    """The template's brain on a grid, (X, Y, Z) bool."""
    volume = template()
    return resample((volume.array > 0).astype(np.float32), volume.affine, grid) > 0.5


@pytest.fixture(scope="module")
def average() -> np.ndarray:
    """The template on the 2 mm grid, in the units of some scanner."""
    volume = template()
    return 900 * resample(volume.array, volume.affine, GRID_2MM)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registration answers that native world and MNI152 are the same: for what does not depend on it."""
    answer = Registration(np.eye(4), 1.0, 1.0, np.ones(3))
    monkeypatch.setattr(cftools.prepare, "register", lambda image, mask, affine: answer)


def turned(degrees: tuple[float, float, float], stretch: tuple[float, float, float]) -> np.ndarray:
    """MNI152 world -> another world, (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * stretch
    matrix[:3, 3] = 90, -310, 240
    return matrix


def errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How far two registrations put each corner of the brain from each other, mm."""
    corners = np.array(list(itertools.product((-70, 70), (-105, 70), (-65, 80), (1,)))).T
    return np.linalg.norm((found @ np.linalg.inv(truth) @ corners - corners)[:3], axis=0)


def test_the_template_is_nilearns() -> None:
    from nilearn.datasets import load_mni152_template

    theirs, ours = load_mni152_template(resolution=1), template()
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(ours.array, theirs.get_fdata(dtype=np.float32))


def test_grids_share_their_box_and_hold_the_brain() -> None:
    assert GRID_2MM.shape == (80, 96, 88)
    assert GRID_1MM.shape == (160, 192, 176)
    assert GRID_1MM != GRID_2MM
    fine, coarse = (grid.affine @ [-0.5, -0.5, -0.5, 1] for grid in (GRID_1MM, GRID_2MM))
    np.testing.assert_allclose(fine, coarse)
    np.testing.assert_allclose(coarse[0], -80)  # left and right mirror each other
    volume = template()
    mask = template_brain_mask(GRID_2MM)
    assert mask.sum() * 8 == pytest.approx((volume.array > 0).sum(), rel=0.01)
    margins = [(e.start, n - e.stop) for e, n in zip(bounding_box(mask), mask.shape, strict=True)]
    assert min(min(pair) for pair in margins) >= 2
    assert max(abs(before - after) for before, after in margins) <= 1
    np.testing.assert_allclose(mask, mask[::-1], atol=1)
    assert (mask != mask[::-1]).mean() < 1e-3


ORIENTATIONS = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*order)
]


@pytest.mark.usefixtures("known")
def test_all_48_orientations_give_the_same_image(average: np.ndarray) -> None:
    brain = average.copy()
    brain[:18] = 0  # left and right differ
    first = prepare(Volume.from_array(brain, GRID_2MM.affine))
    assert len(set(ORIENTATIONS)) == 48
    for letters in ORIENTATIONS:
        to_stored = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(tuple("RAS")), nib.orientations.axcodes2ornt(tuple(letters))
        )
        stored = nib.Nifti1Image(brain, GRID_2MM.affine).as_reoriented(to_stored)
        assert "".join(nib.aff2axcodes(stored.affine)) == letters
        scan = prepare(Volume.from_array(stored.get_fdata(dtype=np.float32), stored.affine))
        np.testing.assert_array_equal(scan.image, first.image, err_msg=letters)
        mask = nib.orientations.apply_orientation(first.mask, to_stored)
        np.testing.assert_array_equal(scan.mask, mask, err_msg=letters)


@pytest.mark.usefixtures("known")
def test_offset_and_scale_lead_from_native_to_normalised(average: np.ndarray) -> None:
    inside = average > 20
    native = np.where(inside, average + 137, 100).astype(np.float32)
    scan = prepare(Volume.from_array(native, GRID_2MM.affine))
    assert scan.offset == 100
    expected = np.where(scan.mask, np.clip((native - scan.offset) / scan.scale, 0, 1.5), 0)
    np.testing.assert_allclose(scan.image, expected, atol=1e-6)
    assert np.percentile(scan.image[inside], 99.5) == pytest.approx(1, abs=0.02)
    assert scan.image.dtype == np.float32


@pytest.mark.usefixtures("known")
def test_normalisation_does_not_depend_on_units_or_a_few_bright_voxels(average: np.ndarray) -> None:
    first = prepare(Volume.from_array(average, GRID_2MM.affine))
    second = prepare(Volume.from_array(average / 5000, GRID_2MM.affine))
    np.testing.assert_allclose(second.image, first.image, atol=1e-5)
    vessels = average.copy()
    vessels[30:33, 40:43, 40:43] = 9000
    third = prepare(Volume.from_array(vessels, GRID_2MM.affine))
    assert third.scale == pytest.approx(first.scale, rel=0.02)
    assert third.image.max() == 1.5


@pytest.mark.usefixtures("known")
def test_z_scores_keep_their_dark_tissue(average: np.ndarray) -> None:
    inside = average > 20
    z = np.where(inside, (average - average[inside].mean()) / average[inside].std(), 0)
    scan = prepare(Volume.from_array(z, GRID_2MM.affine))
    assert np.corrcoef(scan.image[inside], average[inside])[0, 1] > 0.99
    assert (scan.image[~inside] == 0).mean() > 0.99


@pytest.mark.parametrize("tilt", [(22.0, -8.0, 12.0), (58.0, 10.0, -20.0)])
def test_registration_finds_a_known_affine(tilt: tuple[float, float, float]) -> None:
    """Within 1 mm at the corners and 1 % of the size, past a few voxels far too bright."""
    volume = template()
    to_native = turned(tilt, (0.88, 0.85, 0.92))
    image, affine = volume.array[::2, ::2, ::2].copy(), to_native @ volume.affine @ np.diag([2, 2, 2, 1])
    image[40:44, 50:54, 60:64] = 100
    found = register(image, image > 0, affine)
    truth = np.linalg.inv(to_native)
    assert errors(found.matrix, truth).max() < 1
    np.testing.assert_allclose(found.stretches, np.linalg.svd(truth[:3, :3])[1], rtol=0.01)
    assert found.similarity > 0.93
    assert found.overlap > 0.97
    assert found.problem is None


def test_registration_gives_the_same_bits_whatever_the_threads(average: np.ndarray) -> None:
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found.append(register(average, average > 0, turned((9, 0, 0), (0.9, 0.9, 0.9)) @ GRID_2MM.affine))
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert len({registration.matrix.tobytes() for registration in found}) == 1


def test_thick_slices_are_registered() -> None:
    volume = template()
    slabs = volume.array[1:196, :230, :185].reshape(195, 230, 37, 5).mean(axis=3)
    to_native = turned((10, 5, 0), (0.9, 0.9, 0.9))
    to_slabs = np.diag([1.0, 1, 5, 1])
    to_slabs[:3, 3] = 1, 0, 2
    scan = prepare(Volume.from_array(slabs, to_native @ volume.affine @ to_slabs))
    assert errors(scan.to_mni, np.linalg.inv(to_native)).max() < 3
    assert np.corrcoef(scan.image.ravel(), resample(volume.array, volume.affine, GRID_2MM).ravel())[0, 1] > 0.97


def head(average: np.ndarray, skull: float, scalp: float) -> np.ndarray:
    """The brain with a dark skull and a bright scalp, so many millimetres outwards."""
    distance = ndimage.distance_transform_edt(np.pad(average, 12) == 0) * 2
    return np.where((distance > skull) & (distance <= scalp), 700, np.pad(average, 12)).astype(np.float32)


def test_a_whole_head_is_told_to_be_stripped(average: np.ndarray) -> None:
    with pytest.raises(VolumeError, match=r"looks like a whole head \(.* litres.*strip the skull .*SynthStrip"):
        prepare(Volume.from_array(head(average, 8, 18), np.diag([2.0, 2, 2, 1])))


def test_a_small_head_is_refused_too(average: np.ndarray) -> None:
    shell = head(average, 8, 18)
    shell[:, :, :22] = 0
    scan = Volume.from_array(shell, np.diag([1.55, 1.55, 1.55, 1]))
    assert (shell > 0).sum() * scan.voxel_volume < 2.4e6
    with pytest.raises(RegistrationError, match=r"does not fit .*skull-stripped"):
        prepare(scan)


def ellipsoid() -> np.ndarray:
    x, y, z = np.mgrid[-45:45, -55:55, -45:45]
    inside = (x / 35) ** 2 + (y / 44) ** 2 + (z / 33) ** 2 < 1
    return inside * (100 + 20 * np.random.default_rng(0).standard_normal(inside.shape))


def test_what_is_no_brain_is_refused() -> None:
    with pytest.raises(RegistrationError, match="does not fit the MNI152 brain"):
        prepare(Volume.from_array(ellipsoid(), np.diag([2.0, 2, 2, 1])))


def test_a_wrong_orientation_in_the_header_is_noticed(average: np.ndarray) -> None:
    with pytest.raises(RegistrationError, match=r"does not fit the MNI152 brain .*header"):
        prepare(Volume.from_array(average[:, :, ::-1], GRID_2MM.affine))


@pytest.mark.parametrize(("factor", "message"), [(0.6, "litres"), (1.3, "whole head")])
def test_wrong_voxel_sizes_are_noticed(average: np.ndarray, factor: float, message: str) -> None:
    with pytest.raises((RegistrationError, VolumeError), match=message):
        prepare(Volume.from_array(average, GRID_2MM.affine @ np.diag([factor, factor, factor, 1])))


def test_a_stretched_scan_is_noticed() -> None:
    matrix = np.diag([0.6, 1.1, 1.1, 1])
    assert Registration(np.eye(4), 0.9, 0.95, np.ones(3)).problem is None
    stretches = np.linalg.svd(matrix[:3, :3])[1]
    assert "0.60 to 1.10" in (Registration(matrix, 0.9, 0.95, stretches).problem or "")
    assert "0.70" in (Registration(np.eye(4), 0.9, 0.70, np.ones(3)).problem or "")
    assert Registration(np.eye(4), float("nan"), 0.95, np.ones(3)).problem


def test_an_empty_scan_is_refused() -> None:
    volume = Volume.from_array(np.full((20, 20, 20), 7.0), np.eye(4))
    with pytest.raises(VolumeError, match=r"^the scan: holds nothing but background"):
        prepare(volume)


def test_errors_name_the_file(average: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "sub-01_T1w.nii.gz"
    Volume.from_array(average[:20], GRID_2MM.affine).save(path)
    with pytest.raises(RegistrationError) as caught:
        prepare(Volume.load(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_mask_has_no_holes_no_halo_and_no_specks() -> None:
    array = np.full((40, 40, 40), -3, np.float32)
    array[8:32, 8:32, 8:32] = 500
    truth = array > 0
    array[15:20, 15:20, 15:20] = -3  # a ventricle that was set to background
    array[7] += 2  # ringing
    array[2:4, 2:4, 2:4] = 500  # an eye
    array[12, 12, 2] = 900  # a speck
    mask, background = brain_mask(array)
    assert background == -3
    np.testing.assert_array_equal(mask, truth)


def test_the_mask_keeps_a_loose_cerebellum() -> None:
    array = np.zeros((40, 40, 40), np.float32)
    array[8:32, 8:32, 16:32] = 500
    array[8:20, 8:20, 4:12] = 400
    mask, _ = brain_mask(array)
    np.testing.assert_array_equal(mask, array > 0)


@pytest.mark.parametrize("voxel", [(0.5, 0.5, 0.5), (1.0, 1.0, 1.0), (0.8, 1.2, 3.0)])
def test_resampling_keeps_slopes_and_drops_what_the_grid_cannot_hold(voxel: tuple[float, ...]) -> None:
    shape = tuple(int(40 / size) for size in voxel)
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = -20, -36, -15
    x, y, z = (affine[i, 3] + voxel[i] * index for i, index in enumerate(np.mgrid[tuple(map(slice, shape))]))
    inner = tuple(slice(int((c + 10 - o) / 2), int((c + 30 - o) / 2)) for c, o in zip(
        affine[:3, 3], GRID_2MM.affine[:3, 3], strict=True
    ))  # fmt: skip
    slope = resample((3 * x - 2 * y + z + 200).astype(np.float32), affine, GRID_2MM)
    at = np.einsum("ij,j...->i...", GRID_2MM.affine[:3, :3], np.mgrid[tuple(map(slice, GRID_2MM.shape))])
    at += GRID_2MM.affine[:3, 3].reshape(3, 1, 1, 1)
    truth = 3 * at[0] - 2 * at[1] + at[2] + 200
    np.testing.assert_allclose(slope[inner], truth[inner], atol=0.01)
    stripes = np.sin(2 * np.pi * x / 2.2).astype(np.float32)  # finer than two grid voxels
    assert resample(stripes, affine, GRID_2MM)[inner].std() < 0.2 * stripes.std()


def test_intensity_scale_is_the_bright_end_of_the_brain() -> None:
    image = np.zeros((50, 50, 50), np.float32)
    image[10:40, 10:40, 10:40] = np.random.default_rng(0).uniform(0.1, 10, (30, 30, 30))
    assert intensity_scale(image) == pytest.approx(9.95, abs=0.03)


def ixi(data_dir: Path, subject: str) -> tuple[Volume, np.ndarray]:
    """A head, and where its brain is."""
    head = Volume.load(data_dir / f"ixi/{subject}/anat/{subject}_T1w.nii.gz")
    labels = data_dir / f"ixi/derivatives/dlmuse/{subject}/anat/{subject}_desc-dlmuse_dseg.nii.gz"
    return head, Volume.load(labels).array > 0


@pytest.mark.real
@pytest.mark.parametrize(
    "name",
    [
        "oasis/sub-1107/anat/sub-1107_T1w.nii.gz",  # 74 years, small
        "oasis/sub-1119/anat/sub-1119_T1w.nii.gz",  # the least like the template
        "ms/sub-MS19/anat/sub-MS19_space-MNI152_T1w.nii.gz",
        "glioma/sub-TCGADU7294/anat/sub-TCGADU7294_T1w.nii.gz",
    ],
)
def test_real_scans_are_registered(data_dir: Path, name: str) -> None:
    scan = prepare(Volume.load(data_dir / name))
    ours, theirs = scan.image > 0.05, template_brain_mask(GRID_2MM)
    assert scan.similarity > 0.5
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.93


@pytest.mark.real
def test_a_real_scan_gives_the_same_bits_however_it_is_stored(data_dir: Path) -> None:
    volume = Volume.load(data_dir / "oasis/sub-1107/anat/sub-1107_T1w.nii.gz")
    stored = nib.Nifti1Image(volume.array, volume.affine).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    first = prepare(volume)
    second = prepare(Volume.from_array(stored.get_fdata(dtype=np.float32), stored.affine))
    for one, other in ((first.image, second.image), (first.to_mni, second.to_mni)):
        assert hashlib.sha256(one.tobytes()).digest() == hashlib.sha256(other.tobytes()).digest()


@pytest.mark.real
@pytest.mark.parametrize("grown", [-4, 0, 6])
def test_real_masks_may_be_tight_or_loose(data_dir: Path, grown: int) -> None:
    head, brain = ixi(data_dir, "sub-IXI212")  # the least like the template
    if grown < 0:
        brain = ndimage.distance_transform_edt(brain, sampling=2) > -grown
    else:
        brain = ndimage.distance_transform_edt(~brain, sampling=2) <= grown
    assert prepare(head.with_array(head.array * brain)).similarity > 0.45


@pytest.mark.real
def test_every_real_head_is_refused(data_dir: Path) -> None:
    scans = sorted((data_dir / "ixi").glob("sub-*/anat/*_T1w.nii.gz"))
    assert scans
    for path in scans:
        with pytest.raises(VolumeError, match="strip the skull"):
            prepare(Volume.load(path))


def test_cf_prep_writes_what_itk_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SimpleITK, given the scan, the transform and the grid, finds the same picture; it converts RAS to LPS itself."""
    from cftools.cli.prep import main as prep

    monkeypatch.chdir(tmp_path)
    whole = template()
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", (8, -5, 10), degrees=True).as_matrix() @ np.array(
        [[0, 0, -1.1], [1.05, 0, 0], [0, 0.95, 0]]
    )
    turned[:3, 3] = turned[:3, :3] @ [-100, -80, -85]
    indices = np.linalg.inv(whole.affine) @ turned
    scan = ndimage.affine_transform(whole.array, indices[:3, :3], indices[:3, 3], (200, 160, 170), order=1)
    Volume.from_array(300 * scan.astype(np.float32), turned).save("scan.nii.gz")
    assert prep(["scan.nii.gz", "grid.nii.gz", "--transform", "to_mni.txt", "--save-mask", "brain.nii.gz"]) == 0

    moved = sitk.Resample(
        sitk.ReadImage("scan.nii.gz"), sitk.ReadImage("grid.nii.gz"), sitk.ReadTransform("to_mni.txt"), sitk.sitkLinear
    )
    theirs = ndimage.gaussian_filter(sitk.GetArrayFromImage(moved).T, 0.5)
    grid = Volume.load("grid.nii.gz")
    ours = ndimage.gaussian_filter(grid.array, 0.3)
    assert np.corrcoef(theirs[ours > 0.05], ours[ours > 0.05])[0, 1] > 0.99
    np.testing.assert_allclose(grid.affine, GRID_2MM.affine)
    mask = Volume.load("brain.nii.gz")
    np.testing.assert_allclose(mask.affine, turned, atol=1e-5)
    assert set(np.unique(mask.array)) == {0, 1} and not mask.array[scan == 0].mean() > 0.05
    assert json.loads(Path("grid.json").read_text())["cftools"]["details"]["similarity"] > 0.9
    before = Path("grid.nii.gz").read_bytes()
    assert prep(["scan.nii.gz", "grid.nii.gz"]) != 0 and Path("grid.nii.gz").read_bytes() == before
    assert prep(["scan.nii.gz", "none/grid.nii.gz"]) != 0
