"""What training data is made of, made once and met again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cftools.volume import make_folder, write_atomic

Made = dict[str, Tensor]


class Store:
    """Tensors by number or name: in this process's memory, or in a folder that workers and trainings share.

    What one process makes others wait for, where the file system has locks; elsewhere two that make the same number at
    once both write it whole, and the same, and the later one stays.

    Args:
        folder: None for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[int | str, Made] = {}

    def get(self, number: int | str, make: Callable[[], Made]) -> Made:
        """What is kept under a number or a name; made now if nothing is.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            if number not in self._kept:
                self._kept[number] = make()
            return self._kept[number]
        name = number if isinstance(number, str) else f"{number:06d}"
        path = self.folder / f"{name}.safetensors"
        if (kept := _kept(path)) is not None:
            return kept
        make_folder(self.folder)
        with _alone(path):
            if (kept := _kept(path)) is None:
                kept = {name: values.contiguous() for name, values in make().items()}
                write_atomic(path, save(kept), force=True)
            return kept


def _kept(path: Path) -> Made | None:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):  # not made yet, or a disk that filled up cut it short
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """By no other process at the same time, if the file system can tell; a process that dies lets go."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire()
    except (NotImplementedError, OSError):  # network file systems without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
        path.with_suffix(".lock").unlink(missing_ok=True)
