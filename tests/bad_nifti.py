"""Image files as they should not be, and unusual ones that are fine: one corpus for all tests.

`REFUSED` and `ACCEPTED` map a name to a builder: given an empty folder, it makes the file there and returns
its path. `REASONS` holds, for each refused file, words its error must contain; `WARNINGS` the same for the
warning of an accepted file (absent: no warning).
"""

from __future__ import annotations

import gzip
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

Builder = Callable[[Path], Path]

SHAPE = (12, 14, 10)
AFFINE = np.array([[-1.0, 0, 0, 40], [0, 1.5, 0, -60], [0, 0, 2, -30], [0, 0, 0, 1]])

DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT = 40, 70, 72, 76, 108, 112, 116
QFORM_CODE, SFORM_CODE, QUATERNION, SROW, MAGIC = 252, 254, 256, 280, 344
NAN, INFINITY = float("nan"), float("inf")


def picture() -> np.ndarray:
    """A blob of 40 to 120 on a background of 0, (12, 14, 10) float32, whole: every datatype can hold it."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.8
    texture = np.random.default_rng(7).integers(40, 121, SHAPE)
    return np.where(inside, texture, 0).astype(np.float32)


def nifti_bytes(array: np.ndarray | None = None, affine: np.ndarray = AFFINE, kind: Any = nib.Nifti1Image) -> bytes:
    """A sound single-file image with sform and qform code 1, float32 unless another array is given."""
    image = kind(picture() if array is None else array, affine, dtype=None if array is None else array.dtype)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image.to_bytes()


def _written(name: str, make: Callable[[], bytes]) -> Builder:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(make())
        return folder / name

    return build


def _patched(offset: int, pattern: str, *values: Any, ending: str = ".nii") -> Builder:
    """The sound image with some header fields overwritten; numbers are little-endian."""

    def make() -> bytes:
        data = bytearray(nifti_bytes())
        struct.pack_into("<" + pattern, data, offset, *values)
        return gzip.compress(data) if ending.endswith("gz") else bytes(data)

    return _written("scan" + ending, make)


def _image(array: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE, name: str = "scan.nii") -> Builder:
    return _written(name, lambda: nifti_bytes(array(picture()), affine))


def _bytes(change: Callable[[bytes], bytes], name: str = "scan.nii") -> Builder:
    """The sound image's bytes (gzip-compressed first for a name in .gz), then changed."""

    def make() -> bytes:
        data = nifti_bytes()
        return change(gzip.compress(data) if name.endswith(".gz") else data)

    return _written(name, make)


def _flip(position: int, bit: int = 3) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[position] ^= 1 << bit
        return bytes(changed)

    return change


def _nan_in(mask: Callable[[np.ndarray], np.ndarray], value: float = NAN) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.where(mask(array), np.float32(value), array).astype(np.float32)


def _one_voxel(value: float, dtype: Any = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        changed = array.astype(dtype)
        changed[5, 6, 5] = value
        return changed

    return change


def _nifti2_of_size(*sides: int) -> bytes:
    data = bytearray(nifti_bytes(kind=nib.Nifti2Image))
    struct.pack_into("<4q", data, 16, 3, *sides)
    return bytes(data)


def _pair(folder: Path) -> Path:
    """scan.hdr and scan.img; the path of the header."""
    nib.Nifti1Pair(picture(), AFFINE).to_filename(folder / "scan.hdr")
    return folder / "scan.hdr"


def _pair_without(ending: str) -> Builder:
    def build(folder: Path) -> Path:
        _pair(folder).with_suffix(ending).unlink()
        return folder / ("scan.img" if ending == ".hdr" else "scan.hdr")

    return build


def _pair_truncated(folder: Path) -> Path:
    path = _pair(folder)
    path.with_suffix(".img").write_bytes(path.with_suffix(".img").read_bytes()[:-3])
    return path


def _mgh(change: Callable[[bytes], bytes] = bytes, name: str = "scan.mgz") -> Builder:
    def make() -> bytes:
        oblique = _turn(0.3) @ AFFINE
        data = change(nib.MGHImage(picture(), oblique).to_bytes())
        return gzip.compress(data) if name.endswith("z") else data

    return _written(name, make)


def _overwrite(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + new + data[offset + len(new) :]


def _made(make: Callable[[Path], Any], name: str = "scan.nii") -> Builder:
    def build(folder: Path) -> Path:
        make(folder / name)
        return folder / name

    return build


def _turn(angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


_CASES: dict[str, tuple[str, Builder]] = {
    # gzip
    "gzip-bit-flipped": ("gzip is damaged", _bytes(lambda data: _flip(len(data) // 2)(data), "scan.nii.gz")),
    "gzip-bad-checksum": ("gzip is damaged", _bytes(_flip(-6), "scan.nii.gz")),
    "gzip-bad-length": ("gzip is damaged", _bytes(_flip(-3), "scan.nii.gz")),
    "gzip-garbage-after": ("gzip is damaged", _bytes(lambda data: data + b"garbage", "scan.nii.gz")),
    "gzip-truncated": ("truncated", _bytes(lambda data: data[: len(data) // 2], "scan.nii.gz")),
    "gzip-without-checksum": ("truncated", _bytes(lambda data: data[:-8], "scan.nii.gz")),
    "gzip-of-truncated": ("truncated", _written("scan.nii.gz", lambda: gzip.compress(nifti_bytes()[:-9]))),
    "gzip-of-nothing": ("empty", _written("scan.nii.gz", lambda: gzip.compress(b""))),
    "gzip-of-text": ("text", _written("scan.nii.gz", lambda: gzip.compress(b"not an image\n" * 99))),
    "gzip-as-nii": ("rename", _written("scan.nii", lambda: gzip.compress(nifti_bytes()))),
    "plain-as-gzip": ("not gzip", _written("scan.nii.gz", nifti_bytes)),
    "empty-gzip": ("empty", _written("scan.nii.gz", bytes)),
    # the file as a whole
    "empty": ("empty", _written("scan.nii", bytes)),
    "one-byte": ("not a NIfTI", _written("scan.nii", lambda: b"\0")),
    "text": ("text", _written("scan.nii", lambda: b"subject,age\nsub-01,49\n" * 40)),
    "link-text": ("text", _written("scan.nii", lambda: b"version https://git-lfs.github.com/spec/v1\n")),
    "png": ("not a NIfTI", _written("scan.nii", lambda: b"\x89PNG\r\n\x1a\n" + bytes(999))),
    "unknown-ending": ("name of an image", _written("scan.dcm", nifti_bytes)),
    "truncated": ("can hold", _bytes(lambda data: data[:-1])),
    "truncated-header": ("truncated", _bytes(lambda data: data[:200])),
    "bytes-after": ("longer", _bytes(lambda data: data + b"\0")),
    "hdr-without-img": ("does not exist", _pair_without(".img")),
    "img-without-hdr": ("does not exist", _pair_without(".hdr")),
    "img-truncated": ("can hold", _pair_truncated),
    # the header
    "wrong-header-size": ("header size", _patched(0, "i", 349)),
    "wrong-magic": ("magic", _patched(MAGIC, "4s", b"n+7\0")),
    "analyze": ("magic", _patched(MAGIC, "4s", b"")),
    "pair-magic-in-one-file": ("magic", _patched(MAGIC, "4s", b"ni1\0")),
    "unknown-datatype": ("datatype 99", _patched(DATATYPE, "h", 99)),
    "wrong-bitpix": ("bitpix", _patched(BITPIX, "h", 16)),
    "offset-zero": ("vox_offset", _patched(VOX_OFFSET, "f", 0)),
    "offset-in-header": ("vox_offset", _patched(VOX_OFFSET, "f", 100)),
    "offset-negative": ("vox_offset", _patched(VOX_OFFSET, "f", -352)),
    "offset-fraction": ("vox_offset", _patched(VOX_OFFSET, "f", 352.5)),
    "offset-nan": ("vox_offset", _patched(VOX_OFFSET, "f", NAN)),
    "offset-past-end": ("can hold", _patched(VOX_OFFSET, "f", 1e9)),
    "offset-past-end-gzip": ("truncated", _patched(VOX_OFFSET, "f", 16384, ending=".nii.gz")),
    "terabytes": ("more than any scan", _patched(DIM, "4h", 3, 32000, 32000, 32000)),
    "terabytes-gzip": ("more than any scan", _patched(DIM, "4h", 3, 32000, 32000, 32000, ending=".nii.gz")),
    "terabytes-nifti2": ("more than any scan", _written("scan.nii", lambda: _nifti2_of_size(*[1 << 40] * 3))),
    "side-too-long": ("more than any scan", _written("scan.nii", lambda: _nifti2_of_size(40000, 14, 10))),
    "gigabytes-4d": ("can hold", _patched(DIM, "5h", 4, 1000, 1000, 1000, 1)),
    "gigabytes-gzip": ("can hold", _patched(DIM, "4h", 3, 1000, 1000, 1000, ending=".nii.gz")),
    "dimension-zero": ("side below 1", _patched(DIM, "4h", 3, 12, 0, 10)),
    "dimension-negative": ("side below 1", _patched(DIM, "4h", 3, 12, -14, 10)),
    "dimension-too-small": ("longer", _patched(DIM, "4h", 3, 12, 6, 10)),
    "dimensions-none": ("0 dimensions", _patched(DIM, "h", 0)),
    "dimensions-nine": ("9 dimensions", _patched(DIM, "h", 9)),
    "pixdim-zero": ("pixdim", _patched(PIXDIM, "4f", 1, 1, 0, 1)),
    "pixdim-negative": ("pixdim", _patched(PIXDIM, "4f", 1, -1, 1, 1)),
    "pixdim-nan": ("pixdim", _patched(PIXDIM, "4f", 1, 1, 1, NAN)),
    "sform-nan": ("sform", _patched(SROW, "f", NAN)),
    "sform-infinite": ("sform", _patched(SROW + 12, "f", INFINITY)),
    "sform-singular": ("singular", _patched(SROW, "8f", 1, 1, 1, 0, 1, 1, 1, 0)),
    "sform-zero": ("sform", _patched(SROW, "12f", *[0] * 12)),
    "sform-far-away": ("from the origin", _patched(SROW + 12, "f", 1e20)),
    "sform-microscopic": ("voxels of", _patched(SROW, "12f", 1e-6, 0, 0, 0, 0, 1e-6, 0, 0, 0, 0, 1e-6, 0)),
    "qform-nan": ("qform", _patched(QUATERNION, "f", NAN)),
    "qform-too-long": ("qform", _patched(QUATERNION, "3f", 1, 1, 1)),
    "form-code-unknown": ("form code", _patched(SFORM_CODE, "h", 300)),
    "slope-zero": ("slope", _patched(SLOPE, "f", 0)),
    "slope-nan": ("slope", _patched(SLOPE, "2f", NAN, NAN)),
    "slope-infinite": ("slope", _patched(SLOPE, "f", INFINITY)),
    "intercept-nan": ("intercept", _patched(INTERCEPT, "f", NAN)),
    # the voxels
    "complex": ("complex", _image(lambda array: array.astype(np.complex64))),
    "single-bits": ("single bits", _patched(DATATYPE, "2h", 1, 1)),
    "rgb": ("RGB", _patched(DATATYPE, "2h", 128, 24)),
    "5d": ("5D", _image(lambda array: np.stack([array, array], -1)[:, :, :, None])),
    "5d-of-one": ("5D", _image(lambda array: array[..., None, None])),
    "4d-of-several": ("--volume", _image(lambda array: np.stack([array, array, array], -1))),
    "2d": ("not 3D", _image(lambda array: array[:, :, 5])),
    "one-slice": ("not 3D", _image(lambda array: array[:, :, 5:6])),
    "all-zero": ("every voxel is 0", _image(np.zeros_like)),
    "constant": ("every voxel is 7", _image(lambda array: np.full_like(array, 7))),
    "all-nan": ("nothing but NaN", _image(lambda array: np.full_like(array, NAN))),
    "nan-and-zero": ("every voxel is 0", _image(_nan_in(lambda array: array > 0))),
    "infinite-voxel": ("infinite", _image(_one_voxel(INFINITY))),
    "beyond-float32": ("infinite", _image(_one_voxel(1e300, np.float64))),
    # FreeSurfer
    "mgz-wrong-version": ("FreeSurfer", _mgh(_overwrite(0, b"\0\0\0\7"))),
    "mgz-unknown-datatype": ("FreeSurfer", _mgh(_overwrite(20, b"\0\0\0\x09"))),
    "mgz-voxel-size-negative": ("affine", _mgh(_overwrite(30, struct.pack(">f", -1)))),
    "mgz-truncated": ("truncated", _mgh(lambda data: data[:-2000])),
    "mgz-header-only": ("truncated", _mgh(lambda data: data[:100])),
    # not a file at all
    "missing": ("does not exist", _made(lambda path: None)),
    "folder": ("a folder", _made(Path.mkdir, "scan.nii.gz")),
    "fifo": ("a pipe", _made(os.mkfifo)),
    "socket": ("a pipe or device", _made(lambda path: os.mknod(path, stat.S_IFSOCK | 0o600))),
    "device": ("device", _made(lambda path: path.symlink_to("/dev/zero"))),
    "dangling-link": ("links to", _made(lambda path: path.symlink_to("annexed.nii"))),
    "below-a-file": ("cannot be read", lambda folder: _written("a", bytes)(folder) / "scan.nii"),
}  # fmt: skip

REFUSED: dict[str, Builder] = {name: build for name, (_, build) in _CASES.items()}
REASONS: dict[str, str] = {name: reason for name, (reason, _) in _CASES.items()}


def _as(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.astype(dtype)


def _with_forms(sform: np.ndarray, sform_code: int, qform: np.ndarray, qform_code: int) -> Builder:
    def make() -> bytes:
        image = nib.Nifti1Image(picture(), None)
        image.header.set_sform(sform, sform_code)
        image.header.set_qform(qform, qform_code)
        return image.to_bytes()

    return _written("scan.nii", make)


def _scaled() -> bytes:
    image = nib.Nifti1Image((3.5 * picture() - 50).astype(np.float32), AFFINE)
    image.set_data_dtype(np.int16)
    return image.to_bytes()


def _qfac_zero() -> bytes:
    """Zero stands for 1: no axis is mirrored."""
    return _overwrite(PIXDIM, bytes(4))(nifti_bytes(affine=np.diag([1.0, 1.5, 2, 1])))


def _with_extension() -> bytes:
    image = nib.Nifti1Image(picture(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a scan of somebody by name"))
    return image.to_bytes()


def _linked(folder: Path) -> Path:
    (folder / "annex").mkdir()
    target = _written("MD5E-s123", lambda: gzip.compress(nifti_bytes()))(folder / "annex")
    (folder / "scan.nii.gz").symlink_to(target)
    return folder / "scan.nii.gz"


def _split_gzip() -> bytes:
    data = nifti_bytes()
    return gzip.compress(data[:1000]) + gzip.compress(data[1000:])


_SHEAR = np.array([[1, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
_TILT = _turn(0.4)[[2, 0, 1, 3]][:, [2, 0, 1, 3]]

ACCEPTED: dict[str, Builder] = {
    "float32": _written("scan.nii", nifti_bytes),
    "float64": _image(_as(np.float64)),
    "int8": _image(_as(np.int8)),
    "uint8": _image(_as(np.uint8)),
    "int16": _image(_as(np.int16)),
    "uint16": _image(_as(np.uint16)),
    "int32": _image(_as(np.int32)),
    "uint32": _image(_as(np.uint32)),
    "int64": _image(_as(np.int64)),
    "uint64": _image(_as(np.uint64)),
    "scaled": _written("scan.nii", _scaled),
    "gzip": _written("scan.nii.gz", lambda: gzip.compress(nifti_bytes())),
    "gzip-in-two": _written("scan.nii.gz", _split_gzip),
    "big-endian": _written("scan.nii", lambda: nib.Nifti1Image(
        picture(), AFFINE, nib.Nifti1Header(endianness=">")).to_bytes()),
    "nifti2": _written("scan.nii", lambda: nifti_bytes(kind=nib.Nifti2Image)),
    "nifti2-big-endian": _written("scan.nii.gz", lambda: gzip.compress(nib.Nifti2Image(
        picture(), AFFINE, nib.Nifti2Header(endianness=">")).to_bytes())),
    "hdr": _pair,
    "img": lambda folder: _pair(folder).with_suffix(".img"),
    "mgz": _mgh(),
    "mgh": _mgh(name="scan.mgh"),
    "mgz-tags": _mgh(lambda data: data + b"\0\0\0\1command"),
    "mgz-unplaced": _mgh(_overwrite(28, b"\0\0")),
    "4d-of-one": _image(lambda array: array[..., None]),
    "oblique": _image(_as(np.float32), _TILT @ _turn(0.3) @ AFFINE),
    "sheared": _with_forms(AFFINE @ _SHEAR, 2, AFFINE, 0),
    "sform-unlike-qform": _with_forms(_turn(0.2) @ AFFINE, 4, AFFINE, 1),
    "qform-only": _with_forms(np.eye(4), 0, _TILT @ AFFINE, 1),
    "no-form-code": _with_forms(AFFINE, 0, AFFINE, 0),
    "qfac-zero": _written("scan.nii", _qfac_zero),
    "thick-slices": _image(_as(np.float32), AFFINE @ np.diag([1, 1, 2.5, 1])),
    "some-nan": _image(_nan_in(lambda array: array == 0)),
    "micrometres": _patched(123, "b", 3),
    "extension": _written("scan.nii", _with_extension),
    "link": _linked,
    "spaces": _written("a scan (1).nii", nifti_bytes),
    "unicode": _written("Schädel-脳-🧠.nii", nifti_bytes),
    "newline": _written("two\nlines.nii", nifti_bytes),
    "capitals": _written("SCAN.NII.GZ", lambda: gzip.compress(nifti_bytes())),
}  # fmt: skip

WARNINGS: dict[str, str] = {
    "4d-of-one": "4D with one volume",
    "mgz-unplaced": "does not say where",
    "sform-unlike-qform": "mm apart",
    "no-form-code": "both form codes 0",
    "thick-slices": "slices of 5 mm",
    "some-nan": "NaN",
    "micrometres": "millimetres",
}
