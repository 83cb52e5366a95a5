"""cf-weights: list, info and verify, on weights made for the purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cftools import weights
from cftools.cli.weights import main
from cftools.condition import Variable

AGE = Variable("age", "number", 5.0, 100.0, unit="years")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled weights that holds one file, `tiny`."""
    monkeypatch.setattr(weights, "bundled_dir", lambda: tmp_path)
    affine = ((2.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    facts = weights.Facts(
        architecture="twin",
        architecture_arguments={"channels": [4, 8]},
        variables={"age": AGE},
        grid=weights.GridFacts("tiny", (16, 16, 16), affine),
        contrasts=("T1w",),
        intensity="median",
        training=weights.TrainingFacts("cf-train", "twins", 0, 1, 1.0, "2026-01-31"),
        licence="Apache-2.0",
    )
    path = tmp_path / "tiny.safetensors"
    weights.save(path, {"weight": torch.ones(3)}, facts)
    weights.add_to_index("tiny", path, "Small ones", ("twin",))
    return path


def test_list_and_its_json_agree(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split("\t") == ["tiny", "0.0 MiB", "twin", "Small ones"]
    assert main(["list", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["tiny"]["size"] == bundle.stat().st_size


def test_info_of_a_name_and_of_a_file(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"variables.age.high: 100.0", "grid.shape: 16, 16, 16", "description: Small ones"} <= set(lines)
    assert main(["info", str(bundle), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "twin"
    assert main(["info", "huge"]) == 3
    assert "tiny" in capsys.readouterr().err


def test_verify_finds_a_flipped_bit(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    assert main(["verify", "tiny"]) == 3
    assert "sha256" in capsys.readouterr().err


def test_add_puts_weights_into_the_index(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["add", str(bundle), "mine", "--description", "Mine", "--serves", "twin"]
    assert main([*words, "--score", "truth_ratio=0.25"]) == 0
    assert weights.verify("mine").serves == ("twin",)
    assert weights.facts_of("mine").scores == {"truth_ratio": 0.25}
    assert main(words) == 2, "it exists"
    for name in ("../mine", "Mine", ""):
        assert main([words[0], words[1], name, *words[3:]]) == 2
    assert not list(bundle.parent.parent.glob("*.safetensors"))
    assert set(weights.index()) == {"mine", "tiny"}
    capsys.readouterr()
