"""Fixtures that all tests share."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_nifti import AFFINE, picture

from cftools import prepare
from cftools.volume import Volume

#: The slowest files: those start first, so that the processes end together.
SLOWEST = ("test_docs", "test_heads", "test_baselines", "test_twin", "test_pipe", "test_train", "test_phantom")


def pytest_configure(config: pytest.Config) -> None:
    """One CPU for each of several processes, and so one thread for the commands that they run.

    A command takes as many threads as it may use CPUs, whatever OMP_NUM_THREADS says, and threads that share a CPU
    wait for each other several times as long as they work.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[int(worker.removeprefix("gw")) % len(cpus)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real scans: $CFTOOLS_DATA, else beside the repository; the test is skipped without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CFTOOLS_DATA") or beside)
    if not folder.is_dir():
        pytest.skip("no real scans: set CFTOOLS_DATA to their folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def each_scan_is_prepared_once() -> Iterator[None]:
    """N4 and registration take seconds and give the same bits every time, as test_heads and test_prepare hold."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bias_field", "register"):
            patch.setattr(prepare, name, _remembering(getattr(prepare, name)))
        yield


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, computed once for each different input."""
    found: dict[bytes, Any] = {}

    def remembered(*arrays: np.ndarray) -> Any:
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
        key = digest.digest()
        if key not in found:
            found[key] = function(*arrays)
        return found[key]

    return remembered


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
