"""What a reproduction of a paper leaves in the docs: one shape for all, and every number that the paper has."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cftools.cohort import Scan, find_scans
from cftools.preset import list_presets
from cftools.provenance import command_line

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "reproduction").glob("*.json"))
ROW = {"table", "method", "setting", "metric", "ours", "low", "high", "paper"}
METRICS = {
    *("fid", "kid", "ms_ssim", "age_mae", "sex_accuracy", "dice", "iou", "one_minus_dice_times_fid", "psnr_db", "mae"),
    *("uncertainty", "truth_ratio", "outside_error", "evaluations", "seconds", "parameters_m", "tflop"),
    *("activation_gb", "lesion_ml"),
}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_reproduction_has_one_shape(path: Path) -> None:
    found = json.loads(path.read_text())
    assert found.keys() == {"command", "date", "machine", "cohort", "rows"} and {"seed", "n"} <= found["cohort"].keys()
    for row in found["rows"]:
        assert row.keys() == ROW and row["metric"] in METRICS
        assert row["method"] in {*list_presets(), "real"}
        assert math.isfinite(row["ours"])
        if row["low"] is not None:
            assert row["low"] <= row["ours"] <= row["high"], row
    assert path.with_suffix(".md").exists()


def test_the_cdm_papers_tables_are_there() -> None:
    paper: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "reproduce_cdm.py"))
    rows = json.loads((ROOT / "docs" / "reproduction" / "cdm.json").read_text())["rows"]
    found = {(row["table"], row["method"], row["setting"], row["metric"]): row["paper"] for row in rows}
    for method, tables in paper["PAPER_1"].items():
        for table, numbers in zip(("1, direct", "1, counterfactual"), tables, strict=True):
            for metric, number in zip(paper["METRICS"], numbers, strict=False):
                if number is not None:
                    setting = "reference" if method == "real" else "overall"
                    assert found[table, method, setting, metric] == number
    for method, numbers in paper["PAPER_2"].items():
        for change, number in zip(paper["CHANGES"], numbers, strict=True):
            setting = f"age{'Minus' if change[0] == '-' else 'Plus'}{change[1:]}"
            assert found["2", method, setting, "age_mae"] == number


def test_scores_of_a_judge_that_has_changed_are_taken_anew(tmp_path: Path) -> None:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "reproduce_cdm.py"))
    beginning = script["digest"]("score-age-2mm")[:8]
    found = {"features": f"score-age-2mm ({beginning})", "readers": {"age": "score-age-2mm (00000000)"}}
    assert list(map(script["unchanged"], script["judges"](found))) == [True, False]
    assert script["unchanged"]("medicalnet:resnet_10.pth (00000000)"), "no weights of ours"
    assert script["judges"]({"rows": []}) == []

    asked: list[tuple[object, ...]] = []
    kept = tmp_path / "made.json"

    def run(*words: object, fine: tuple[int, ...]) -> None:
        asked.append(words)
        assert fine == (0,) and not kept.exists(), "what is there was made of the judge before"
        if "none" not in words:
            kept.write_text("{}")

    script["score"].__globals__["command"] = run
    command = f"cf-score made --json {kept} --force"
    for judge, times in (("00000000", 1), (beginning, 1)):  # asked anew, then no more
        reader = {"age": f"score-age-2mm ({judge})"}
        kept.write_text(json.dumps({"command": command_line(command.split()), "readers": reader}))
        script["score"](kept, "made")
        assert len(asked) == times
    with pytest.raises(SystemExit, match="gave no scores"):
        script["score"](kept, "none")

    def draw(*words: object, fine: tuple[int, ...]) -> None:
        assert fine == (0, 1), "of sets some images may fail"
        kept.write_text("{}")
        plots.mkdir(exist_ok=True)
        (plots / "samples.png").touch()

    plots = tmp_path / "plots"
    script["score"].__globals__["command"] = draw
    asked_now = f"cf-score made --plots {plots} --json {kept} --force"
    kept.write_text(json.dumps({"command": command_line(asked_now.split())}))
    script["score"](kept, "made", plots=plots)
    assert kept.read_text() == "{}", "scores without their plots are taken anew"


def test_of_a_subject_with_several_scans_each_is_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "reproduce_cdm.py"))
    scans = [Scan(tmp_path / f"sub-01_ses-{ses}_T1w.nii.gz", "sub-01", f"ses-{ses}", 30.0, "F", None) for ses in "12"]
    markers: list[str] = []

    def all_of(jobs: list[Any], processes: int, label: str) -> float:
        markers.extend(job.args[0].name for job in jobs)
        return 0.0

    monkeypatch.setitem(script["edit_all"].__globals__, "all_of", all_of)
    options = SimpleNamespace(work=tmp_path, processes=1)
    script["edit_all"](None, options, scans, ["twin"], lambda age: ["+10"], tmp_path / "edits")
    assert len(markers) == len(set(markers)) == 2, "what one scan's edits took says nothing of the other's"


def test_a_cohorts_few_are_a_cohort_by_links(tmp_path: Path) -> None:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "reproduce_cdm.py"))
    bids = tmp_path / "bids"
    for subject in ("01", "02", "03"):
        (bids / f"sub-{subject}" / "anat").mkdir(parents=True)
        (bids / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz").write_bytes(b"")
    (bids / "sub-02" / "anat" / "sub-02_T1w.json").write_text("{}")
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-02\t40\nsub-03\t50\n")
    some = [scan for scan in find_scans(bids) if scan.subject != "sub-03"]
    for _ in range(2):
        few = script["linked"](bids, some, tmp_path / "work" / "real")
        assert [(scan.subject, scan.age) for scan in find_scans(few)] == [("sub-01", 30.0), ("sub-02", 40.0)]
    assert (few / "sub-02" / "anat" / "sub-02_T1w.json").exists() and (bids / "sub-03").exists()


def test_weights_of_ones_own_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "reproduce_cdm.py"))
    with pytest.raises(SystemExit, match="holds none of ae-2mm/weights"):
        script["Setup"](tmp_path, 0, 1, "cpu").say()
    (tmp_path / "age-ldm-2mm").mkdir()
    (tmp_path / "age-ldm-2mm" / "weights.safetensors").write_bytes(b"mine")
    setup = script["Setup"](tmp_path, 0, 1, "cpu")
    setup.say()
    said = capsys.readouterr().out
    assert f"age-ldm-2mm: {tmp_path}/age-ldm-2mm/weights.safetensors" in said and "ae-2mm: as bundled" in said
    assert setup.preset("ldm").weights["denoiser"] == (str(tmp_path / "age-ldm-2mm" / "weights.safetensors"),)
