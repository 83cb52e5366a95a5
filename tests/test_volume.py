"""The image container: what it refuses and accepts; outputs keep the grid, and are whole or absent."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from bad_nifti import ACCEPTED, AFFINE, REASONS, REFUSED, WARNINGS, nifti_bytes, picture

from cftools.errors import CftoolsWarning, OutputError, VolumeError
from cftools.volume import Volume, write_atomic


def refused(path: Path) -> str:
    """The one line with which a file is refused, reading it without allocating what it only promises."""
    tracemalloc.start()
    try:
        with warnings.catch_warnings(), pytest.raises(VolumeError) as caught:
            warnings.simplefilter("error")  # a refused file is refused, not warned of as well
            Volume.load(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.with_suffix("")) in message
    assert ": " in message.split(path.name)[-1]  # what is wrong: what to do
    return message


@pytest.mark.parametrize("name", REFUSED)
def test_bad_file_is_refused_with_one_line(name: str, tmp_path: Path) -> None:
    assert REASONS[name] in refused(REFUSED[name](tmp_path))


# Not those with a fault of the file or of its name, and not MGH.
NOT_STREAMS = "gzip-as-nii plain-as-gzip unknown-ending missing folder fifo socket device dangling-link below-a-file"
STREAMS = [name for name in REFUSED if name not in NOT_STREAMS.split() and not name.startswith(("mg", "hdr", "img"))]


@pytest.mark.parametrize("name", STREAMS)
def test_bad_bytes_are_refused_on_a_stream(name: str, tmp_path: Path) -> None:
    path = REFUSED[name](tmp_path)
    with pytest.raises(VolumeError, match=r"^standard input \(-\): .*: ") as caught:
        Volume.from_bytes(path.read_bytes())
    assert REASONS[name] in str(caught.value)


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ACCEPTED["float32"](tmp_path)

    def denied(*arguments: object) -> BinaryIO:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(VolumeError, match=r"scan.nii: cannot be read \(Permission denied\)"):
        Volume.load(path)


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name != "mgz-unplaced"])
def test_unusual_file_reads_and_writes_as_nibabel_sees_it(name: str, tmp_path: Path) -> None:
    path = ACCEPTED[name](tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = Volume.load(path)
    messages = [str(warning.message) for warning in caught if warning.category is CftoolsWarning]
    assert len(messages) == len(caught) == (name in WARNINGS)
    if messages:
        assert WARNINGS[name] in messages[0] and path.name in messages[0]

    expected: Any = nib.load(path)
    array = np.nan_to_num(np.asarray(expected.dataobj, dtype=np.float32)).reshape(volume.array.shape)
    written = nib.Nifti1Image.from_bytes(volume.to_bytes())
    assert volume.array.dtype == written.get_data_dtype() == np.float32
    assert np.array_equal(volume.array, array) and np.array_equal(np.asarray(written.dataobj), array)
    assert np.allclose(volume.affine, expected.affine, atol=1e-5)
    assert np.array_equal(written.affine, volume.affine)


PLACED = [name for name in ACCEPTED if not name.startswith("mg")]


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.filterwarnings("ignore::cftools.errors.CftoolsWarning")
def test_output_keeps_forms_codes_and_units(name: str, tmp_path: Path) -> None:
    path = ACCEPTED[name](tmp_path)
    before: Any = nib.load(path).header
    Volume.load(path).with_array(picture() + 0.5).save(tmp_path / "out.nii.gz")
    after: Any = nib.load(tmp_path / "out.nii.gz").header
    for field in ("sform_code", "qform_code", "xyzt_units", "descrip", "intent_code", "pixdim"):
        assert np.array_equal(before[field], after[field]), field
    assert np.allclose(before.get_sform(), after.get_sform(), atol=1e-5)
    assert np.allclose(before.get_qform(), after.get_qform(), atol=1e-5)


def test_output_resets_what_described_the_old_file(tmp_path: Path) -> None:
    image = nib.Nifti1Image(picture().astype(np.int16), AFFINE)
    header = image.header
    header["cal_max"], header["db_name"], header["descrip"], header["toffset"] = 99, b"a patient", b"kept", 2
    header["xyzt_units"], header["slice_end"] = 10, 9
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"another patient"))
    written = Volume.from_bytes(image.to_bytes()).with_array(picture() / 3).to_bytes()
    after: Any = nib.Nifti1Image.from_bytes(written)
    assert b"patient" not in written and after.header["cal_max"] == 0
    assert (after.header["descrip"], after.header["toffset"], after.header["xyzt_units"]) == (b"kept", 2, 10)
    assert after.header["slice_end"] == 9
    assert struct.unpack_from("<2f", written, 112) == (1, 0)  # slope and intercept, which nibabel hides
    assert np.array_equal(np.asarray(after.dataobj), (picture() / 3).astype(np.float32))  # not requantised


def test_freesurfer_becomes_nifti_in_scanner_space(tmp_path: Path) -> None:
    volume = Volume.load(ACCEPTED["mgz"](tmp_path))
    header = nib.Nifti1Image.from_bytes(volume.to_bytes()).header
    assert header["sform_code"] == header["qform_code"] == 1
    assert header.get_xyzt_units()[0] == "mm"
    assert np.allclose(header.get_sform(), header.get_qform(), atol=1e-4)


def test_unplaced_freesurfer_image_lies_as_freesurfer_has_it(tmp_path: Path) -> None:
    with pytest.warns(CftoolsWarning, match=WARNINGS["mgz-unplaced"]):
        volume = Volume.load(ACCEPTED["mgz-unplaced"](tmp_path))
    assert nib.aff2axcodes(volume.affine) == ("L", "I", "A")
    assert np.allclose(volume.affine @ [6, 7, 5, 1], [0, 0, 0, 1])
    assert np.array_equal(volume.array, picture())


def test_itk_reads_the_output(tmp_path: Path, tiny_volume: Volume) -> None:
    tiny_volume.save(tmp_path / "out.nii.gz")
    image = SimpleITK.ReadImage(str(tmp_path / "out.nii.gz"))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, tiny_volume.array)
    assert np.allclose(image.GetOrigin(), AFFINE[:3, 3] * [-1, -1, 1])  # ITK's world is LPS


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_index_picks_one_of_several_volumes(index: int, packed: bool) -> None:
    series = np.stack([picture(), picture() + 1, picture() + 2], -1)
    data = nifti_bytes(series)
    volume = Volume.from_bytes(gzip.compress(data) if packed else data, index=index)
    assert np.array_equal(volume.array, series[..., index])
    for wrong in (-1, 3):
        with pytest.raises(VolumeError, match=f"no volume {wrong}"):
            Volume.from_bytes(data, index=wrong)


def test_damage_in_a_volume_not_picked_is_found() -> None:
    data = bytearray(gzip.compress(nifti_bytes(np.stack([picture(), picture()], -1))))
    data[-6] ^= 1
    with pytest.raises(VolumeError, match="gzip is damaged"):
        Volume.from_bytes(bytes(data), index=0)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
@pytest.mark.parametrize("packed", [False, True])
def test_reading_needs_at_most_twice_the_volume(dtype: type, packed: bool, tmp_path: Path) -> None:
    array: np.ndarray = np.zeros((128, 128, 120), dtype)
    array[30:90, 30:90, 30:90] = 100
    path = tmp_path / ("scan.nii.gz" if packed else "scan.nii")
    path.write_bytes(gzip.compress(nifti_bytes(array), 1) if packed else nifti_bytes(array))
    tracemalloc.start()
    try:
        size = Volume.load(path).array.nbytes
        assert tracemalloc.get_traced_memory()[1] < 2 * size
    finally:
        tracemalloc.stop()


def test_a_volume_goes_together(tiny_volume: Volume) -> None:
    assert np.allclose(tiny_volume.voxel_sizes, [1, 1.5, 2])
    assert tiny_volume.voxel_volume == pytest.approx(3)
    with pytest.raises(ValueError, match="header's"):
        tiny_volume.with_array(np.ones((12, 14, 9)))
    with pytest.raises(ValueError, match="3D float32"):
        tiny_volume.with_array(np.ones((12, 14, 10, 1)))
    with pytest.raises(ValueError, match="affine"):
        Volume(tiny_volume.array, np.eye(4), tiny_volume.header)


def test_same_volume_same_bytes_whatever_the_memory_order(tiny_volume: Volume) -> None:
    other = tiny_volume.with_array(np.asfortranarray(tiny_volume.array))
    assert not np.isfortran(tiny_volume.array) and np.isfortran(other.array)
    for gz in (False, True):
        assert tiny_volume.to_bytes(gz) == other.to_bytes(gz)
    packed = tiny_volume.to_bytes(gz=True)
    assert packed[3:8] == bytes(5)  # gzip flags (no name) and time
    assert gzip.decompress(packed) == tiny_volume.to_bytes()


def test_new_volume_keeps_a_shear_in_the_sform_alone() -> None:
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    for affine, codes in ((AFFINE, (4, 4)), (sheared, (4, 0))):
        volume = Volume.from_array(picture(), affine, code=4)
        assert np.array_equal(volume.affine, affine)
        assert (volume.header["sform_code"], volume.header["qform_code"]) == codes
        assert volume.header.get_xyzt_units()[0] == "mm"


def test_any_negative_qfac_mirrors() -> None:
    data = bytearray(nifti_bytes())  # x from right to left: qfac -1
    struct.pack_into("<f", data, 76, -3)
    struct.pack_into("<h", data, 254, 0)  # no sform
    volume = Volume.from_bytes(bytes(data))
    assert np.allclose(volume.affine, AFFINE, atol=1e-5) and volume.header["pixdim"][0] == -1


def test_save_takes_the_format_from_the_name(tmp_path: Path, tiny_volume: Volume) -> None:
    tiny_volume.save(tmp_path / "out.nii")
    tiny_volume.save(tmp_path / "out.nii.gz")
    assert np.array_equal(Volume.load(tmp_path / "out.nii").array, tiny_volume.array)
    assert np.array_equal(Volume.load(tmp_path / "out.nii.gz").array, tiny_volume.array)
    with pytest.raises(OutputError, match=r"out.mgz: .* rename"):
        tiny_volume.save(tmp_path / "out.mgz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.nii", "out.nii.gz"]


def test_write_follows_the_umask_and_takes_a_function(tmp_path: Path) -> None:
    def write_new(stream: BinaryIO) -> None:
        stream.write(b"new")

    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "out", write_new)
    finally:
        os.umask(before)
    assert (tmp_path / "out").read_bytes() == b"new"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_existing_output_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("target", "link", "dangling"):
        with pytest.raises(OutputError, match=f"{name}: exists already.*--force"):
            write_atomic(tmp_path / name, b"new")
    write_atomic(tmp_path / "link", b"new", force=True)
    assert (tmp_path / "link").read_bytes() == b"new" and (tmp_path / "target").read_bytes() == b"target"
    assert len(list(tmp_path.iterdir())) == 3


def test_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def overtaken(stream: BinaryIO) -> None:
        stream.write(b"second")
        (tmp_path / "out").write_bytes(b"first")

    with pytest.raises(OutputError, match="exists already"):
        write_atomic(tmp_path / "out", overtaken)
    assert (tmp_path / "out").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (lambda folder: folder, "is a folder"),
        (lambda folder: folder / "absent" / "out", "absent does not exist"),
        (lambda folder: folder / "file" / "out", "file does not exist"),
        (lambda folder: folder / "fifo", "not an ordinary file"),
        (lambda folder: folder / ("long" * 99), "cannot be written"),
    ],
)
def test_impossible_output_is_one_line(place: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for force in (False, True):
        with pytest.raises(OutputError) as caught:
            write_atomic(place(tmp_path), b"new", force)
        assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    def fill(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise error

    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        write_atomic(tmp_path / "out", fill)
    assert not list(tmp_path.iterdir())


KILLED_WRITER = """
import pathlib, sys, time
from cftools.volume import write_atomic

def write(stream):
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)

write_atomic(pathlib.Path(sys.argv[1]), write, force=True)
"""


@pytest.mark.parametrize("existing", [None, b"old"])
def test_kill_in_the_middle_leaves_the_destination_alone(existing: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "out.nii.gz"
    if existing is not None:
        path.write_bytes(existing)
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", KILLED_WRITER, str(path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert (path.read_bytes() if path.exists() else None) == existing
    assert [other.name for other in tmp_path.glob("*.nii*") if not other.name.startswith(".")] == (
        [path.name] if existing else []
    )


@pytest.mark.real
def test_real_scans_read_as_nibabel_reads_them(data_dir: Path) -> None:
    for cohort in ("ixi", "oasis", "ms"):
        scan = min(data_dir.glob(f"{cohort}/sub-*/anat/*T1w.nii.gz"))
        volume = Volume.load(scan)
        expected: Any = nib.load(scan)
        assert np.array_equal(volume.array, np.asarray(expected.dataobj, dtype=np.float32))
        assert np.array_equal(volume.affine, expected.affine)
