"""Random damage to images, latents and weights: each loads as something sane or is refused, soon, in little memory."""

from __future__ import annotations

import gzip
import json
import struct
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bad_latents import sound_state
from bad_nifti import nifti_bytes
from bad_weights import FACTS, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cftools import weights
from cftools.errors import CftoolsError, LatentError, VolumeError, WeightsError
from cftools.latent import Latent
from cftools.volume import Volume

SMALL = np.arange(210, dtype=np.int16).reshape(5, 6, 7)
#: The same cases each time; hundreds of them in a few seconds.
FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
#: Of these files nothing needs as much.
SECONDS, MEMORY = 5.0, 40e6
# Fields of a NIfTI-1 header by their places: whatever is in them must not matter, or be found.
FIELDS: dict[str, tuple[int, str, st.SearchStrategy[list]]] = {
    "dim": (40, "<8h", st.lists(st.integers(-2, 9) | st.integers(-(2**15), 2**15 - 1), min_size=8, max_size=8)),
    "datatype": (70, "<h", st.integers(-1, 2400).map(lambda code: [code])),
    "bitpix": (72, "<h", st.sampled_from([1, 8, 16, 32, 64, 128]).map(lambda bits: [bits])),
    "pixdim": (76, "<8f", st.lists(st.floats(width=32), min_size=8, max_size=8)),
    "vox_offset": (108, "<f", st.floats(width=32).map(lambda place: [place])),
    "slope": (112, "<2f", st.lists(st.floats(width=32), min_size=2, max_size=2)),
    "codes": (252, "<2h", st.lists(st.integers(-1, 9), min_size=2, max_size=2)),
    "qform": (256, "<6f", st.lists(st.floats(width=32), min_size=6, max_size=6)),
    "sform": (280, "<12f", st.lists(st.floats(width=32), min_size=12, max_size=12)),
    "magic": (344, "<4s", st.binary(min_size=4, max_size=4).map(lambda magic: [magic])),
}


@st.composite
def damaged(draw: st.DrawFn, data: bytes, head: int) -> bytes:
    """Bytes changed, most in the head; a piece cut out, doubled, or put in; the end cut off."""
    changed = bytearray(data)
    for place in draw(st.lists(st.integers(0, head - 1) | st.integers(0, len(data) - 1), max_size=4)):
        changed[place] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(data)))
    match draw(st.sampled_from(["as it is", "shorter", "longer", "doubled", "cut"])):
        case "shorter":
            del changed[start : start + draw(st.integers(1, 64))]
        case "longer":
            changed[start:start] = draw(st.binary(min_size=1, max_size=64))
        case "doubled":
            changed += changed[start:]
        case "cut":
            del changed[start:]
    return bytes(changed)


@st.composite
def odd_header(draw: st.DrawFn, data: bytes) -> bytes:
    """An image with some fields of its header filled at random."""
    changed = bytearray(data)
    for name in draw(st.sets(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3)):
        place, pattern, values = FIELDS[name]
        struct.pack_into(pattern, changed, place, *draw(values))
    return bytes(changed)


@st.composite
def odd_head(draw: st.DrawFn, data: bytes) -> bytes:
    """A safetensors file with odd values in the JSON of its head, at the top or within its metadata."""
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    (key,) = table["__metadata__"]
    facts = json.loads(table["__metadata__"][key])
    for spot in draw(st.lists(st.sampled_from([*_spots(table), *_spots(facts)]), min_size=1, max_size=2)):
        holder, name = spot
        holder[name] = draw(ODD)
    if isinstance(table["__metadata__"], dict) and isinstance(table["__metadata__"].get(key), str):
        table["__metadata__"][key] = json.dumps(facts)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["F32", "../x"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def _spots(table: object) -> Iterator[tuple[dict | list, str | int]]:
    """Every place in nested JSON that holds a value."""
    if isinstance(table, dict | list):
        for name, value in list(table.items() if isinstance(table, dict) else enumerate(table)):
            yield table, name
            yield from _spots(value)


@contextmanager
def _bounded(path: Path, refusal: type[CftoolsError]) -> Iterator[None]:
    """Nothing but a refusal on one line that names the file, in little time and memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except refusal as error:
        assert str(error).startswith(f"{path.parent}/") and "\n" not in str(error) and len(str(error)) < 600
    finally:
        seconds, memory = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds < SECONDS and memory < MEMORY


def _load_image(path: Path) -> None:
    with _bounded(path, VolumeError):
        volume = Volume.load(path)
        assert np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()
        assert np.linalg.det(volume.affine) != 0 and min(volume.array.shape) > 1
        again = Volume.from_bytes(volume.to_bytes())
        assert np.array_equal(again.array, volume.array) and np.array_equal(again.affine, volume.affine)


def _load_latent(path: Path) -> None:
    with _bounded(path, LatentError):
        latent = Latent.load(path)
        assert all(np.isfinite(tensor).all() for tensor in latent.tensors.values())
        assert Latent.from_bytes(latent.to_bytes()).facts == latent.facts


def _load_weights(path: Path) -> None:
    with _bounded(path, WeightsError):
        checkpoint = weights.load(path)
        assert all(tensor.isfinite().all() for tensor in checkpoint.tensors.values())
        assert checkpoint.facts.format == weights.FORMAT


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@FUZZ
@given(draw=st.data())
def test_images(kind: type, draw: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(draw.draw(damaged(nifti_bytes(SMALL, kind=kind), 560)))
    _load_image(path)


@FUZZ
@given(draw=st.data())
def test_image_headers(draw: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(draw.draw(odd_header(nifti_bytes(SMALL))))
    _load_image(path)


@FUZZ
@given(draw=st.data())
def test_packed_images_never_change(draw: st.DataObject, tmp_path: Path) -> None:
    """Damage to a .nii.gz is found by its checksum: what loads is what was written."""
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(draw.draw(damaged(gzip.compress(nifti_bytes(SMALL), mtime=0), 40)))
    with _bounded(path, VolumeError):
        assert np.array_equal(Volume.load(path).array, SMALL)


@FUZZ
@given(draw=st.data())
def test_packed_image_headers(draw: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(draw.draw(odd_header(nifti_bytes(SMALL))), 1))
    _load_image(path)


@pytest.fixture(scope="module")
def latent() -> bytes:
    return sound_state().to_bytes()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "sound.safetensors"
    weights.save(path, tensors(), FACTS)
    return path.read_bytes()


@pytest.mark.parametrize("damage", [lambda data: damaged(data, 1500), odd_head], ids=["bytes", "head"])
@FUZZ
@given(draw=st.data())
def test_latents(
    damage: Callable[[bytes], st.SearchStrategy[bytes]], latent: bytes, draw: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(draw.draw(damage(latent)))
    _load_latent(path)


@pytest.mark.parametrize("damage", [lambda data: damaged(data, 1500), odd_head], ids=["bytes", "head"])
@FUZZ
@given(draw=st.data())
def test_weights(
    damage: Callable[[bytes], st.SearchStrategy[bytes]], checkpoint: bytes, draw: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(draw.draw(damage(checkpoint)))
    _load_weights(path)
