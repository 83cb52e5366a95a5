"""Image files to checked voxels and a header: NIfTI-1, NIfTI-2 and FreeSurfer's MGH.

nibabel trusts a header: it gives back scrambled voxels for a wrong dimension, skips gzip's checksum, and
allocates what the dimensions promise. So the bytes are checked here, and nibabel only interprets a header
already checked. Sources: the NIfTI-1 and NIfTI-2 standards (nifti.nimh.nih.gov), FreeSurfer's page on MGH.

Decisions, where the standard leaves a choice or real files stretch it:

- Slope: 0, NaN or infinite is refused, and so is an intercept that is not finite. The standard reads slope 0
  as "unscaled", but programs disagree (some multiply by it). nibabel and SimpleITK write 1, AFNI writes 0.
- A file longer than its header promises is refused: the usual cause is a damaged dimension, which would
  otherwise load as a scrambled picture. MGH files may end with their tags.
- The sform places the voxels when its code is set, else the qform, else (both codes 0, a warning) the voxel
  sizes, with the centre of the grid as origin and x from right to left, as nibabel has it. The output has the
  same forms and codes.
- The output is little-endian float32 NIfTI-1. Header extensions and the fields left over from Analyze
  (db_name and such) are dropped: they describe the original file, and may name the patient. The display range
  (cal_min, cal_max) is reset.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import nibabel as nib
import numpy as np

from cftools.errors import CftoolsWarning, VolumeError

_ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh", ".hdr", ".img")
_GZIP_MAGIC = b"\x1f\x8b"
_DEFLATE_LIMIT = 1032  # no deflate stream expands by more, so a short file cannot keep a large promise
_CHUNK = 1 << 20
_MOST_VOXELS = 1 << 30  # a whole brain at 0.25 mm has half as many
_MGH_TAIL = 1 << 24  # bytes of tags (command history, transforms) that may follow an MGH image

_KINDS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4",
          1024: "i8", 1280: "u8"}  # fmt: skip
_UNUSABLE_KINDS = {
    1: "single bits", 32: "complex numbers", 1792: "complex numbers", 2048: "complex numbers",
    128: "RGB colours", 2304: "RGBA colours", 1536: "128-bit numbers",
}  # fmt: skip
_MGH_KINDS = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_MAGIC = {  # by header length, and whether the voxels are in the same file
    (348, True): b"n+1\0", (348, False): b"ni1\0",
    (540, True): b"n+2\0\r\n\x1a\n", (540, False): b"ni2\0\r\n\x1a\n",
}  # fmt: skip
_KEPT_FIELDS = [
    "dim_info", "intent_p1", "intent_p2", "intent_p3", "intent_code", "intent_name", "slice_start",
    "slice_end", "slice_code", "slice_duration", "pixdim", "toffset", "xyzt_units", "descrip", "aux_file",
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z",
]  # fmt: skip
_RENEW = "copy or download it again"
_MEND = "mend its header or export it again"


@dataclass(frozen=True)
class _Layout:
    """What a checked header says about the bytes that follow."""

    header: Any  # NIfTI-1, as the output will have it
    dtype: np.dtype
    shape: tuple[int, int, int]
    volumes: int | None  # None: a 3D file
    offset: int  # byte where the data begin
    slope: float = 1.0
    intercept: float = 0.0
    tail: int = 0  # bytes that may follow the data
    notes: list[str] = field(default_factory=list)  # to warn of once the file proves sound


def read_file(path: Path, index: int | None = None) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Voxels, (X, Y, Z) float32, and output header of a file; arguments and errors as `Volume.load`."""
    name = printable(path)
    ending = next((known for known in _ENDINGS if path.name.lower().endswith(known)), None)
    if ending is None:
        raise VolumeError(f"{name}: the name of an image ends in {', '.join(_ENDINGS)}: convert or rename it")
    with _one_line_errors(name):
        if ending in (".hdr", ".img"):
            halves = (".HDR", ".IMG") if path.suffix.isupper() else (".hdr", ".img")
            with _open_regular(path.with_suffix(halves[0])) as (stream, _):
                layout = _nifti_layout(stream.read(540), name, single=False)
            with _open_regular(path.with_suffix(halves[1])) as (stream, size):
                return _read_data(stream, size, name, False, index, layout), layout.header
        with _open_regular(path) as (stream, size):
            packed = stream.read(2) == _GZIP_MAGIC
            if packed and not ending.endswith("z"):
                raise VolumeError(f"{name}: is gzip-compressed but not named so: rename it to end in .nii.gz")
            if size and ending.endswith("z") and not packed:
                raise VolumeError(f"{name}: is not gzip-compressed, as its name would have it: get the image again")
            return _read_stream(stream, size, name, packed, index, mgh=ending.startswith(".mg"))


def read_bytes(data: bytes, name: str, index: int | None = None) -> tuple[np.ndarray, nib.Nifti1Header]:
    """The same for the bytes of a .nii or .nii.gz."""
    with _one_line_errors(name):
        return _read_stream(io.BytesIO(data), len(data), name, data[:2] == _GZIP_MAGIC, index, mgh=False)


def new_header(shape: tuple[int, ...], affine: np.ndarray, code: int) -> nib.Nifti1Header:
    """A header in millimetres whose sform is `affine`, and its qform too unless a shear keeps it out."""
    header = nib.Nifti1Header()
    header.set_sform(affine, code)
    header.set_qform(affine, code)
    if not np.allclose(header.get_qform(), affine, atol=1e-3):
        header["qform_code"] = 0
    header.set_xyzt_units("mm")
    return output_header(header, shape)


def output_header(source: Any, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """The source's header (NIfTI-1 or 2) as little-endian float32 NIfTI-1, unscaled; else as it was."""
    header: Any = nib.Nifti1Header(endianness="<")
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused later
        for kept in _KEPT_FIELDS:
            header[kept] = source[kept]
    if header["pixdim"][0] not in (-1, 1):  # qfac; the reference library reads all else by its sign too
        header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    header["dim"] = [3, *shape, 1, 1, 1, 1]
    header["datatype"], header["bitpix"], header["vox_offset"] = 16, 32, 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def printable(path: str | Path) -> str:
    """A file's name on one line, whatever bytes are in it."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


@contextlib.contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn what reading may raise into one line that names the file."""
    try:
        yield
    except EOFError as error:
        raise VolumeError(f"{name}: is truncated: {_RENEW}") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VolumeError(f"{name}: its gzip is damaged ({error}): {_RENEW}") from error
    except FileNotFoundError as error:
        missing = Path(error.filename)
        if missing.is_symlink():
            raise VolumeError(f"{printable(missing)}: links to a file that is not there: fetch it") from error
        raise VolumeError(f"{printable(missing)}: does not exist: check the name") from error
    except OSError as error:
        reason = error.strerror or error
        raise VolumeError(f"{name}: cannot be read ({reason}): check it and its permissions") from error
    except MemoryError as error:
        raise VolumeError(f"{name}: does not fit into memory: use a larger machine") from error


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open an ordinary file for reading, with its size; opening a FIFO would wait for ever."""
    information = path.stat()
    if not stat.S_ISREG(information.st_mode):
        kind = "a folder" if stat.S_ISDIR(information.st_mode) else "a pipe or device"
        raise VolumeError(f"{printable(path)}: is {kind}, not a file: name an image (- reads stdin)")
    with open(path, "rb") as stream:
        yield stream, information.st_size


def _read_stream(
    stream: BinaryIO, size: int, name: str, packed: bool, index: int | None, mgh: bool
) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Voxels and output header of an image that is one stream of `size` bytes."""
    if size == 0:
        raise VolumeError(f"{name}: is empty: {_RENEW}")
    stream.seek(0)
    unpacked: Any = gzip.GzipFile(fileobj=stream) if packed else stream
    block = unpacked.read(540)
    layout = _mgh_layout(block, name) if mgh else _nifti_layout(block, name, single=True)
    return _read_data(unpacked, size, name, packed, index, layout), layout.header


def _read_data(stream: BinaryIO, size: int, name: str, packed: bool, index: int | None, layout: _Layout) -> np.ndarray:
    """The chosen volume, (X, Y, Z) float32, of a stream that holds just what its header promises."""
    volumes = layout.volumes or 1
    if volumes > 1 and index is None:
        raise VolumeError(f"{name}: holds {volumes} volumes: choose one with --volume (0 to {volumes - 1})")
    if index is not None and not 0 <= index < volumes:
        raise VolumeError(f"{name}: has no volume {index}: choose one with --volume (0 to {volumes - 1})")
    volume_bytes = math.prod(layout.shape) * layout.dtype.itemsize
    promised = layout.offset + volumes * volume_bytes
    if promised > (size * _DEFLATE_LIMIT + _CHUNK if packed else size):
        raise VolumeError(
            f"{name}: its header promises {promised:,} bytes, more than a file of {size:,} can hold: "
            "it is truncated or its header is damaged: copy or export it again"
        )
    start = layout.offset + (index or 0) * volume_bytes
    stream.seek(start)
    data = bytearray()  # grows with what is really there: nothing is allocated on the header's word
    while len(data) < volume_bytes and (chunk := stream.read(min(_CHUNK, volume_bytes - len(data)))):
        data += chunk
    end = start + len(data) if packed else size
    while packed and end <= promised + layout.tail and (chunk := stream.read(_CHUNK)):
        end += len(chunk)  # on to the end of the stream, where gzip's checksum and length are
    if end < promised or len(data) < volume_bytes:
        raise EOFError
    if end > promised + layout.tail:
        raise VolumeError(f"{name}: is longer than its header says, so it is damaged: {_MEND}")
    if layout.volumes == 1 and index is None:
        layout.notes.append("is 4D with one volume, taken as 3D")
    array = _scaled(data, layout, name)
    for note in layout.notes:
        warnings.warn(f"{name}: {note}", CftoolsWarning, stacklevel=2)
    return array


def _scaled(data: bytearray, layout: _Layout, name: str) -> np.ndarray:
    """slope * stored + intercept, (X, Y, Z) float32; NaN is background, a picture of nothing is refused."""
    array = np.frombuffer(data, layout.dtype).reshape(layout.shape, order="F")
    if (layout.slope, layout.intercept) != (1.0, 0.0) or layout.dtype != np.float32:
        stored, array = array, np.empty(layout.shape, np.float32, order="F")
        with np.errstate(over="ignore", invalid="ignore"):
            for z in range(layout.shape[2]):  # by slice: a float64 copy of the whole would double the memory
                array[..., z] = stored[..., z].astype(np.float64) * layout.slope + layout.intercept
    if np.isinf(array).any():
        raise VolumeError(f"{name}: holds infinite intensities: mend it where it was made")
    missing = np.isnan(array)
    if missing.all():
        raise VolumeError(f"{name}: holds nothing but NaN: mend it where it was made")
    if missing.any():
        array[missing] = 0
        layout.notes.append(f"has NaN in {np.count_nonzero(missing)} voxels, taken as background (0)")
    if (lowest := array.min()) == array.max():
        raise VolumeError(f"{name}: every voxel is {lowest:g}, so it holds no picture: check how it was made")
    return array


def _nifti_layout(block: bytes, name: str, single: bool) -> _Layout:
    """Check a NIfTI-1 or 2 header of either byte order; single: the voxels follow in the same file."""
    if not block:
        raise VolumeError(f"{name}: is empty: {_RENEW}")
    if block.isascii() and b"\0" not in block:
        raise VolumeError(f"{name}: is text (an error page? a link?): get the image again")
    byte_orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    lengths = {order: int.from_bytes(block[:4], order) for order in byte_orders}
    order = next((order for order in byte_orders if lengths[order] in (348, 540)), None)
    if order is None:
        raise VolumeError(f"{name}: is not a NIfTI image (unknown header size): convert it to NIfTI")
    if len(block) < (length := lengths[order]):
        raise EOFError
    magic = block[344:348] if length == 348 else block[4:12]
    if magic != _MAGIC[length, single]:
        raise VolumeError(f"{name}: is not NIfTI, or not of its kind (magic {magic!r}): convert it to .nii.gz")
    header_class = nib.Nifti1Header if length == 348 else nib.Nifti2Header
    header: Any = header_class(block[:length], endianness=order, check=False)

    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code in _UNUSABLE_KINDS:
        raise VolumeError(f"{name}: holds {_UNUSABLE_KINDS[code]}, not intensities: convert it")
    if code not in _KINDS:
        raise VolumeError(f"{name}: has the unknown datatype {code}: {_MEND}")
    dtype = np.dtype(_KINDS[code]).newbyteorder("<" if order == "little" else ">")
    if bits != 8 * dtype.itemsize:
        raise VolumeError(f"{name}: gives a voxel {bits} bits (bitpix), not {8 * dtype.itemsize}: {_MEND}")
    rank, *sides = (int(side) for side in header["dim"])
    if not 1 <= rank <= 7:
        raise VolumeError(f"{name}: says it has {rank} dimensions: {_MEND}")
    shape, volumes = _checked_shape(sides[:rank], name)
    offset = float(header["vox_offset"])
    if not (math.isfinite(offset) and offset == int(offset) and offset >= (length + 4 if single else 0)):
        raise VolumeError(f"{name}: its data cannot begin at byte {offset:g} (vox_offset): {_MEND}")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise VolumeError(
            f"{name}: its intensity scaling (slope {slope:g}, intercept {intercept:g}) has no sure meaning: "
            "if it is unscaled, set them to 1 and 0"
        )
    output = output_header(header, shape)
    notes = _check_geometry(output, {int(header["sform_code"]), int(header["qform_code"])}, name)
    return _Layout(output, dtype, shape, volumes, int(offset), slope, intercept, notes=notes)


def _mgh_layout(block: bytes, name: str) -> _Layout:
    """Check an MGH header; world = M (voxel - shape / 2) + centre, with M = directions times voxel sizes."""
    if len(block) < 284:
        raise EOFError
    version, *sides, code, _, placed = struct.unpack(">7ih", block[:30])
    if version != 1 or code not in _MGH_KINDS:
        raise VolumeError(f"{name}: is not a FreeSurfer image of a known datatype: convert it to .nii.gz")
    shape, volumes = _checked_shape(sides, name)
    numbers = np.frombuffer(block[30:90], ">f4").astype(np.float64)
    voxel_sizes, directions, centre = numbers[:3], numbers[3:12].reshape(3, 3).T, numbers[12:]
    notes = []
    if placed != 1:
        notes.append("does not say where its voxels lie: taken as coronal, 1 mm, centred")
        voxel_sizes, centre = np.ones(3), np.zeros(3)
        # FreeSurfer's own default; nibabel's runs the other way along y and z.
        directions = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    affine = np.eye(4)
    affine[:3, :3] = directions * np.where(voxel_sizes > 0, voxel_sizes, np.nan)
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2)
    _check_affine(affine, "header", name)
    header, dtype = new_header(shape, affine, code=1), np.dtype(_MGH_KINDS[code])
    several = None if volumes == 1 else volumes  # MGH always has a fourth dimension
    return _Layout(header, dtype, shape, several, 284, tail=_MGH_TAIL, notes=notes)


def _checked_shape(sides: list[int], name: str) -> tuple[tuple[int, int, int], int | None]:
    """The three sides of a volume, and how many volumes there are (None: the file is 3D)."""
    text = " x ".join(str(side) for side in sides)
    if min(sides) < 1:
        raise VolumeError(f"{name}: has the size {text}, with a side below 1: {_MEND}")
    if len(sides) < 3 or min(sides[:3]) == 1:
        raise VolumeError(f"{name}: is not 3D (size {text}): give a whole 3D scan, not a slice")
    if len(sides) > 4:
        raise VolumeError(f"{name}: is {len(sides)}D (size {text}): split it, and give one 3D volume")
    if math.prod(sides[:3]) > _MOST_VOXELS or max(sides[:3]) > 32767:
        raise VolumeError(f"{name}: says it has {text} voxels, more than any scan: {_MEND}")
    return (sides[0], sides[1], sides[2]), (sides[3] if len(sides) == 4 else None)


def _check_geometry(header: Any, codes: set[int], name: str) -> list[str]:
    """Check voxel sizes, forms and (as in the file) form codes of an output header; what to warn of."""
    pixdim = header["pixdim"][1:4]
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise VolumeError(f"{name}: has the voxel sizes (pixdim) {pixdim.tolist()}: {_MEND}")
    if not codes <= set(range(6)):
        raise VolumeError(f"{name}: has a form code other than 0 to 5: {_MEND}")
    forms: list[np.ndarray] = []
    notes = []
    for form, get_form in (("sform", header.get_sform), ("qform", header.get_qform)):
        if header[f"{form}_code"] > 0:
            try:
                affine = get_form()
            except ValueError:  # nibabel's for a quaternion longer than 1
                affine = np.full((4, 4), np.nan)
            _check_affine(affine, form, name)
            forms.append(affine)
    if not forms:
        notes.append("has both form codes 0: its place, and its left and right, are a guess")
        _check_affine(header.get_best_affine(), "header", name)
    if len(forms) == 2:
        corners = np.array(np.meshgrid(*((0, side - 1) for side in header.get_data_shape()))).reshape(3, -1)
        apart = (forms[0] - forms[1])[:3] @ np.vstack([corners, np.ones(8)])
        if (distance := np.linalg.norm(apart, axis=0).max()) > 1:
            notes.append(f"has sform and qform up to {distance:.0f} mm apart; the sform is used")
    voxel_sizes = np.linalg.norm(header.get_best_affine()[:3, :3], axis=0)
    if voxel_sizes.max() >= 4:
        notes.append(f"has slices of {voxel_sizes.max():.3g} mm: what is between them is a guess")
    if int(header["xyzt_units"]) & 7 in (1, 3):
        notes.append("says its lengths are not in millimetres; they are taken as millimetres")
    return notes


def _check_affine(affine: np.ndarray, source: str, name: str) -> None:
    if not np.isfinite(affine).all():
        raise VolumeError(f"{name}: its affine ({source}) holds NaN or is impossible: {_MEND}")
    voxel_sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not 0.01 <= voxel_sizes.min() <= voxel_sizes.max() <= 100:
        text = " x ".join(f"{size:.3g}" for size in voxel_sizes)
        raise VolumeError(f"{name}: its affine ({source}) has voxels of {text} mm, as no scan has: {_MEND}")
    if np.abs(affine[:3, 3]).max() > 1e5:
        raise VolumeError(f"{name}: its affine ({source}) puts it over 100 m from the origin: {_MEND}")
    if abs(np.linalg.det(affine[:3, :3] / voxel_sizes)) < 1e-3:
        raise VolumeError(f"{name}: its affine ({source}) is singular: {_MEND}")
