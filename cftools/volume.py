"""The image container: one 3D scan, the affine that places it, and the header its outputs will have."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from cftools.errors import OutputError, VolumeError
from cftools.nifti import new_header, output_header, printable, read_bytes, read_file

# The mantissas of an edited scan do not compress: levels 1 to 6 take 0.21 to 0.24 s for 6.1 to 5.9 MB on a
# stripped 1 mm brain, and 1.2 to 1.4 s for 37.5 to 37.3 MB on a 256 x 256 x 160 head with noise in the air.
_GZIP_LEVEL = 1


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D scan: voxels, where they lie, and the header they came with.

    Args:
        array: intensities, (X, Y, Z) float32; Fortran-ordered when read from a file, so make it contiguous
            before safetensors sees it.
        affine: voxel indices -> world millimetres (RAS), (4, 4) float64; the one the header gives.
        header: NIfTI-1 header of the grid; its forms, codes and units go to every output.
        path: the file it was read from; None for a stream or a made volume.
    Raises:
        ValueError: the array, the affine and the header do not go together.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or self.array.dtype != np.float32:
            raise ValueError(f"a volume is 3D float32, not {self.array.ndim}D {self.array.dtype}")
        if self.header.get_data_shape() != self.array.shape:
            raise ValueError(f"array {self.array.shape} is not the header's {self.header.get_data_shape()}")
        placed = self.header.get_best_affine()
        if self.affine.shape != (4, 4) or not np.allclose(self.affine, placed, atol=1e-3):
            raise ValueError("the affine is not the header's: Volume.from_array makes a volume on a new grid")

    @classmethod
    def load(cls, source: str | Path, index: int | None = None) -> Volume:
        """Read .nii, .nii.gz, .hdr/.img, .mgz or .mgh, checking all of it.

        Args:
            source: the file; either half of a .hdr/.img pair.
            index: which volume of a 4D file, from 0; needed when there are several.
        Raises:
            VolumeError: anything that cannot be a sound 3D scan; one line with the file's name.
        Warns:
            CftoolsWarning: accepted, but worth knowing: 4D with one volume, NaN voxels (they become 0), no
                form code, sform and qform over 1 mm apart, slices of 4 mm or more, units other than mm.
        """
        path = Path(source)
        array, header = read_file(path, index)
        return cls(array, header.get_best_affine(), header, path)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "-", index: int | None = None) -> Volume:
        """Read the bytes of a .nii or .nii.gz, as they come from stdin; arguments and errors as `load`."""
        array, header = read_bytes(data, "standard input (-)" if name == "-" else name, index)
        return cls(array, header.get_best_affine(), header)

    @classmethod
    def from_array(cls, array: np.ndarray, affine: np.ndarray, code: int = 1) -> Volume:
        """A new volume on a grid of its own, in millimetres.

        Args:
            array: (X, Y, Z), stored as float32.
            affine: (4, 4), voxel indices -> world mm (RAS); a shear is left to the sform.
            code: what the world is, for both forms: 1 scanner, 2 aligned, 4 MNI152.
        """
        header = new_header(array.shape, affine, code)
        return cls(np.asarray(array, np.float32), header.get_best_affine(), header)

    def with_array(self, array: np.ndarray) -> Volume:
        """The same grid, header and origin with other intensities, (X, Y, Z), stored as float32."""
        return Volume(np.asarray(array, np.float32), self.affine, self.header, self.path)

    @property
    def voxel_sizes(self) -> np.ndarray:
        """Voxel edge lengths in mm, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm^3, |det A|: right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def check_same_grid(self, other: Volume) -> None:
        """Raise a VolumeError unless the other volume has this one's shape and affine."""
        if self.array.shape != other.array.shape:
            sizes = ["x".join(map(str, volume.array.shape)) for volume in (other, self)]
            found = f"{sizes[0]} voxels against {sizes[1]}"
        elif not np.allclose(self.affine, other.affine, atol=1e-3):
            found = "another origin, orientation or voxel size"
        else:
            return
        theirs, ours = (printable(volume.path) if volume.path else "one" for volume in (other, self))
        raise VolumeError(f"{theirs}: is not on the grid of {ours} ({found}): resample it onto that first")

    def region(self, mask: Volume) -> np.ndarray:
        """A mask on this volume's grid as bool, (X, Y, Z).

        Raises:
            VolumeError: on another grid, or with more than one value beside 0.
        """
        self.check_same_grid(mask)
        name = printable(mask.path) if mask.path else "the mask"
        values = np.unique(mask.array[mask.array != 0])
        if values.size > 1:
            raise VolumeError(f"{name}: holds {values.size} values beside 0, and a mask holds one: threshold it first")
        return mask.array != 0

    def to_bytes(self, gz: bool = False) -> bytes:
        """The bytes of a .nii file, or of a .nii.gz: the same volume always gives the same bytes."""
        buffer = io.BytesIO()
        with contextlib.ExitStack() as stack:
            stream: Any = buffer
            if gz:  # neither name nor time in the gzip header
                packer = gzip.GzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=buffer, mtime=0)
                stream = stack.enter_context(packer)
            # Not through nibabel's writer, which may rescale the data or reset the form codes.
            header = output_header(self.header, self.array.shape)
            stream.write(header.binaryblock + bytes(4))  # four zeros: no header extensions
            for z in range(self.array.shape[2]):  # by slice: no second copy of the whole
                stream.write(self.array[..., z].astype("<f4", copy=False).tobytes(order="F"))
        return buffer.getvalue()

    def save(self, path: str | Path, force: bool = False, first: Callable[[], None] | None = None) -> None:
        """Write .nii or .nii.gz, as the name says, whole or not at all; arguments as `write_atomic`.

        Raises:
            OutputError: another ending, or as `write_atomic`.
        """
        ending = Path(path).name.lower()
        if not ending.endswith((".nii", ".nii.gz")):
            raise OutputError(f"{printable(path)}: an output image must be named .nii or .nii.gz: rename it")
        write_atomic(path, self.to_bytes(gz=ending.endswith(".gz")), force, first)


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it, where they are not there yet.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{printable(folder)}: cannot be made ({error.strerror}): name another folder") from None


def write_atomic(
    path: str | Path,
    data: bytes | Callable[[BinaryIO], None],
    force: bool = False,
    first: Callable[[], None] | None = None,
) -> None:
    """Write a file whole or not at all: beside its destination first, then moved into place.

    A kill leaves the destination as it was, and at most a hidden .part file, which an exception removes. A
    link is replaced; what it points to is not touched. Permissions follow the umask.

    Args:
        path: destination; its folder must exist.
        data: the bytes, or a function that writes them to the stream it is given.
        force: replace what is there; without it, of several tasks that write one file at once only one does.
        first: called when all is written, just before it is moved into place.
    Raises:
        OutputError: exists already, is a folder or a device, its folder is missing or unwritable, disk full.
    """
    path = Path(path)
    temporary = path.parent / f".cftools-{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        _check_destination(path, force)
        with open(temporary, "xb") as stream:
            if callable(data):
                data(stream)
            else:
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _check_destination(path, force)  # again: another task may have written it meanwhile
        if first is not None:
            first()
        _move(temporary, path, force)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{printable(path)}: cannot be written ({reason}): write it elsewhere") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _move(temporary: Path, path: Path, force: bool) -> None:
    """Give a whole file its name; without force never the name of another, even one that came this instant."""
    if not force:
        try:
            os.link(temporary, path)
            return
        except FileExistsError:
            raise _exists_already(path) from None
        except OSError:
            _check_destination(path, force)  # a file system without hard links: as near as it gets
    os.replace(temporary, path)


def _exists_already(path: Path) -> OutputError:
    return OutputError(f"{printable(path)}: exists already: pass --force to replace it, or name another output")


def _check_destination(path: Path, force: bool) -> None:
    name = printable(path)
    if not path.parent.is_dir():
        raise OutputError(f"{name}: the folder {printable(path.parent)} does not exist: make it first")
    if path.is_dir():
        raise OutputError(f"{name}: is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{name}: is not an ordinary file: name another output")
    if os.path.lexists(path) and not force:
        raise _exists_already(path)
