"""An image and the JSON beside it that says how it came about, written as one."""

from __future__ import annotations

import json
from pathlib import Path

from cftools.errors import OutputError
from cftools.provenance import Provenance, sidecar_path, write_sidecar
from cftools.volume import Volume, write_atomic


def save_described(volume: Volume, provenance: Provenance, path: Path, force: bool = False) -> None:
    """Write an image and the sidecar beside it; the image last: where there is one it is complete.

    Where another task writes the same image at the same time, one of them has both, and the other has an error.

    Raises:
        OutputError: one of them exists, or cannot be written.
    """
    sidecar = sidecar_path(path)
    before: bytes | None = None
    ours: bytes | None = None

    def describe() -> None:
        nonlocal before, ours
        before = _content(sidecar)
        try:
            # A JSON without an image is what a killed run leaves.
            write_sidecar(path, provenance, force=force or (before is not None and is_sidecar(sidecar)))
        except OutputError:
            if before is not None or not is_sidecar(sidecar):
                raise
            before = _content(sidecar)  # another task's, which came this instant
            write_sidecar(path, provenance, force=True)
        ours = provenance.content()

    try:
        volume.save(path, force=force, first=describe)
    except BaseException:
        if ours is not None and _content(sidecar) == ours:
            if before is not None:
                write_atomic(sidecar, before, force=True)
            elif not path.exists():
                sidecar.unlink()
        raise
    if _content(sidecar) != ours:
        write_sidecar(path, provenance, force=True)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() else None  # a FIFO would block
    except OSError:
        return None


def is_sidecar(sidecar: Path) -> bool:
    """Whether a JSON file is a sidecar that cftools wrote."""
    try:
        # A FIFO would block.
        return sidecar.is_file() and "cftools" in json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
