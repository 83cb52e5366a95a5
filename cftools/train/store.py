"""What training data is made of, made once and met again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cftools.volume import make_folder, write_atomic

Made = dict[str, Tensor]


class Store:
    """Tensors by number: in this process's memory, or in a folder that workers and trainings share.

    Two processes that make the same number at once both write it whole, and the same; the later one stays.

    Args:
        folder: None for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[int, Made] = {}

    def get(self, number: int, make: Callable[[], Made]) -> Made:
        """What is kept under a number; made now if nothing is.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            if number not in self._kept:
                self._kept[number] = make()
            return self._kept[number]
        path = self.folder / f"{number:06d}.safetensors"
        try:
            return load_file(path)
        except (FileNotFoundError, SafetensorError):  # not made yet, or a disk that filled up cut it short
            pass
        made = {name: values.contiguous() for name, values in make().items()}
        make_folder(self.folder)
        write_atomic(path, save(made), force=True)
        return made
