"""Whole heads: the brain is found whatever the scan's grid, nothing else of the head changes, bad masks are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from cftools import heads, weights
from cftools.bias import bias_field
from cftools.carry import carry_difference, carry_field, carry_replacement
from cftools.errors import CftoolsWarning, RegistrationError, VolumeError, WeightsError
from cftools.heads import (
    BRAINMASK,
    HEAD_GRID,
    STRUCTURES,
    BrainFinder,
    Preparer,
    box_at,
    middle_of_box,
    middle_of_head,
    normalised_head,
    whole,
)
from cftools.nets.segmenter import Segmenter, SegmenterArchitecture
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.head import grown, with_margin
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM, Brain, Prepared, prepare, resample
from cftools.register import Registration, template
from cftools.volume import Volume

Refused = Callable[..., str]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


class Bright(nn.Module):
    """Takes for brain what is grey: between half as bright as the brightest and almost as bright."""

    architecture = SegmenterArchitecture(STRUCTURES, (2, 2))

    def forward(self, image: Tensor) -> Tensor:
        grey = ((image > 0.4) & (image < 0.8)).float()
        return torch.cat([1 - grey, grey], dim=1) * 20


def finder_of(architecture: SegmenterArchitecture, shape: tuple[int, ...] = HEAD_GRID.shape) -> BrainFinder:
    rows = tuple(tuple(float(value) for value in row) for row in HEAD_GRID.affine)
    facts = weights.Facts(
        architecture="segmenter",
        architecture_arguments=asdict(architecture),
        variables={},
        grid=weights.GridFacts("head", shape, rows),  # type: ignore[arg-type]
        contrasts=("T1w",),
        intensity="head-percentile",
        training=weights.TrainingFacts("cf-train", "nothing", 0, 0, 0.0, "2026-01-31"),
        licence="Apache-2.0",
    )
    return BrainFinder(weights.Checkpoint("some", Segmenter(architecture).state_dict(), facts, "0" * 64))


@pytest.fixture
def finder() -> BrainFinder:
    """One that knows grey from bright and dark."""
    finder = finder_of(SegmenterArchitecture(STRUCTURES, (2, 2)))
    finder.network = Bright()  # type: ignore[assignment]
    return finder


def ball_in_a_shell(neck: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A grey ball of 5.6 cm in a bright shell with a neck below, at 2 mm in RAS; and the ball."""
    x, y, z = np.mgrid[-50:50, -55:55, -60 - neck : 60]
    radius = np.sqrt(x**2 + y**2 + z**2)
    ball = radius < 28
    shell = ((radius > 33) & (radius < 40)) | ((np.hypot(x, y) < 25) & (z < -38))
    image = 500.0 * ball + 1000 * shell
    return image.astype(np.float32), ball


def test_the_network_must_be_one_that_finds_brains() -> None:
    with pytest.raises(WeightsError, match=r"find no brains in heads: use brainmask-2mm"):
        finder_of(SegmenterArchitecture(("cortex",), (2, 2)))
    with pytest.raises(WeightsError, match="find no brains in heads"):
        finder_of(SegmenterArchitecture(STRUCTURES, (2, 2)), (80, 96, 88))


def test_intensities_do_not_depend_on_units() -> None:
    image, _ = ball_in_a_shell()
    first = normalised_head(image)
    np.testing.assert_allclose(normalised_head(3 * image - 700), first, atol=1e-5)
    assert first.min() == 0 and first.max() == pytest.approx(1, abs=1e-3)
    assert normalised_head(np.full((4, 4, 4), 7.0)).any() == False  # noqa: E712 (a numpy bool)


@pytest.mark.parametrize("neck", [0, 40])
def test_the_box_hangs_from_the_top_of_the_head(neck: int) -> None:
    image, _ = ball_in_a_shell(neck)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -100, -110, -120 - 2 * neck
    noise = np.abs(np.random.default_rng(0).normal(0, 30, image.shape))
    middle = middle_of_head(image + noise, affine)
    np.testing.assert_allclose(middle_of_box(box_at(middle)), middle)
    np.testing.assert_allclose(middle[:2], 0, atol=5)
    assert middle[2] == pytest.approx(80 + 10 - 112, abs=6)


def test_the_middle_of_nothing_is_the_middle_of_the_image() -> None:
    np.testing.assert_allclose(middle_of_head(np.zeros((20, 30, 40)), np.diag([2.0, 2, 2, 1])), (19, 29, 39))


def test_a_mask_is_made_whole() -> None:
    mask = np.zeros((40, 40, 40), bool)
    mask[8:32, 8:32, 8:32] = True
    truth = mask.copy()
    mask[18:22, 18:22, 18:22] = False  # a hole
    mask[12:28, 20, 26:32] = False  # a fold
    mask[2:5, 2:5, 2:5] = True  # an eye
    np.testing.assert_array_equal(whole(mask)[..., :31], truth[..., :31])  # a fold's mouth stays a little open
    assert not whole(np.zeros((5, 5, 5), bool)).any()


@pytest.mark.parametrize("letters", ["RAS", "PSR", "LIA"])
def test_the_brain_is_found_in_any_orientation(finder: BrainFinder, letters: str) -> None:
    image, ball = ball_in_a_shell()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    to_stored = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(tuple("RAS")), nib.orientations.axcodes2ornt(tuple(letters))
    )
    stored = nib.Nifti1Image(image, affine).as_reoriented(to_stored)
    found = finder.find(Volume.from_array(stored.get_fdata(dtype=np.float32), stored.affine))
    assert found.shape == stored.shape
    np.testing.assert_array_equal(found, nib.orientations.apply_orientation(ball, to_stored))


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (1.0, 1.0, 5.0), (0.8, 3.0, 1.2)])
@pytest.mark.parametrize("degrees", [0, 15])
def test_the_brain_is_found_at_any_voxel_size(finder: BrainFinder, voxel: tuple[float, ...], degrees: float) -> None:
    image, ball = ball_in_a_shell()
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (degrees, degrees, 0), degrees=True).as_matrix()
    shape = tuple(int(200 / size) for size in voxel)
    affine = turn @ np.diag([*voxel, 1.0])
    affine[:3, 3] = turn[:3, :3] @ [-100, -100, -100]
    index_of = np.linalg.inv(np.diag([2.0, 2, 2, 1])) @ affine
    index_of[:3, 3] += np.array([50, 55, 60])  # the middle of the ball
    there, truth = (
        ndimage.affine_transform(one.astype(np.float32), index_of[:3, :3], index_of[:3, 3], shape, order=1)
        for one in (image, ball)
    )
    assert dice(finder.find(Volume.from_array(there, affine)), truth > 0.5) > 0.93


def test_a_brain_that_is_not_where_it_was_looked_for_is_looked_for_again(
    finder: BrainFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar far above the head draws the first box up, so that it cuts the brain."""
    image, ball = ball_in_a_shell()
    high = np.pad(image, ((0, 0), (0, 0), (0, 60)))
    high[45:55, 50:60, 95:] = 1000
    scan = Volume.from_array(high, np.diag([2.0, 2, 2, 1]))
    assert dice(finder.find(scan)[..., :120], ball) > 0.95
    monkeypatch.setattr(heads, "_OFF_MM", 1000.0)
    assert dice(finder.find(scan)[..., :120], ball) < 0.9


def test_where_there_is_no_brain_none_is_found(finder: BrainFinder) -> None:
    image, ball = ball_in_a_shell()
    assert not finder.find(Volume.from_array(np.where(ball, 0, image), np.diag([2.0, 2, 2, 1]))).any()


@pytest.fixture(scope="module")
def average() -> np.ndarray:
    """The template on the 2 mm grid, in the units of some scanner."""
    volume = template()
    return 900 * resample(volume.array, volume.affine, GRID_2MM)


@pytest.fixture(scope="module")
def head(average: np.ndarray) -> tuple[Volume, np.ndarray]:
    """The template's brain in a dark skull and a bright scalp, with a coil's bias; and where its brain is."""
    inside = np.pad(ndimage.binary_fill_holes(average > 30), 12)
    distance = ndimage.distance_transform_edt(~inside) * 2
    image = np.where((distance > 6) & (distance <= 16), 700, np.where(inside, np.pad(average, 12), 20))
    affine = GRID_2MM.affine @ np.array([[1, 0, 0, -12], [0, 1, 0, -12], [0, 0, 1, -12], [0, 0, 0, 1.0]])
    return Volume.from_array(image * coil(image.shape), affine), inside


def coil(shape: tuple[int, ...]) -> np.ndarray:
    x, y, z = (
        np.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, n in enumerate(shape)
    )
    return np.exp(0.25 * x - 0.2 * y + 0.15 * z * y)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registration answers that native world and MNI152 are the same: for what does not depend on it."""
    answer = Registration(np.eye(4), 1.0, 1.0, np.ones(3))
    monkeypatch.setattr("cftools.prepare.register", lambda image, mask, affine: answer)


def bias_by_threads(head: tuple[Volume, np.ndarray], threads: int) -> np.ndarray:
    volume, inside = head
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        found = bias_field(volume.array, inside, volume.affine)
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    return found


@pytest.fixture(scope="module")
def found(head: tuple[Volume, np.ndarray]) -> np.ndarray:
    """The bias of `head`, by one thread."""
    return bias_by_threads(head, 1)


def test_n4_finds_the_bias_of_a_coil(head: tuple[Volume, np.ndarray], found: np.ndarray) -> None:
    volume, inside = head
    truth = coil(volume.array.shape)
    off = np.log(found / truth)[inside]
    assert np.log(found)[inside].mean() == pytest.approx(0, abs=1e-5)
    assert off.std() < 0.5 * np.log(truth)[inside].std()
    assert found.min() > 0 and found.dtype == np.float32


def test_n4_gives_the_same_bits_whatever_the_threads(head: tuple[Volume, np.ndarray], found: np.ndarray) -> None:
    assert found.tobytes() == bias_by_threads(head, 3).tobytes()


@pytest.mark.usefixtures("known")
def test_a_head_with_its_mask_is_prepared_as_its_brain_alone(head: tuple[Volume, np.ndarray]) -> None:
    """But for the bias, which is corrected in heads alone."""
    volume, inside = head
    stripped = prepare(volume.with_array(volume.array * inside))
    scan = prepare(volume, brain=Brain(inside, "a mask"))
    np.testing.assert_array_equal(scan.mask, inside)
    assert stripped.bias is None and stripped.found_by == ""
    assert scan.bias is not None and scan.found_by == "a mask"
    both = (scan.image > 0) & (stripped.image > 0)
    assert np.corrcoef(scan.image[both], stripped.image[both])[0, 1] > 0.9
    average = resample(template().array, template().affine, GRID_2MM)
    flatter, before = (np.corrcoef(one.image[both], average[both])[0, 1] for one in (scan, stripped))
    assert flatter > before
    native = resample(volume.array, volume.affine, GRID_2MM)
    deep = ndimage.binary_erosion(both, iterations=4)
    expected = (native / scan.bias - scan.offset) / scan.scale
    np.testing.assert_allclose(scan.image[deep], expected[deep].clip(0, 1.5), atol=0.02)


@pytest.fixture
def scan(head: tuple[Volume, np.ndarray], known: None) -> Prepared:
    volume, inside = head
    return prepare(volume, brain=Brain(inside, "a mask"))


def test_what_is_carried_home_takes_the_bias_along(scan: Prepared) -> None:
    native, deep = scan.volume.array, ndimage.binary_erosion(scan.mask, iterations=4)
    np.testing.assert_allclose(
        carry_replacement(scan, scan.image)[deep], native[deep], atol=0.03 * native.max(), err_msg="replace"
    )
    assert scan.bias is not None
    offset = np.full((2, *GRID_2MM.shape), 0.05, np.float32)
    offset[1] = 0
    still = np.zeros((3, *GRID_2MM.shape), np.float32)
    ways = {
        "field": carry_field(scan, still, offset),
        "residual": carry_difference(scan, scan.image, scan.image + np.float32(0.05)),
    }
    index_of = np.linalg.inv(GRID_2MM.affine) @ scan.volume.affine
    bias = ndimage.affine_transform(scan.bias, index_of[:3, :3], index_of[:3, 3], native.shape, order=1)
    below = deep & (native < 0.8 * native.max())  # results are clipped to the scan's range
    for name, carried in ways.items():
        np.testing.assert_allclose(
            (carried - native)[below], (0.05 * scan.scale * bias)[below], rtol=0.01, err_msg=name
        )
        np.testing.assert_array_equal(carried[~scan.mask], native[~scan.mask], err_msg=name)


def test_a_brain_that_shrinks_draws_in_what_is_around_it(scan: Prepared) -> None:
    """As the brainstem goes on below: no dark seam. A brain that was cut out has nothing around it."""
    even = replace(scan, volume=scan.volume.with_array(np.full_like(scan.volume.array, 500)))
    inwards = np.full((3, *GRID_2MM.shape), 4, np.float32)
    np.testing.assert_allclose(carry_field(even, inwards), 500, rtol=1e-4)
    assert carry_field(replace(even, found_by=""), inwards).min() < 100


def refusing() -> str:
    raise AssertionError("the network is not needed")


@pytest.mark.usefixtures("known")
def test_a_stripped_scan_is_known_for_one(head: tuple[Volume, np.ndarray]) -> None:
    volume, inside = head
    brain = volume.with_array(volume.array * inside)
    plain = prepare(brain)
    for stripped in (False, True):
        scan = Preparer(GRID_2MM, refusing, stripped)(brain)
        assert scan.image.tobytes() == plain.image.tobytes() and scan.mask.tobytes() == plain.mask.tobytes()
        assert scan.found_by == "" and scan.bias is None
    with pytest.raises(VolumeError, match="looks like a whole head"):
        Preparer(GRID_2MM, refusing, stripped=True)(volume)


@pytest.mark.usefixtures("known")
def test_a_mask_takes_the_place_of_the_network(head: tuple[Volume, np.ndarray], tmp_path: Path) -> None:
    volume, inside = head
    preparer = Preparer(GRID_2MM, refusing)
    mask = volume.with_array(inside.astype(np.float32))
    scan = preparer(volume, mask)
    np.testing.assert_array_equal(scan.mask, inside)
    assert scan.found_by == "a mask" and preparer.weights_of(scan) == {}
    edited = preparer.again(scan, volume.array * 1.5)
    np.testing.assert_array_equal(edited.mask, inside)
    np.testing.assert_allclose(edited.image, scan.image, atol=1e-3)
    with pytest.raises(VolumeError, match=r"is empty: give a mask of the brain"):
        preparer(volume, mask.with_array(np.zeros_like(mask.array)))
    with pytest.raises(VolumeError, match="holds 2 values beside 0"):
        preparer(volume, mask.with_array(mask.array + (volume.array > 500)))
    with pytest.raises(VolumeError, match="is not on the grid of"):
        preparer(volume, Volume.from_array(mask.array, np.diag([2.0, 2, 2, 1])))
    small = np.zeros_like(inside)
    small[40:50, 40:50, 40:50] = True
    with pytest.raises(VolumeError, match=r"litres of it are brain by a mask, and a whole brain has"):
        preparer(volume, mask.with_array(small.astype(np.float32)))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, head: tuple[Volume, np.ndarray]) -> list[str]:
    """Weights whose network finds the brain of `head`, whatever the scan's voxel size; and which were loaded."""
    loaded: list[str] = []

    class Knowing:
        def __init__(self, checkpoint: str, device: str) -> None:
            self.checkpoint = checkpoint

        def find(self, volume: Volume) -> np.ndarray:
            return head[1] & (volume.array != 0)

    def load(name: str, expect: str) -> str:
        loaded.append(name)
        return name

    monkeypatch.setattr(heads, "BrainFinder", Knowing)
    monkeypatch.setattr(heads, "load", load)
    return loaded


@pytest.mark.usefixtures("known")
def test_the_network_is_loaded_for_the_first_head(head: tuple[Volume, np.ndarray], network: list[str]) -> None:
    volume, inside = head
    preparer = Preparer(GRID_2MM, lambda: "cpu")
    preparer(volume.with_array(volume.array * inside))
    assert network == []
    for _ in range(2):
        scan = preparer(volume)
        np.testing.assert_array_equal(scan.mask, inside)
        assert scan.found_by == BRAINMASK and preparer.weights_of(scan) == {"brain mask": BRAINMASK}
    assert network == [BRAINMASK]


def test_a_head_no_larger_than_a_brain_may_be_is_a_head_nevertheless(
    head: tuple[Volume, np.ndarray], network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, inside = head
    small = Volume.from_array(np.where(volume.array < 25, 0, volume.array), np.diag([1.45, 1.45, 1.45, 1]))
    assert 0.6 < inside.sum() * small.voxel_volume / 1e6 < 2.6

    def register(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> Registration:
        fits = mask.sum() <= inside.sum()
        return Registration(np.eye(4), 0.9 if fits else 0.1, 0.9, np.ones(3))

    monkeypatch.setattr("cftools.prepare.register", register)
    assert Preparer(GRID_2MM, lambda: "cpu")(small).found_by == BRAINMASK
    with pytest.raises(RegistrationError, match="does not fit the MNI152 brain"):
        Preparer(GRID_2MM, lambda: "cpu", stripped=True)(small)
    monkeypatch.setattr(heads.BrainFinder, "find", lambda self, volume: np.zeros(volume.array.shape, bool))
    with pytest.raises(RegistrationError, match="does not fit the MNI152 brain"):
        Preparer(GRID_2MM, lambda: "cpu")(small)


@pytest.mark.usefixtures("network")
def test_what_shows_no_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    box = np.zeros((60, 60, 60), np.float32)
    box[2:58, 2:58, 2:58] = np.random.default_rng(0).uniform(50, 100, (56, 56, 56))
    monkeypatch.setattr(heads.BrainFinder, "find", lambda self, volume: np.zeros(volume.array.shape, bool))
    with pytest.raises(VolumeError, match=r"0.00 litres of it are brain by brainmask-2mm.*check that it shows a whole"):
        Preparer(GRID_2MM, lambda: "cpu")(Volume.from_array(box, np.diag([4.0, 4, 4, 1])))


def test_other_contrasts_are_warned_of_or_refused(average: np.ndarray) -> None:
    """The template as FLAIR, with grey matter the brightest, and upside down in brightness, as T2w."""
    inside = average > 30
    flair = np.where(average > 600, 1250 - average, average) * inside
    with pytest.warns(CftoolsWarning, match=r"white matter is 0\.\d\d times as bright as its grey.*FLAIR"):
        prepare(Volume.from_array(flair, GRID_2MM.affine))
    with pytest.raises(RegistrationError, match="dark and bright are the other way round than in a T1w scan"):
        prepare(Volume.from_array((1200 - average) * inside, GRID_2MM.affine))


@pytest.fixture(scope="module")
def simulated() -> tuple[Volume, np.ndarray]:
    """A whole head that no weights saw, as large as people are, stored from right to left; and its brain."""
    subject = Family([template_anatomy()], load_law("altered")).draw(99, 0)
    with torch.inference_mode():
        aged = subject.at(40.0)
        image = subject.head.around(aged.image(), subject.cranium, subject.scanner)[0, 0].numpy()
        brain = whole(grown(aged.brain()[None, None].float())[0, 0].numpy() > 0.5)
    affine = np.diag([0.9, 0.9, 0.9, 1.0]) @ with_margin(GRID_2MM).affine @ np.diag([-1.0, 1, 1, 1])
    return Volume.from_array(1000 * image[::-1], affine), brain[::-1]


@pytest.fixture(scope="module")
def edited(simulated: tuple[Volume, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the head, what cf-prep makes of it, and its edit, all with the bundled weights."""
    from cftools.cli.edit import main as edit
    from cftools.cli.prep import main as prep

    folder = tmp_path_factory.mktemp("head")
    scan = str(folder / "sub-01_T1w.nii.gz")
    simulated[0].save(scan)
    assert edit([scan, "--age", "+30", "--from", "age=40"]) == 0
    assert prep([scan, str(folder / "grid.nii.gz"), "--save-mask", str(folder / "brain.nii.gz")]) == 0
    return folder


def test_an_edited_head_keeps_its_skull(simulated: tuple[Volume, np.ndarray], edited: Path) -> None:
    before, after = (Volume.load(edited / name) for name in ("sub-01_T1w.nii.gz", "sub-01_desc-agePlus30_T1w.nii.gz"))
    mask = Volume.load(edited / "brain.nii.gz").array > 0
    assert dice(mask, simulated[1]) > 0.93
    np.testing.assert_array_equal(after.affine, before.affine)
    changed = after.array != before.array
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.9
    facts = json.loads((edited / "sub-01_desc-agePlus30_T1w.json").read_text())
    assert facts["SkullStripped"] is False
    assert facts["cftools"]["weights"]["brain mask"]["name"] == BRAINMASK
    assert facts["cftools"]["details"]["brain"] == BRAINMASK
    assert json.loads((edited / "grid.json").read_text())["SkullStripped"] is True
    assert dice(Volume.load(edited / "grid.nii.gz").array > 0.02, template_inside()) > 0.85


def test_cf_edit_takes_the_mask_that_cf_prep_saves(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cftools.cli.edit import main

    monkeypatch.chdir(edited)
    words = ["sub-01_T1w.nii.gz", "out.nii.gz", "--age", "+30", "--from", "age=40", "--mask", "brain.nii.gz"]
    assert main(words) == 0
    theirs, ours = Volume.load("sub-01_desc-agePlus30_T1w.nii.gz"), Volume.load("out.nii.gz")
    assert theirs.array.tobytes() == ours.array.tobytes()
    assert "--mask brain.nii.gz" in json.loads(Path("out.json").read_text())["cftools"]["command"]


def template_inside() -> np.ndarray:
    return resample((template().array > 0).astype(np.float32), template().affine, GRID_2MM) > 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.nii.gz", "--mask", "m.nii.gz", "--prepared"], "choose one"),
        (["-o", "out/", "a.nii.gz", "b.nii.gz", "--mask", "m.nii.gz"], "is the brain of one scan, and there are 2"),
        (["a.nii.gz", "c.nii.gz", "--force", "--mask", "m.nii.gz", "--uncertainty", "m.nii.gz"], "is an input"),
    ],
)
def test_masks_that_make_no_sense_are_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cftools.cli.edit import main

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "m"):
        Volume.from_array(np.ones((4, 4, 4)), np.eye(4)).save(f"{name}.nii.gz")
    assert main([*words, "--age", "+30"]) == 2
    assert message in capsys.readouterr().err


def ixi(data_dir: Path, subject: str) -> tuple[Volume, np.ndarray]:
    """A head, and where its brain is."""
    head = Volume.load(data_dir / f"ixi/{subject}/anat/{subject}_T1w.nii.gz")
    labels = data_dir / f"ixi/derivatives/dlmuse/{subject}/anat/{subject}_desc-dlmuse_dseg.nii.gz"
    return head, whole(Volume.load(labels).array > 0)


@pytest.mark.real
@pytest.mark.parametrize("subject", ["sub-IXI174", "sub-IXI335", "sub-IXI527"])
def test_real_heads_are_prepared(data_dir: Path, subject: str) -> None:
    volume, brain = ixi(data_dir, subject)
    scan = Preparer(GRID_2MM, lambda: "cpu")(volume)
    assert dice(scan.mask, brain) > 0.95  # the bundled weights saw these heads; docs/raw-heads.md has unseen ones
    assert scan.similarity > 0.5
    assert dice(scan.image > 0.02, template_inside()) > 0.9


@pytest.mark.real
def test_real_stripped_scans_stay_as_they_are(data_dir: Path) -> None:
    for path in sorted((data_dir / "oasis").glob("sub-*/anat/*_T1w.nii.gz")):
        preparer = Preparer(GRID_2MM, refusing)
        assert preparer.brain(Volume.load(path)).found_by == "", path
