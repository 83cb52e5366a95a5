"""Provenance: everything that decides a result is in the sidecar, and nothing that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cftools import __version__
from cftools.condition import Condition
from cftools.errors import OutputError
from cftools.preset import load_preset
from cftools.provenance import (
    Provenance,
    command_line,
    dataset_description,
    sidecar_path,
    source_name,
    versions,
    write_sidecar,
)
from cftools.weights import Checkpoint

SOURCE = Condition({"age": 49, "sex": "F"})


def record(**changes: object) -> Provenance:
    values: dict[str, object] = {
        "command": "cf-edit --age +30 in.nii.gz",
        "sources": ("bids:raw:sub-01/anat/sub-01_T1w.nii.gz",),
        "skull_stripped": True,
        "preset": load_preset("twin").override(steps=4),
        "weights": {"flow": Checkpoint("twin-age-2mm", {}, None, "ab" * 32)},  # type: ignore[arg-type]
        "source": SOURCE,
        "target": SOURCE.do(age=79),
        "seed": 7,
    }
    return Provenance(**{**values, **changes})  # type: ignore[arg-type]


def test_the_sidecar_says_how_the_image_came_about(tmp_path: Path) -> None:
    path = write_sidecar(tmp_path / "sub-01_desc-agePlus30_T1w.nii.gz", record())
    assert path == tmp_path / "sub-01_desc-agePlus30_T1w.json"
    content = json.loads(path.read_text())
    own = content.pop("cftools")
    assert content == {"Sources": ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"], "SkullStripped": True}
    assert own.pop("versions") == versions()
    assert own == {
        "command": "cf-edit --age +30 in.nii.gz",
        "preset": {
            "name": "twin",
            "method": "flow",
            "tasks": ["edit"],
            "carry": "field",
            "sampling": {"steps": 4},
            "weights": {"flow": ["twin-age-2mm", "twin-diagnosis-2mm"]},
        },
        "weights": {"flow": {"name": "twin-age-2mm", "sha256": "ab" * 32}},
        "condition": {"source": {"age": 49.0, "sex": "F"}, "target": {"age": 79.0, "sex": "F"}},
        "seed": 7,
    }


def test_equal_inputs_give_equal_bytes_in_sorted_order(tmp_path: Path) -> None:
    first = write_sidecar(tmp_path / "a.nii", record(details={"b": 1, "a": (2.5, None)})).read_bytes()
    second = write_sidecar(tmp_path / "b.nii", record(details={"a": (2.5, None), "b": 1})).read_bytes()
    assert first == second and first.endswith(b"}\n")
    content = json.loads(first)
    assert list(content) == sorted(content) and list(content["cftools"]) == sorted(content["cftools"])
    assert content["cftools"]["details"] == {"a": [2.5, None], "b": 1}


def test_what_does_not_apply_is_left_out() -> None:
    bare = Provenance("cf-phantom out", (), True, spatial_reference="MNI152").document()
    assert bare.keys() == {"Sources", "SkullStripped", "SpatialReference", "cftools"}
    assert bare["cftools"].keys() == {"command", "versions"}
    assert Provenance("cf-phantom out", (), True, bids={"Age": 40.1}).document()["Age"] == 40.1


def test_an_unknown_source_is_said_to_be_unknown() -> None:
    document = record(source=Condition({"age": None}), target=Condition({"age": 79})).document()
    assert document["cftools"]["condition"] == {"source": {"age": None}, "target": {"age": 79.0}}


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = write_sidecar(tmp_path / "a.nii.gz", record())
    before = path.read_bytes()
    with pytest.raises(OutputError):
        write_sidecar(tmp_path / "a.nii.gz", record(seed=8))
    assert path.read_bytes() == before
    write_sidecar(tmp_path / "a.nii.gz", record(seed=8), force=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("image", "sidecar"),
    [("a.nii.gz", "a.json"), ("a.nii", "a.json"), ("v1.2.nii.gz", "v1.2.json"), ("z.safetensors", "z.json")],
)
def test_sidecar_path(image: str, sidecar: str) -> None:
    assert sidecar_path(Path("x") / image) == Path("x") / sidecar


def test_names_in_names_and_letters_of_all_kinds_are_kept(tmp_path: Path) -> None:
    names = ("é 脑.nii", "odd\udcff.nii", 'q"\n.nii')
    path = write_sidecar(tmp_path / "a.nii", record(sources=names))
    assert json.loads(path.read_text(encoding="ascii"))["Sources"] == list(names)


def test_dataset_description(tmp_path: Path) -> None:
    path = dataset_description(tmp_path, "edits", DatasetLinks={"raw": "../bids"})
    assert json.loads(path.read_text()) == {
        "Name": "edits",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "cftools", "Version": __version__}],
        "DatasetLinks": {"raw": "../bids"},
    }
    path.write_text("mine")
    assert dataset_description(tmp_path, "other").read_text() == "mine"
    path.unlink()
    assert json.loads(dataset_description(tmp_path, "other", raw=True).read_text())["DatasetType"] == "raw"
    with pytest.raises(OutputError):
        dataset_description(tmp_path / "missing", "edits")


def test_source_name(tmp_path: Path) -> None:
    image = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    assert source_name(image, tmp_path) == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    assert source_name(image, tmp_path, link="") == "bids::sub-01/anat/sub-01_T1w.nii.gz"
    assert source_name(image) == "sub-01_T1w.nii.gz"


@pytest.mark.parametrize(
    "extra",
    [
        ["--shard", "3/10"],
        ["--force", "--shard=auto"],
        ["-q", "--skip-existing"],
        ["--json", "facts.json", "-v"],
    ],
)
def test_the_command_is_the_same_in_every_task(extra: list[str]) -> None:
    bare = ["/opt/env/bin/cf-edit", "--age", "+30", "my scans/", "out/"]
    assert command_line(bare) == "cf-edit --age +30 'my scans/' out/"
    for at in (1, 3, len(bare)):
        assert command_line([*bare[:at], *extra, *bare[at:]]) == command_line(bare)


def test_whose_anatomy_it_was_is_recorded() -> None:
    words = ["cf-train", "--data", "ixi", "--participant-label", "01,02", "--force"]
    assert command_line(words) == "cf-train --data ixi --participant-label 01,02"


def test_versions_name_what_computes() -> None:
    assert {"cftools", "python", "torch", "numpy", "SimpleITK"} <= versions().keys()
    assert versions()["cftools"] == __version__
