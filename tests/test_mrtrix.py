"""MRtrix3 reads what the commands write: the same grid and the same values as nibabel finds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bad_nifti import ACCEPTED

from cftools.cli.edit import main as edit
from cftools.cli.phantom import main as phantom
from cftools.prepare import Grid, resample
from cftools.register import template
from cftools.volume import Volume

pytestmark = pytest.mark.skipif(
    shutil.which("mrinfo") is None or shutil.which("mrstats") is None,
    reason="MRtrix3 is not installed (Debian package mrtrix3)",
)
#: MRtrix3 otherwise reorders axes, to run to right, anterior, superior.
AS_STORED = ("-config", "RealignTransform", "false")
ODD_GRIDS = ("oblique", "sform-unlike-qform", "qform-only", "thick-slices", "big-endian", "nifti2", "mgz", "4d-of-one")


def _words(*command: str | Path) -> list[str]:
    done = subprocess.run([*map(str, command), "-quiet"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def _agree(path: Path) -> None:
    """mrinfo and mrstats say of an image what nibabel does."""
    image: Any = nib.load(path)
    array, affine = np.asarray(image.dataobj, np.float64), image.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    assert [int(word) for word in _words("mrinfo", *AS_STORED, "-size", path)] == list(array.shape)
    spacing = np.array(_words("mrinfo", *AS_STORED, "-spacing", path), float)
    np.testing.assert_allclose(spacing, sizes, rtol=1e-5)
    placed = np.array(_words("mrinfo", *AS_STORED, "-transform", path), float).reshape(4, 4)
    placed[:3, :3] *= spacing
    np.testing.assert_allclose(placed, affine, atol=1e-4)
    assert _words("mrinfo", "-datatype", path) == ["Float32LE"]
    expected = {"mean": array.mean(), "std": array.std(ddof=1), "min": array.min(), "max": array.max()}
    expected["count"] = array.size
    found = {name: float(_words("mrstats", "-output", name, path)[0]) for name in expected}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_mrtrix_reads_an_edit(tmp_path: Path) -> None:
    whole, affine = template(), np.diag([-3.9, 3.9, 3.9, 1])
    affine[:3, 3] = (75, -110, -70)
    array = resample(whole.array, whole.affine, Grid("test", (40, 50, 42), affine))
    Volume.from_array(1000 * array, affine, code=4).save(tmp_path / "scan.nii.gz")
    path = tmp_path / "older.nii.gz"
    assert edit(["--age", "+30", "--from", "age=40", str(tmp_path / "scan.nii.gz"), str(path)]) == 0
    _agree(path)


@pytest.mark.slow
def test_mrtrix_reads_a_simulated_cohort(tmp_path: Path) -> None:
    assert phantom(["-n", "1", "--seed", "3", str(tmp_path / "cohort")]) == 0
    images = list((tmp_path / "cohort").rglob("*.nii.gz"))
    assert images
    for path in images:
        _agree(path)


@pytest.mark.parametrize("name", ODD_GRIDS)
@pytest.mark.filterwarnings("ignore::cftools.errors.CftoolsWarning")
def test_mrtrix_reads_images_on_odd_grids(name: str, tmp_path: Path) -> None:
    Volume.load(ACCEPTED[name](tmp_path)).save(tmp_path / "out.nii.gz")
    _agree(tmp_path / "out.nii.gz")
