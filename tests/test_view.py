"""cf-view: what the pictures show, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cftools.cli.view import main
from cftools.errors import UsageError, VolumeError
from cftools.picture import DIFFERENCES, picture
from cftools.volume import Volume

PNG = b"\x89PNG\r\n\x1a\n"


def ball() -> Volume:
    """A ball of radius 12 mm around (10, -20, 30) mm, brighter to the right, top and front; 2 mm voxels."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-10, -40, 10)
    x, y, z = affine[:3, :3] @ np.indices((21, 21, 21)).reshape(3, -1) + affine[:3, 3:]
    inside = (x - 10) ** 2 + (y + 20) ** 2 + (z - 30) ** 2 < 12**2
    array = inside * (100.0 + 50 * (x > 10) + 20 * (z > 30) + 10 * (y > -20))
    return Volume.from_array(array.reshape(21, 21, 21).astype(np.float32), affine)


def turned(volume: Volume, axes: str) -> Volume:
    """The same scan stored in another orientation, such as LPI."""
    image = nib.Nifti1Image(volume.array, volume.affine)
    steps = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(steps)
    return Volume.from_array(np.asarray(image.dataobj), image.affine)


def drawn(volume: Volume, *after: Volume, **settings: object) -> list[np.ndarray]:
    """The slices in the picture, each (up, across) as drawn, right way round, without its colour bar."""
    figure = picture(volume, after, **settings)  # type: ignore[arg-type]
    slices = []
    for axes in figure.axes:
        if axes.images:
            array = np.asarray(axes.images[0].get_array())
            slices.append(array[:, ::-1] if axes.get_xlim()[0] > axes.get_xlim()[1] else array)
    return slices


def text_of(volume: Volume, *after: Volume, **settings: object) -> list[str]:
    figure = picture(volume, after, **settings)  # type: ignore[arg-type]
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    words += [label for axes in figure.axes for label in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel())]
    return words + [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("axes", ["RAS", "LPI", "ASR", "SLP"])
def test_every_orientation_gives_the_same_slices(axes: str) -> None:
    for expected, found in zip(drawn(ball()), drawn(turned(ball(), axes)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_sides_are_as_labelled() -> None:
    axial = drawn(ball(), planes=["axial"])[0]
    assert axial[:, 11:].mean() > axial[:, :10].mean()
    mirrored = drawn(ball(), planes=["axial"], radiological=True)[0]
    assert mirrored[:, 11:].mean() < mirrored[:, :10].mean()
    assert text_of(ball(), planes=["axial"])[:2] == ["L", "R"]
    assert text_of(ball(), planes=["axial"], radiological=True)[:2] == ["R", "L"]


def test_planes_pass_through_the_centre_or_the_point_asked_for() -> None:
    places = {"axial, z = 30 mm", "coronal, y = -20 mm", "sagittal, x = 10 mm"}
    assert places <= set(text_of(turned(ball(), "LPI")))
    volume = ball()
    np.testing.assert_array_equal(drawn(volume, at=(4, -20, 24), planes=["sagittal"])[0], volume.array[7].T)
    with pytest.raises(UsageError, match="0,0,200 mm lies outside"):
        picture(volume, at=(0, 0, 200))


def test_difference_is_after_minus_before_on_a_symmetric_scale() -> None:
    before = ball()
    after = before.with_array(before.array * 1.1)
    figure = picture(before, [after], planes=["axial"])
    image = next(
        axes.images[0] for axes in figure.axes if axes.images and axes.images[0].get_cmap().name == DIFFERENCES
    )
    low, high = image.get_clim()
    assert low == -high and high == pytest.approx(18, rel=1e-5)
    np.testing.assert_allclose(np.asarray(image.get_array()), (after.array - before.array)[:, :, 10].T)
    assert "no difference" in text_of(before, before)


def test_sweep_has_a_column_each_and_differences_underneath() -> None:
    before = ball()
    after = [before.with_array(before.array * factor) for factor in (1.1, 1.2, 1.3)]
    assert len(drawn(before, *after, planes=["axial", "coronal"])) == 2 * (4 + 3)


def test_another_grid_is_refused() -> None:
    before = ball()
    affine = before.affine.copy()
    affine[0, 3] += 1
    with pytest.raises(VolumeError, match="not on the grid"):
        picture(before, [Volume.from_array(before.array, affine)])
    with pytest.raises(VolumeError, match="21x21x20 voxels against 21x21x21"):
        picture(before, [Volume.from_array(before.array[:, :, :20], before.affine)])


def test_command_writes_the_picture_beside_the_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = tmp_path / "sub-01_T1w.nii.gz"
    ball().save(scan)
    assert main([str(scan), "--dpi", "40"]) == 0
    path = tmp_path / "sub-01_T1w.png"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes().startswith(PNG)
    assert main([str(scan)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([str(scan), str(scan), "-o", f"{tmp_path}/new/", "--dpi", "40", "--at", "-2,-20,30"]) == 0
    assert (tmp_path / "new" / path.name).read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--at", "1,2"], "--at 1,2: give 3 finite numbers"),
        (["--at", "1,2,nan"], "give 3 finite numbers"),
        (["--plane", "oblique"], "choose from axial"),
        (["--label", "a", "--label", "b"], "2 labels for 1 images"),
        (["--limit", "0"], "above 0"),
        (["-o", "picture.bmp"], "ends in .png"),
    ],
)
def test_command_refuses_what_makes_no_sense(
    words: list[str],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ball().save("scan.nii")
    assert main(["scan.nii", *words]) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]
