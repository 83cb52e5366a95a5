"""Fixtures that all tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own that holds 64 KiB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file, kept.txt, that nobody can write to: permissions do not bind root, a mount does."""
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    _mount("--bind", str(folder), str(folder))
    _mount("-o", "remount,bind,ro", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _mount(*words: str) -> None:
    try:
        done = subprocess.run(["mount", *words], capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
