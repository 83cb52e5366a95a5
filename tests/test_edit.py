"""cf-edit: from the words of a command line to images and their sidecars, on the template at 3.9 mm."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bad_nifti import REASONS, REFUSED
from bids_validator import bids_errors

from cftools import heads, methods, prepare, weights
from cftools.carry import carry_field
from cftools.cli.edit import main
from cftools.condition import Condition, Variable, entity
from cftools.errors import OutputError
from cftools.methods import Deformation, FlowMethod, ScalarReader
from cftools.nets.regressor import Regressor, RegressorArchitecture
from cftools.nets.twin import TwinArchitecture, TwinNet
from cftools.planning import parse_sweep
from cftools.prepare import GRID_2MM, Grid, Prepared
from cftools.register import template
from cftools.volume import Volume

AGE = Variable("age", "number", 5.0, 100.0, unit="years")
SEX = Variable("sex", "category", values=("F", "M"))
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The template at 3.9 mm, stored from right to left, with unlike form codes."""
    whole = template()
    affine = np.diag([-3.9, 3.9, 3.9, 1])
    affine[:3, 3] = (75, -110, -70)
    smooth, inside = (
        prepare.resample(array, whole.affine, Grid("test", (40, 50, 42), affine))
        for array in (whole.array, (whole.array > 0).astype(np.float32))
    )
    array = 1000 * np.where(inside > 0.5, smooth, 0)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a test"
    path = tmp_path_factory.mktemp("brain") / "brain.nii"
    path.write_bytes(image.to_bytes())
    return Volume.load(path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundled weights: a flow and an age model, small, and random where training starts at 0."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    twin = TwinArchitecture(variables=2, changes=(0,), channels=(4, 4), velocity_mm=8, atlas=1)
    network = TwinNet(twin)
    for name, parameter in network.named_parameters():
        if name.endswith(("head", "film.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    reader = RegressorArchitecture()
    _bundle(folder, "twin-age-2mm", "twin", network, twin, {"age": AGE, "sex": SEX})
    _bundle(folder, "age-2mm", "reader", Regressor(reader), reader, {"age": AGE}, mean_absolute_error=6.5)
    return folder


def _bundle(
    folder: Path,
    name: str,
    kind: str,
    network: torch.nn.Module,
    architecture: TwinArchitecture | RegressorArchitecture,
    variables: dict[str, Variable],
    index: bool = True,
    **scores: float,
) -> None:
    rows = tuple(tuple(float(value) for value in row) for row in GRID_2MM.affine)
    facts = weights.Facts(
        architecture=kind,
        architecture_arguments=asdict(architecture),
        variables=variables,
        grid=weights.GridFacts(GRID_2MM.name, GRID_2MM.shape, rows),  # type: ignore[arg-type]
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=weights.TrainingFacts("cf-train", "nothing", 0, 0, 0.0, "2026-01-31"),
        licence="Apache-2.0",
        scores=scores,
    )
    weights.save(folder / f"{name}.safetensors", network.state_dict(), facts)
    if index:
        weights.add_to_index(name, folder / f"{name}.safetensors", "For tests", ("twin",))


@pytest.fixture(scope="module")
def memory() -> dict[bytes, Prepared]:
    return {}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, memory: dict[bytes, Prepared]) -> list[Path | None]:
    """Which scans were prepared; each different one is really registered once in this module."""
    done: list[Path | None] = []
    original = prepare.prepare

    def remembering(volume: Volume, grid: Grid, to_mni: np.ndarray | None, brain: prepare.Brain) -> Prepared:
        done.append(volume.path)
        key = volume.array.tobytes() + volume.affine.tobytes() + brain.mask.tobytes() + brain.found_by.encode()
        if key not in memory:
            memory[key] = original(volume, grid, to_mni, brain)
        return replace(memory[key], volume=volume)

    monkeypatch.setattr(heads, "prepare", remembering)
    return done


@pytest.fixture(autouse=True)
def place(
    tmp_path: Path,
    brain: Volume,
    bundle: Path,
    prepared: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working folder, with one scan in it: sub-01_T1w.nii.gz."""
    monkeypatch.setattr(weights, "bundled_dir", lambda: bundle)
    monkeypatch.chdir(tmp_path)
    brain.save("sub-01_T1w.nii.gz")
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], prepared: list[Path | None], place: Path) -> Refused:
    """Runs what must be refused before any work, with one line, leaving all files as they were."""

    def run(*words: str, code: int = 2) -> str:
        before = _contents(place)
        assert main(words) == code
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1, err
        assert prepared == []
        assert _contents(place) == before
        return err

    return run


def _contents(folder: Path) -> dict[Path, bytes | None]:
    paths = folder.rglob("*")
    return {path: path.read_bytes() if path.is_file() else None for path in paths if not path.is_fifo()}


def _sidecar(path: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(Path(path).read_text())
    return content


def _bids(folder: str, brain: Volume, ages: dict[str, str]) -> None:
    rows = ["participant_id\tage\tsex"]
    for subject, age in ages.items():
        path = Path(folder, subject, "anat", f"{subject}_T1w.nii.gz")
        path.parent.mkdir(parents=True)
        brain.save(path)
        rows.append(f"{subject}\t{age}\tF")
    Path(folder, "participants.tsv").write_text("\n".join(rows) + "\n")


def test_default_name_and_a_grid_and_header_that_stay(brain: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--age", "+30", "--from", "age=49,sex=F", "sub-01_T1w.nii.gz"]) == 0
    assert capsys.readouterr() == ("sub-01_desc-agePlus30_T1w.nii.gz\n", "")
    before: Any = nib.load("sub-01_T1w.nii.gz")
    after: Any = nib.load("sub-01_desc-agePlus30_T1w.nii.gz")
    for key in ("dim", "pixdim", "sform_code", "qform_code", "xyzt_units", "descrip", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(after.header[key], before.header[key])
    assert (int(after.header["sform_code"]), int(after.header["qform_code"])) == (4, 1)
    assert after.get_data_dtype() == np.float32
    old, new = np.asarray(before.dataobj), np.asarray(after.dataobj)
    assert np.abs(new - old)[brain.array > 0].mean() > 5
    np.testing.assert_array_equal(new[brain.array == 0], 0)


def test_the_edit_is_the_methods_own(memory: dict[bytes, Prepared]) -> None:
    assert main(["--age", "+30", "--steps", "3", "--from", "age=49,sex=F", "sub-01_T1w.nii.gz", "out.nii"]) == 0
    scan = next(iter(memory.values()))
    flow = FlowMethod(weights.load("twin-age-2mm"))
    known = Condition({"age": 49, "sex": "F"})
    moved = flow.edit(scan, known, known.do(age=79), steps=3)
    expected = carry_field(scan, moved.displacement, moved.residual)
    np.testing.assert_array_equal(Volume.load("out.nii").array, expected)


def test_whoever_is_said_to_have_no_diagnosis_is_taken_for_healthy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    age = replace(AGE, low=40.0)
    variables = {"age": age, "sex": SEX, "diagnosis": Variable("diagnosis", "category", values=("CN", "MCI", "AD"))}
    twin = TwinArchitecture(variables=3, changes=(2,), channels=(4, 4), velocity_mm=8, atlas=1)
    _bundle(tmp_path, "ill", "twin", TwinNet(twin), twin, variables, index=False)
    words = ["--weights", "ill.safetensors", "--diagnosis", "AD"]
    assert main([*words, "--from", "age=70", "sub-01_T1w.nii.gz"]) == 0
    out, err = capsys.readouterr()
    assert out == "sub-01_desc-diagnosisAD_T1w.nii.gz\n"
    assert "its diagnosis is unknown, and taken to be CN: better give --from diagnosis=..." in err
    ours: Any = _sidecar("sub-01_desc-diagnosisAD_T1w.json")["cftools"]
    assert ours["condition"]["source"] == {"age": 70, "sex": None, "diagnosis": "CN"}
    told = ["--from", "age=70,diagnosis=MCI", "sub-01_T1w.nii.gz", "told.nii.gz", "--strict"]
    assert main([*words, *told]) == 0
    assert capsys.readouterr().err == "", "who is told need not suppose"
    assert main([*words, "--from", "age=70", "--strict", "sub-01_T1w.nii.gz", "strict.nii.gz"]) != 0
    assert not Path("strict.nii.gz").exists()


def test_sidecar_says_how_and_its_command_does_it_again() -> None:
    assert main(["--age", "+30", "--age", "-10", "--from", "age=49", "sub-01_T1w.nii.gz", "-o", "a"]) == 0
    facts = _sidecar("a/sub-01_desc-ageMinus10_T1w.json")
    assert facts["Sources"] == ["sub-01_T1w.nii.gz"] and facts["SkullStripped"] is True
    ours = facts["cftools"]
    assert isinstance(ours, dict)
    assert ours["condition"] == {"source": {"age": 49, "sex": None}, "target": {"age": 39, "sex": None}}
    assert ours["weights"]["flow"]["sha256"] == weights.load("twin-age-2mm").sha256
    program, *words = shlex.split(ours["command"])
    assert program == "cf-edit"
    assert main([*words, "again.nii.gz"]) == 0
    assert Path("again.nii.gz").read_bytes() == Path("a/sub-01_desc-ageMinus10_T1w.nii.gz").read_bytes()
    assert _sidecar("again.json") == facts


def test_sweep_is_its_single_edits_with_one_preparation(
    prepared: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = weights.load

    def counting(*words: Any, **more: Any) -> weights.Checkpoint:
        loaded.append(words)
        return load(*words, **more)

    monkeypatch.setattr(methods, "load", counting)
    told = ["--from", "age=49,sex=F", "sub-01_T1w.nii.gz"]
    assert main(["--age", "-30", "--age", "-10,+10", *told, "-o", "sweep/"]) == 0
    assert (len(prepared), len(loaded)) == (1, 1)
    images = set()
    for value, name in (("-30", "ageMinus30"), ("-10", "ageMinus10"), ("+10", "agePlus10")):
        assert main(["--age", value, *told]) == 0
        for ending in (".nii.gz", ".json"):
            path = Path(f"sub-01_desc-{name}_T1w{ending}")
            assert Path("sweep", path).read_bytes() == path.read_bytes()
            images.add(path.read_bytes())
    assert len(images) == 6 == len(list(Path("sweep").iterdir()))


def test_values_of_a_sweep_are_lists_or_repeated_and_combine() -> None:
    lists = parse_sweep(["-30,-10"], ["load=1,2,site=A"])
    assert lists == parse_sweep(["-30", "-10"], ["load=1", "load=2", "site=A"])
    names = [entity(changes) for changes in lists]
    assert names == [f"age{age}Load{load}SiteA" for age in ("Minus30", "Minus10") for load in (1, 2)]


def test_no_change_gives_the_scan_back(brain: Volume) -> None:
    assert main(["--age", "+0", "--from", "age=49", "sub-01_T1w.nii.gz", "out.nii"]) == 0
    np.testing.assert_allclose(Volume.load("out.nii").array, brain.array, rtol=1e-6, atol=1e-3)


def test_source_matters_and_so_do_steps() -> None:
    for name, words in {
        "a.nii": ["--from", "age=49"],
        "b.nii": ["--from", "age=20"],
        "c.nii": ["--from", "age=49", "--steps", "5"],
    }.items():
        assert main(["--age", "+30", *words, "sub-01_T1w.nii.gz", name]) == 0
    assert len({Path(name).read_bytes() for name in ("a.nii", "b.nii", "c.nii")}) == 3
    ours = _sidecar("c.json")["cftools"]
    assert isinstance(ours, dict) and ours["preset"]["sampling"] == {"steps": 5}


def test_uncertainty_is_over_other_looks(brain: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--age", "+30", "--from", "age=40", "sub-01_T1w.nii.gz", "out.nii.gz"]
    assert main([*words, "--uncertainty", "std.nii.gz"]) == 0
    made, spread = Volume.load("out.nii.gz"), Volume.load("std.nii.gz")
    np.testing.assert_allclose(spread.affine, brain.affine, atol=1e-5)
    assert (spread.array[brain.array == 0] == 0).all() and float(spread.array.max()) > 0
    changed = np.abs(made.array - brain.array) > 0
    assert float(spread.array[changed].mean()) > float(spread.array[~changed].mean())
    details = _sidecar("std.json")["cftools"]
    assert isinstance(details, dict) and details["details"]["standard deviation over"].startswith("6 looks")
    capsys.readouterr()
    sweep = ["--age", "+10,+30", *words[2:-1], "-o", "x", "--uncertainty", "y.nii.gz"]
    assert main(sweep) == 2 and "one edit" in capsys.readouterr().err and not Path("x").exists()


def test_a_mirrored_look_is_mirrored_back() -> None:
    random = np.random.default_rng(0)
    found = Deformation(random.normal(size=(3, 4, 5, 6)).astype(np.float32), random.normal(size=(2, 4, 5, 6)) * 0.1)
    back = found.seen_as(True, 1.0)
    np.testing.assert_array_equal(back.displacement[0], -found.displacement[0, ::-1])
    np.testing.assert_array_equal(back.displacement[1:], found.displacement[1:, ::-1])
    again = back.seen_as(True, 1.0)
    np.testing.assert_array_equal(again.displacement, found.displacement)
    assert found.residual is not None and again.residual is not None
    np.testing.assert_allclose(again.residual, found.residual, atol=1e-6)
    bent = found.seen_as(False, 2.0).residual
    assert bent is not None
    np.testing.assert_allclose((1 + bent[1]) ** 2, 1 + found.residual[1], atol=1e-6)


def test_several_scans_need_a_folder(refused: Refused, brain: Volume) -> None:
    brain.save("sub-02_T1w.nii.gz")
    brain.save("sub-03_T1w.nii.gz")
    scans = ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", "sub-03_T1w.nii.gz"]
    told = ["--age", "79", "--from", "age=49"]
    assert "-o DIR" in refused(*told, *scans)
    assert "-o DIR" in refused(*told, *scans, "-o", "out.nii.gz")
    # A glob that finds two scans is not an input and an output.
    assert "-o DIR" in refused(*told, *scans[:2])
    assert "not made by cftools" in refused(*told, *scans[:2], "--force")
    Path("other").mkdir()
    brain.save("other/sub-01_T1w.nii.gz")
    error = refused(*told, scans[0], f"other/{scans[0]}", "-o", "new/")
    assert f"from {scans[0]} and other/{scans[0]}" in error
    assert main([*told, *scans, "-o", "out"]) == 0
    assert sorted(path.name for path in Path("out").glob("*.nii.gz")) == [
        f"sub-0{number}_desc-age79_T1w.nii.gz" for number in (1, 2, 3)
    ]


def test_bids_folder_in_derivatives_out(
    brain: Volume, capsys: pytest.CaptureFixture[str], prepared: list[Path | None]
) -> None:
    _bids("bids", brain, {"sub-01": "49.5", "sub-02": "95", "sub-03": "20"})
    words = ["--age", "+30", "bids/", "bids/derivatives/aged/", "--json", "facts.json"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    folder = "bids/derivatives/aged"
    images = [f"{folder}/sub-0{n}/anat/sub-0{n}_desc-agePlus30_T1w.nii.gz" for n in (1, 3)]
    assert out.split() == images
    assert "sub-02" in err.splitlines()[0] and "5 to 100 years" in err and "1 of 3 failed" in err
    assert [path.parts[1] for path in prepared if path] == ["sub-01", "sub-03"]
    facts = _sidecar(images[0].replace(".nii.gz", ".json"))
    assert facts["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]
    description = _sidecar(f"{folder}/dataset_description.json")
    assert description["DatasetType"] == "derivative" and description["DatasetLinks"] == {"raw": "../.."}
    told = [(fact["source"], fact["target"]) for fact in json.loads(Path("facts.json").read_text())]
    assert told[0] == ({"age": 49.5, "sex": "F"}, {"age": 79.5, "sex": "F"})

    times = [Path(image).stat().st_mtime_ns for image in images]
    assert main([*words[:-2], "--skip-existing", "--clip", "--participant-label", "01,02"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{folder}/sub-02/anat/sub-02_desc-agePlus30_T1w.nii.gz\n"
    assert "1 of 2 exist already" in err and "age=125 clipped to 100" in err and "sub-02" in err
    assert [Path(image).stat().st_mtime_ns for image in images] == times


def test_derivatives_are_bids_whatever_the_entities(brain: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    _bids("bids", brain, {"sub-01": "40", "sub-02": "50"})
    for name in ("ses-1/anat/sub-03_ses-1_acq-mprage_run-01", "ses-2/anat/sub-03_ses-2"):
        path = Path(f"bids/sub-03/{name}_T1w.nii.gz")
        path.parent.mkdir(parents=True)
        brain.save(path)
    Path("bids/sub-03/sub-03_sessions.tsv").write_text("session_id\tage\nses-1\t30\nses-2\t35\n")
    Path("bids/dataset_description.json").write_text(
        '{"Name": "test", "BIDSVersion": "1.10.0", "DatasetType": "raw", "Authors": ["A"], "License": "CC0"}'
    )
    assert main(["--age", "+30", "bids", "out", "--session-label", "1,ses-2"]) == 0
    images = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in images] == [
        "sub-03_ses-1_acq-mprage_run-01_desc-agePlus30_T1w.nii.gz",
        "sub-03_ses-2_desc-agePlus30_T1w.nii.gz",
    ]
    sources = [_sidecar(str(path).replace(".nii.gz", ".json"))["cftools"] for path in images]
    assert [one["condition"]["source"]["age"] for one in sources if isinstance(one, dict)] == [30, 35]
    assert main(["--age", "+30", "bids", "out", "--participant-label", "01"]) == 0
    assert main(["--age", "+30", "bids", "x", "--participant-label", "01", "--session-label", "1"]) == 3
    assert main(["--age", "+30", "bids", "x", "--session-label", "9"]) == 2
    assert bids_errors("out") == [] and not Path("x").exists()
    Path("out/sub-01/anat/sub-01_desc-age+30_T1w.nii.gz").touch()
    assert bids_errors("out"), "the validator finds what is wrong"


def test_parts_and_neighbours_change_no_byte(brain: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    _bids("bids", brain, {"sub-01": "30", "sub-02": "40", "sub-03": "50"})
    words = ["--age", "+30", "--threads", "2", "bids"]
    assert main([*words, "whole", "--summary", "whole.tsv"]) == 0
    out = capsys.readouterr().out
    for part in ("2/2", "1/2"):
        assert main([*words, "parts", "--shard", part, "--summary", "part.tsv", "--json", "part.json"]) == 0
    capsys.readouterr()
    for label in ("01", "02", "03"):  # alone nothing is read ahead
        assert main([*words, "alone", "--participant-label", label]) == 0
    assert capsys.readouterr().out.replace("alone/", "whole/") == out
    whole = {path.relative_to("whole"): path.read_bytes() for path in Path("whole").rglob("*") if path.is_file()}
    assert len(whole) == 7
    for folder in ("alone", "parts"):
        assert {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()} == whole
    first, second = (Path(f"part_shard-{number}of2.tsv").read_text().splitlines() for number in (1, 2))
    names = [line.split("\t")[0] for line in Path("whole.tsv").read_text().splitlines()]
    assert [line.split("\t")[0] for line in first] == names[:1] + names[1::2]
    assert [line.split("\t")[0] for line in second] == names[:1] + names[2::2]
    assert len(json.loads(Path("part_shard-1of2.json").read_text())) == 2
    capsys.readouterr()
    assert main([*words, "parts", "--shard", "7/7"]) == 0
    assert "no scan is left for it, of 3" in capsys.readouterr().err


def test_the_summary_has_a_line_for_each_scan(brain: Volume, capsys: pytest.CaptureFixture[str]) -> None:
    _bids("bids", brain, {"sub-01": "40", "sub-02": "95", "sub-03": "n/a", "sub-04": "50"})
    Path("bids/sub-04/anat/sub-04_T1w.nii.gz").write_bytes(b"nothing")
    words = ["--age", "+30", "bids", "out", "--summary", "all.tsv", "--threads", "2"]
    assert main(words) == 1
    header, *lines = (line.split("\t") for line in Path("all.tsv").read_text().splitlines())
    rows = {Path(line[0]).name[:6]: dict(zip(header, line, strict=True)) for line in lines}
    assert [(name, row["status"]) for name, row in rows.items()] == [
        ("sub-01", "done"),
        ("sub-02", "failed"),
        ("sub-03", "done"),
        ("sub-04", "failed"),
    ]
    assert float(rows["sub-01"]["similarity"]) > 0.8 and rows["sub-01"]["warnings"] == "n/a"
    assert float(rows["sub-01"]["seconds"]) > 0 and float(rows["sub-01"]["peak_mib"]) > 50
    assert "5 to 100 years" in rows["sub-02"]["error"] and rows["sub-02"]["similarity"] == "n/a"
    assert "is a guess" in rows["sub-03"]["warnings"] and "gzip" in rows["sub-04"]["error"]
    capsys.readouterr()
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    before = Path("all.tsv").read_text().splitlines()
    assert main([*words, "--skip-existing", "--clip"]) == 1
    after = Path("all.tsv").read_text().splitlines()
    assert (after[1], after[3]) == (before[1], before[3])
    assert "clipped to 100" in after[2] and after[2].split("\t")[1] == "done" and "gzip" in after[4]


def test_a_scan_unlike_the_weights_is_marked(brain: Volume) -> None:
    brain.save("sub-02_T2w.nii.gz")
    scans = ["sub-01_T1w.nii.gz", "sub-02_T2w.nii.gz"]
    assert main(["--age", "79", "--from", "age=49,sex=F", *scans, "-o", "out/", "--summary", "all.tsv"]) == 0
    rows = [line.split("\t") for line in Path("all.tsv").read_text().splitlines()]
    place = rows[0].index("out_of_domain")
    assert [row[place] for row in rows[1:]] == ["no", "yes"]


def test_bids_folder_is_refused_where_it_makes_no_sense(refused: Refused, brain: Volume) -> None:
    _bids("bids", brain, {"sub-01": "49.5"})
    assert "name a folder" in refused("--age", "+30", "bids")
    assert "the dataset itself" in refused("--age", "+30", "bids", "./bids/")
    assert "sub-07" in refused("--age", "+30", "bids", "out", "--participant-label", "07")
    assert "goes with a BIDS folder" in refused("--age", "79", "sub-01_T1w.nii.gz", "--participant-label=1")
    assert "goes alone" in refused("--age", "+30", "bids", "sub-01_T1w.nii.gz", "-o", "out")
    Path("empty").mkdir()
    assert "is it a BIDS folder" in refused("--age", "+30", "empty", "out", code=3)


def test_existing_outputs_are_kept_unless_forced(
    refused: Refused, brain: Volume, capsys: pytest.CaptureFixture[str], prepared: list[Path | None]
) -> None:
    words = ["--age", "+30", "--from", "age=49", "sub-01_T1w.nii.gz"]
    output = Path("sub-01_desc-agePlus30_T1w.nii.gz")
    output.write_bytes(b"mine")
    assert f"{output}: exists already" in refused(*words)
    assert "contradict" in refused(*words, "--force", "--skip-existing")
    assert main([*words, "--skip-existing"]) == 0
    assert output.read_bytes() == b"mine"
    assert main([*words, "--force"]) == 0
    assert Volume.load(output).array.shape == brain.array.shape
    capsys.readouterr()
    # Its JSON is an output too, unless a killed run left it.
    output.unlink()
    prepared.clear()
    Path("sub-01_desc-agePlus30_T1w.json").write_text('{"EchoTime": 1}')
    assert "T1w.json: exists already" in refused(*words)
    Path("sub-01_desc-agePlus30_T1w.json").write_text('{"cftools": {}}')
    assert main(words) == 0
    assert "Sources" in _sidecar("sub-01_desc-agePlus30_T1w.json")


def test_an_input_is_never_an_output(refused: Refused, brain: Volume) -> None:
    words = ["--age", "79", "--from", "age=49", "--force"]
    scan = "sub-01_T1w.nii.gz"
    Path("link.nii.gz").symlink_to(scan)
    Path("hard.nii.gz").hardlink_to(scan)
    for same in (scan, "./" + scan, "link.nii.gz", "hard.nii.gz"):
        assert "is an input" in refused(*words, scan, same)
    Path("sub-01_T1w.json").write_text("{}")
    assert "is an input" in refused(*words, scan, "sub-01_T1w.nii")
    shutil.copy(scan, "sub-01_desc-age79_T1w.nii.gz")
    assert "is an input" in refused(*words, scan, "sub-01_desc-age79_T1w.nii.gz", "-o", "./")
    assert "is the JSON of an image" in refused(*words, scan, "out.nii.gz", "--json", "out.json")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (["missing/out.nii.gz"], "does not exist"),
        (["out.mgz"], "ends in .nii or .nii.gz"),
        (["-o", "file/below/"], "no folder that can be written to"),
        (["out.nii.gz", "--json", "missing/facts.json"], "missing"),
        (["out.nii.gz", "--json", "file"], "exists already"),
    ],
)
def test_output_that_cannot_be(output: list[str], reason: str, refused: Refused) -> None:
    Path("file").touch()
    assert reason in refused("--age", "79", "--from", "age=49", "sub-01_T1w.nii.gz", *output)


def test_folder_that_is_read_only(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "no folder that can be written to" in refused("--age", "79", "--from", "age=49", "sub-01_T1w.nii.gz")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "nothing to change"),
        (["--age", "179"], "age=179: these weights know 5 to 100 years"),
        (["--age", "+60"], "age=109"),
        (["--age", "nan"], "age='nan'"),
        (["--age", "2,5"], "age=2: these weights know"),
        (["--age", "+2,5"], "decimal comma"),
        (["--age", "+30", "--age", "+30.0"], "agePlus30 is asked for twice"),
        (["--age", "n/a"], "name a value"),
        (["--set", "age"], "'age' is not name=value"),
        (["--set", "sex=M"], "these weights can change age; sex they are only told"),
        (["--set", "load=1"], "these weights know age, sex; not load"),
        (["--age", "79", "--from", "iq=100"], "not iq"),
        (["--age", "79", "--from", "age=149"], "age=149"),
        (["--age", "79", "--from", "age=+3"], "leave the sign out"),
        (["--age", "79", "--preset", "twim"], "did you mean twin?"),
        (["--age", "79", "--steps", "0"], "--steps"),
        (["--age", "79", "--weights", "age-2mm"], "needs twin weights, age-2mm are reader"),
        (["--age", "79", "--device", "gpu"], "'gpu' is none of"),
    ],
)
def test_conditions_that_make_no_sense(words: list[str], reason: str, refused: Refused) -> None:
    told = [] if "--from" in words else ["--from", "age=49"]
    assert reason in refused(*words, *told, "sub-01_T1w.nii.gz")


def test_clip_takes_the_nearest_end(capsys: pytest.CaptureFixture[str], brain: Volume) -> None:
    words = ["--from", "age=49", "sub-01_T1w.nii.gz"]
    assert main(["--age", "+60", "--clip", *words, "clipped.nii"]) == 0
    assert "warning: sub-01_T1w.nii.gz: age=109 clipped to 100" in capsys.readouterr().err
    assert main(["--age", "100", *words, "end.nii"]) == 0
    assert Path("clipped.nii").read_bytes() == Path("end.nii").read_bytes()
    brain.save("sub-02_T1w.nii.gz")
    scans = ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"]
    assert main(["--age", "+60", "--clip", "--from", "age=49", *scans, "-o", "out/", "--json", "all.json"]) == 0
    assert [len(fact["warnings"]) for fact in json.loads(Path("all.json").read_text())] == [1, 1]
    assert main(["--age", "+60", "--clip", "--strict", *words, "strict.nii"]) == 3
    assert not Path("strict.nii").exists()


def test_age_comes_from_the_sidecar_then_the_table_then_the_image(
    capsys: pytest.CaptureFixture[str], memory: dict[bytes, Prepared]
) -> None:
    def source(*words: str) -> tuple[object, str]:
        assert main(["--age", "+5", "sub-01_T1w.nii.gz", "out.nii", "--force", *words]) == 0
        ours = _sidecar("out.json")["cftools"]
        assert isinstance(ours, dict)
        return ours["condition"]["source"]["age"], capsys.readouterr().err

    age, err = source()
    assert age == round(ScalarReader(weights.load("age-2mm")).read(next(iter(memory.values()))), 1)
    assert f"its age is a guess from the image: {age:g} years, on average 6.5 years off" in err
    Path("participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t30\tF\n")
    assert source() == (30, "")
    Path("sub-01_T1w.json").write_text('{"PatientAge": "040Y"}')
    assert source() == (40, "")
    assert source("--from", "age=50") == (50, "")
    Path("sub-01_T1w.json").write_text('{"PatientAge": "89+"}')
    assert "'89+'" in source()[1]
    assert main(["--age", "+5", "sub-01_T1w.nii.gz", "strict.nii", "--strict"]) == 3


def test_without_an_age_model_the_age_must_be_told(
    refused: Refused, tmp_path_factory: pytest.TempPathFactory, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("bare")
    path = shutil.copy(bundle / "twin-age-2mm.safetensors", folder)
    weights.add_to_index("twin-age-2mm", path, "For tests", ("twin",))
    monkeypatch.setattr(weights, "bundled_dir", lambda: folder)
    assert "--from age=" in refused("--age", "+30", "sub-01_T1w.nii.gz")
    assert "--from age=" in refused("--age", "79", "sub-01_T1w.nii.gz")


def test_an_edited_scan_is_as_old_as_it_was_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t30\tF\n")
    assert main(["--age", "+30", "sub-01_T1w.nii.gz"]) == 0
    assert main(["--age", "-30", "sub-01_desc-agePlus30_T1w.nii.gz"]) == 0
    facts = _sidecar("sub-01_desc-agePlus30AgeMinus30_T1w.json")["cftools"]
    assert isinstance(facts, dict)
    assert facts["condition"] == {"source": {"age": 60, "sex": "F"}, "target": {"age": 30, "sex": "F"}}


def test_json_holds_the_facts(capsys: pytest.CaptureFixture[str], brain: Volume) -> None:
    brain.save("sub-01_T2w.nii.gz")
    told = ["--age", "+10,+20", "--from", "age=49"]
    assert main([*told, "sub-01_T2w.nii.gz", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    first, second = json.loads(out)
    assert (first["input"], second["output"]) == ("sub-01_T2w.nii.gz", "sub-01_desc-agePlus20_T2w.nii.gz")
    assert second["target"] == {"age": 69, "sex": None}
    assert first["seconds"] >= 0 and first["registration"]["similarity"] > 0.8
    assert len(first["warnings"]) == 1 and "is a T2w scan" in first["warnings"][0]
    assert "made for T1w" in err


def test_bytes_in_and_bytes_out(
    brain: Volume, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ["--age", "+30", "--from", "age=49"]
    assert main([*told, "sub-01_T1w.nii.gz", "out.nii"]) == 0
    capsysbinary.readouterr()
    for words in (["-"], ["-", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(brain.to_bytes(gz=True))))
        assert main([*told, *words]) == 0
        assert capsysbinary.readouterr() == (Path("out.nii").read_bytes(), b"")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(brain.to_bytes())))
    assert main([*told, "-", "piped.nii"]) == 0
    assert Path("piped.nii").read_bytes() == Path("out.nii").read_bytes()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["sub-01_T1w.nii.gz", "-", "-o", "out"], "stdin"),
        (["-", "out/"], "no name"),
        (["sub-01_T1w.nii.gz", "-", "--age", "5"], "takes one"),
        (["sub-01_T1w.nii.gz", "-", "--json", "-"], "not both"),
    ],
)
def test_bytes_where_they_make_no_sense(words: list[str], reason: str, refused: Refused) -> None:
    assert reason in refused("--age", "79", "--from", "age=49", *words)


def test_terminals_are_not_for_bytes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, prepared: list[Path | None]
) -> None:
    told = ["--age", "79", "--from", "age=49"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([*told, "sub-01_T1w.nii.gz", "-"]) == 2
    assert "stdout, which is a terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main([*told, "-", "out.nii"]) == 2
    assert "stdin, which is a terminal" in capsys.readouterr().err
    assert prepared == []


def test_every_bad_image_gets_one_line_and_no_file(refused: Refused, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, build in REFUSED.items():
        path = build(tmp_path_factory.mktemp("bad"))
        error = refused("--age", "79", "--from", "age=49,sex=F", str(path), "out.nii.gz", code=3)
        if not path.is_dir():
            assert REASONS[name] in error, name


def test_a_scan_that_is_no_brain_is_refused(capsys: pytest.CaptureFixture[str], brain: Volume, place: Path) -> None:
    upside_down = brain.with_array(brain.array[:, :, ::-1])
    upside_down.save("odd.nii.gz")
    before = _contents(place)
    assert main(["--age", "79", "--from", "age=49", "odd.nii.gz", "-o", "out/"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert _contents(place) == before


def test_an_image_that_cannot_be_written_leaves_no_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    def fail(*rest: object, **more: object) -> None:
        raise OutputError("disk full")

    monkeypatch.setattr(Volume, "save", fail)
    before = _contents(place)
    assert main(["--age", "79", "--from", "age=49", "sub-01_T1w.nii.gz"]) == 2
    assert "disk full" in capsys.readouterr().err
    assert _contents(place) == before


def test_kill_in_the_middle_leaves_no_image_and_no_obstacle(place: Path, bundle: Path) -> None:
    # All of the image is written, and its JSON lies there, but it is not yet moved into place.
    code = (
        "import os, signal, sys\n"
        "link = os.link\n"
        "def kill_or_link(source, target):\n"
        "    if str(target).endswith('.nii.gz'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    link(source, target)\n"
        "os.link = kill_or_link\n"
        "from cftools.cli.edit import main\n"
        "main(sys.argv[1:])\n"
    )
    words = ["--age", "79", "--from", "age=49", "sub-01_T1w.nii.gz"]
    words += ["--weights", str(bundle / "twin-age-2mm.safetensors")]
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code, *words], env={"PYTHONPATH": str(root)}, timeout=60)
    assert done.returncode == -9
    assert list(place.glob("[!.]*.nii.gz")) == [place / "sub-01_T1w.nii.gz"]
    assert main(words) == 0
    Volume.load("sub-01_desc-age79_T1w.nii.gz")


def test_a_usage_error_is_quick(place: Path, bundle: Path) -> None:
    code = (
        "import sys; from cftools.cli.edit import main\n"
        "assert main(sys.argv[1:]) == 2\n"
        "print(*{'torch', 'SimpleITK', 'scipy', 'nibabel'} & set(sys.modules))"
    )
    words = ["--age", "179", "--from", "age=49", "sub-01_T1w.nii.gz"]
    words += ["--weights", str(bundle / "twin-age-2mm.safetensors")]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [], done.stderr
    assert "5 to 100" in done.stderr
