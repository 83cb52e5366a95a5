"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bad_nifti import AFFINE, picture

from cftools.volume import Volume


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real scans: $CFTOOLS_DATA, else beside the repository; the test is skipped without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CFTOOLS_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real scans: set CFTOOLS_DATA to their folder")
    return folder


@pytest.fixture
def tiny_volume() -> Volume:
    """A blob of 12 x 14 x 10 voxels of 1 x 1.5 x 2 mm, x from right to left, both form codes 1."""
    return Volume.from_array(picture(), AFFINE)
