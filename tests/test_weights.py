"""Weights: what is saved comes back, and nothing that is damaged, foreign or swapped is taken for it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from bad_weights import BAD, FACTS, header_of, metadata_text, tensors
from safetensors.torch import save as save_tensors

from cftools import weights
from cftools.errors import OutputError, WeightsError
from cftools.weights import Entry


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    weights.save(path, tensors(), FACTS)
    return path


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


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_get_one_line(kind: str, good: Path) -> None:
    spoil, message = BAD[kind]
    good.write_bytes(spoil(good.read_bytes()))
    with pytest.raises(WeightsError) as caught:
        weights.load(good)
    text = str(caught.value)
    assert message in text and str(good) in text and "\n" not in text
    assert len(text) < len(str(good)) + 200


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
