"""Weights: what is saved comes back, and nothing that is damaged, foreign or swapped is taken for it."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors

from cftools import weights
from cftools.condition import Variable
from cftools.errors import OutputError, WeightsError
from cftools.schema import FrozenMapping, plain
from cftools.weights import Entry, Facts, GridFacts, TrainingFacts

FACTS = Facts(
    architecture="twin",
    architecture_arguments=FrozenMapping({"channels": (16, 32), "residual": True, "changes": (0,)}),
    # Neither in alphabetical nor any other order but the network's.
    variables=FrozenMapping(
        {
            "sex": Variable("sex", "category", values=("F", "M")),
            "age": Variable("age", "number", low=5.0, high=100.0, unit="years"),
        }
    ),
    grid=GridFacts(
        "2mm",
        (80, 96, 88),
        ((2.0, 0.0, 0.0, -79.0), (0.0, 2.0, 0.0, -112.0), (0.0, 0.0, 2.0, -82.0), (0.0, 0.0, 0.0, 1.0)),
    ),
    contrasts=("T1w",),
    intensity="percentile",
    training=TrainingFacts("cf-train --preset twin --condition age", "simulated twins", 7, 4000, 812.5, "2026-01-31"),
    licence="Apache-2.0",
    scores=FrozenMapping({"mean_absolute_error": 4.25}),
)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 4, generator=generator)
    return {
        "down.0.weight": torch.randn(8, 4, 3, 3, 3, generator=generator).transpose(0, 1),
        "a": shared,
        "b": shared.t(),
        "count": torch.tensor([3, 4]),
    }


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    weights.save(path, tensors(), FACTS)
    return path


def metadata_text() -> str:
    return json.dumps(plain(FACTS))


def test_what_is_saved_comes_back(good: Path) -> None:
    checkpoint = weights.load(good, expect="twin")
    assert checkpoint.name == "own"
    assert checkpoint.facts == weights.facts_of(good) == FACTS
    assert list(checkpoint.facts.variables) == ["sex", "age"]
    for name, tensor in tensors().items():
        floating = tensor.is_floating_point()
        assert checkpoint.tensors[name].dtype == (torch.float32 if floating else tensor.dtype)
        torch.testing.assert_close(checkpoint.tensors[name], tensor.half().float() if floating else tensor)
    assert checkpoint.tensors.keys() == tensors().keys()


def test_full_precision_and_equal_bytes(tmp_path: Path) -> None:
    first = weights.save(tmp_path / "a.safetensors", tensors(), FACTS, dtype="float")
    second = weights.save(tmp_path / "b.safetensors", dict(reversed(tensors().items())), FACTS, dtype="float")
    assert first == second == weights.load(tmp_path / "a.safetensors").sha256
    assert weights.load(tmp_path / "a.safetensors").tensors["a"].equal(tensors()["a"])


def test_save_refuses_what_would_be_lost(good: Path, tmp_path: Path) -> None:
    before = good.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        weights.save(good, tensors(), FACTS)
    assert good.read_bytes() == before
    new = tmp_path / "new.safetensors"
    for value in (float("nan"), float("inf"), 1e6):  # 1e6 is beyond half precision
        with pytest.raises(WeightsError, match="tensor w is not finite"):
            weights.save(new, {"w": torch.tensor([value])}, FACTS)
    with pytest.raises(WeightsError, match="cannot name a tensor"):
        weights.save(new, {"../w": torch.zeros(1)}, FACTS)
    with pytest.raises(OutputError, match=r"\.safetensors"):
        weights.save(tmp_path / "new.pt", tensors(), FACTS)
    with pytest.raises(WeightsError, match="licence must be a text"):
        weights.save(new, tensors(), dataclasses.replace(FACTS, licence=3))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


def test_another_architecture_is_refused(good: Path) -> None:
    with pytest.raises(WeightsError, match="twin network where a regressor one is needed"):
        weights.load(good, expect="regressor")


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header, body = header_of(data)
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    return changed


def with_facts(**changes: Any) -> Callable[[bytes], bytes]:
    text = json.dumps({**plain(FACTS), **changes})
    return with_header(lambda header: header.update(__metadata__={"cftools": text}))


def without_fact(name: str) -> Callable[[bytes], bytes]:
    text = json.dumps({key: value for key, value in plain(FACTS).items() if key != name})
    return with_header(lambda header: header.update(__metadata__={"cftools": text}))


def with_text(text: str) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header.update(__metadata__={"cftools": text}))


def rename(header: dict[str, Any], name: str) -> None:
    header[name] = header.pop("a")


def repeated_key(data: bytes) -> bytes:
    header, body = header_of(data)
    entry = json.dumps(header["a"])
    text = (json.dumps(header)[:-1] + f', "a": {entry}}}').encode()
    return len(text).to_bytes(8, "little") + text + body


def not_a_number(data: bytes) -> bytes:
    header, _ = header_of(data)
    at = len(data) - len(header_of(data)[1]) + header["a"]["data_offsets"][0]
    return data[:at] + b"\x00\x7e" + data[at + 2 :]


def huge_metadata(data: bytes) -> bytes:
    text = b'{"__metadata__":{"x":"' + b"x" * weights.LARGEST_HEADER + b'"}}'
    return len(text).to_bytes(8, "little") + text


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "one byte": (lambda data: data[:1], "cut short"),
    "cut in the header": (lambda data: data[:100], "cut short"),
    "cut in the tensors": (lambda data: data[:-1], "cut short"),
    "trailing byte": (lambda data: data + b"\0", "bytes after its end"),
    "length beyond the file": (lambda data: (2**63).to_bytes(8, "little") + data[8:], "cut short"),
    "metadata huge": (huge_metadata, "more than any such file needs"),
    "pickle": (lambda data: pickle.dumps({"a": 1}), "a pickle or zip"),
    "Git LFS pointer": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "git lfs",
    ),
    "text": (lambda data: b"# not weights at all\n", "no safetensors"),
    "not JSON": (lambda data: data[:9] + b"\xff" + data[10:], "damaged"),
    "deep JSON": (lambda data: (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995, "damaged"),
    "a tensor twice": (repeated_key, "a key comes twice"),
    "overlap": (with_header(lambda h: h["a"].update(data_offsets=h["b"]["data_offsets"])), "damaged"),
    "shape mismatch": (with_header(lambda h: h["a"].update(shape=[4, 5])), "damaged"),
    "negative shape": (with_header(lambda h: h["a"].update(shape=[-4, -4])), "damaged"),
    "unknown type": (with_header(lambda h: h["a"].update(dtype="F7")), "damaged"),
    "negative offset": (with_header(lambda h: h["a"].update(data_offsets=[-8, 8])), "damaged"),
    "offsets are text": (with_header(lambda h: h["a"].update(data_offsets=["0", "8"])), "has no place"),
    "entry is a list": (with_header(lambda h: h.update(a=[])), "has no place"),
    "NaN": (not_a_number, "holds NaN"),
    "path as a name": (with_header(lambda h: rename(h, "../../a")), "cannot name a tensor"),
    "dots as a name": (with_header(lambda h: rename(h, "a..b")), "cannot name a tensor"),
    "control character": (with_header(lambda h: rename(h, "a\n")), "cannot name a tensor"),
    "no metadata": (with_header(lambda h: h.pop("__metadata__")), "no cftools metadata"),
    "foreign metadata": (
        with_header(lambda h: h.update(__metadata__={"format": "pt"})),
        "no cftools metadata",
    ),
    "metadata no JSON": (with_text("{"), "damaged metadata"),
    "metadata deep": (with_text("[" * 100_000), "damaged metadata"),
    "metadata a list": (with_text("[]"), "must be a table"),
    "metadata twice": (with_text('{"format": 1, "format": 1}'), "a key comes twice"),
    "newer format": (with_facts(format=2, extra={}), "written by a newer cftools"),
    "fact missing": (without_fact("grid"), "grid is missing"),
    "fact unknown": (with_facts(colour="red"), "unknown key colour"),
    "fact of another type": (with_facts(contrasts="T1w"), "contrasts must be a list"),
    "fact not finite": (with_facts(scores={"x": float("nan")}), "scores.x must be finite"),
    "variable misnamed": (
        with_facts(variables={"years": plain(FACTS.variables["age"])}),
        "its own name is age",
    ),
    "variable without range": (
        with_facts(variables={"age": {"name": "age", "kind": "number"}}),
        "low < high",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_get_one_line(kind: str, good: Path) -> None:
    spoil, message = BAD[kind]
    good.write_bytes(spoil(good.read_bytes()))
    with pytest.raises(WeightsError) as caught:
        weights.load(good)
    text = str(caught.value)
    assert message in text and str(good) in text and "\n" not in text
    assert len(text) < len(str(good)) + 200


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_flipped_byte_is_found_or_harmless(data: st.DataObject) -> None:
    good = save_tensors({"a": torch.ones(2, 2), "b": torch.zeros(3)}, {"cftools": metadata_text()})
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.safetensors"
        path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
        try:
            checkpoint = weights.load(path)
        except WeightsError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert sum(tensor.numel() for tensor in checkpoint.tensors.values()) == 7


def test_a_zip_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "torch.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(WeightsError, match="a pickle or zip"):
        weights.load(path)
    with pytest.raises(WeightsError, match="a pickle or zip"):
        weights.facts_of(path)


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x4B50])
def test_a_header_may_be_as_long_as_a_pickle_begins(length: int, tmp_path: Path) -> None:
    data = save_tensors({"a": torch.zeros(1)}, {"cftools": metadata_text()})
    header, body = header_of(data)
    text = json.dumps(header).encode()
    length += -(-max(0, len(text) - length) // 0x10000) * 0x10000
    path = tmp_path / "odd.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text.ljust(length) + body)
    assert weights.load(path).facts == FACTS


def test_what_is_no_file(tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none.safetensors", "no-such-weights"):
        with pytest.raises(WeightsError, match="neither bundled weights"):
            weights.load(name, folder=tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WeightsError, match="neither bundled weights"):
        weights.load(tmp_path / "fifo")


def test_the_index(tmp_path: Path) -> None:
    assert weights.index(tmp_path) == {}
    for name in ("twin-b", "twin-a"):
        weights.save(tmp_path / f"{name}.safetensors", tensors(), FACTS)
        weights.add_to_index(name, tmp_path / f"{name}.safetensors", f'the "{name}"\n weights é', ("twin",))
    entry = weights.add_to_index("twin-b", tmp_path / "twin-b.safetensors", "again", ("twin", "ldm"))
    assert list(weights.index(tmp_path)) == ["twin-a", "twin-b"]
    assert weights.index(tmp_path)["twin-a"].description == 'the "twin-a" weights é'
    assert weights.verify("twin-b", tmp_path) == entry == weights.index(tmp_path)["twin-b"]
    checkpoint = weights.load("twin-b", folder=tmp_path)
    assert (checkpoint.name, checkpoint.sha256) == ("twin-b", entry.sha256)
    with pytest.raises(WeightsError, match="not in the index; there are: twin-a, twin-b"):
        weights.verify(str(tmp_path / "twin-a.safetensors"), tmp_path)


def test_a_swapped_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twin.safetensors"
    weights.save(path, tensors(), FACTS)
    weights.add_to_index("twin", path, "twin", ())
    weights.save(path, {**tensors(), "a": torch.zeros(4, 4)}, FACTS, force=True)
    for action in (weights.load, weights.verify):
        with pytest.raises(WeightsError, match="its sha256 is not the one in the index"):
            action("twin", folder=tmp_path)
    # Named by its path it is the user's own file.
    assert weights.load(path, folder=tmp_path).tensors["a"].sum() == 0
    path.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        weights.load("twin", folder=tmp_path)


def test_bad_weights_do_not_enter_the_index(good: Path) -> None:
    good.write_bytes(good.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match="after its end"):
        weights.add_to_index("own", good, "own", ())
    with pytest.raises(WeightsError, match="cannot name weights"):
        weights.add_to_index("../own", good, "own", ())
    assert not (good.parent / "index.toml").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[a",
        "a = 3",
        "[a]\nfile = 'a.safetensors'",
        f"[a]\nfile='../a.safetensors'\nsha256='{'0' * 64}'\nsize=1\ndescription=''\nserves=[]",
        "[a]\nfile='a.safetensors'\nsha256='0'\nsize=1\ndescription=''\nserves=[]",
        f"[a]\nfile='a.safetensors'\nsha256='{'0' * 64}'\nsize='1'\ndescription=''\nserves=[]",
        "\x00",
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.toml").write_text(text)
    with pytest.raises(WeightsError, match=r"index\.toml"):
        weights.index(tmp_path)


def test_bundled_weights_are_what_the_index_says() -> None:
    entries = weights.index()
    files = {path.name for path in weights.bundled_dir().glob("*.safetensors")}
    assert files == {entry.file for entry in entries.values()}
    for name, entry in entries.items():
        assert isinstance(weights.verify(name), Entry)
        assert entry.size <= 10 << 20


def test_facts_are_read_without_torch(good: Path) -> None:
    code = (
        "import sys; from cftools import weights; weights.index(); weights.facts_of(sys.argv[1]);"
        "print(sorted({'torch', 'numpy', 'safetensors', 'nibabel'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code, good], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
