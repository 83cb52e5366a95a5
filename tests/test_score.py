"""cf-score: edits of which the score is known beforehand, and what is missing, damaged or on another grid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from cftools.cli.score import main
from cftools.errors import InputError
from cftools.score.counterfactual import (
    Measured,
    Row,
    bootstrap_ratio,
    find_counterfactuals,
    summarise,
    truth_errors,
)
from cftools.score.image import MS_SSIM_BETAS, Pyramid, intensity_scale, ms_ssim, ms_ssim_weights, psnr
from cftools.volume import Volume

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
CHANGES = ("ageMinus10", "agePlus30")


def brain(seed: int, side: int = 16) -> np.ndarray:
    """A ball of noisy tissue, 60 to 100, in a background of zeros."""
    radius = np.linalg.norm(np.indices((side,) * 3) - (side - 1) / 2, axis=0)
    tissue = np.random.default_rng(seed).uniform(60, 100, radius.shape)
    return np.where(radius < 0.4 * side, tissue, 0).astype(np.float32)


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume.from_array(array, affine).save(path)


def cohort(folder: Path, parts: Iterable[float], gain: float = 1.0) -> tuple[Path, Path]:
    """Twins and edits that go `part` of the way to the truth, one subject for each part."""
    twins, edited = folder / "twins", folder / "edited"
    for index, part in enumerate(parts):
        name = f"sub-{index + 1:04d}"
        before = brain(index) * np.float32(gain)
        save(before, twins / name / "anat" / f"{name}_T1w.nii.gz")
        for step, change in enumerate(CHANGES, start=1):
            place = Path(name) / "anat" / f"{name}_desc-{change}_T1w.nii.gz"
            truth = before * np.float32(1 - step / 16)  # exact in binary, so that halves are too
            save(truth, twins / "derivatives" / "truth" / place)
            save(before + np.float32(part) * (truth - before), edited / place)
        labels = Path(name) / "anat" / f"{name}_desc-structures_dseg.nii.gz"
        save((before > 0).astype(np.float32), twins / "derivatives" / "truth" / labels)
    return twins, edited


def found(rows: list[dict[str, Any]], setting: str, metric: str) -> dict[str, Any]:
    (row,) = [row for row in rows if (row["setting"], row["metric"]) == (setting, metric)]
    return row


def facts_of(*words: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert main([*words, "--json", "-"]) == code
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts, dict)
    return facts


@pytest.mark.parametrize(("part", "ratio"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (-0.5, 1.5)])
def test_ratio_says_how_far_from_the_truth(
    part: float, ratio: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twins, edited = cohort(tmp_path, [part] * 3)
    facts = facts_of("--truth", str(twins), str(edited), "--metric", "truth_ratio", capsys=capsys)
    for setting in (*CHANGES, "overall"):
        row = found(facts["rows"], setting, "truth_ratio")
        numbers = [row[key] for key in ("ours", "low", "high")]
        expected = pytest.approx(ratio, rel=1e-6) if ratio % 1 else ratio  # 0 and 1 exactly
        assert numbers == [expected] * 3
        assert row["n"] == 3


def test_errors_are_parts_of_the_scans_brightness_in_and_outside_of_the_brain() -> None:
    before = brain(0)
    truth = before.copy()
    truth[before == 0] = 0
    truth[0, 0, :4] = 50  # brain in the truth alone
    edited = truth.copy()
    edited[before > 0] += 8
    edited[15] = -4  # 16 x 16 voxels of background
    inside, union = (before > 0).sum(), (before > 0).sum() + 4
    scale = float(np.percentile(before[before > 0], 99.5))
    one = truth_errors(before, truth, edited)
    assert one.scores["inside_error"] == pytest.approx(8 * inside / union / scale, rel=1e-5)
    assert one.nothing["inside_error"] == pytest.approx(50 * 4 / union / scale, rel=1e-5)
    # Outside, the edit is compared with the scan: the truth changes nothing there.
    assert one.scores["outside_error"] == pytest.approx(4 * 256 / (16**3 - union) / scale, rel=1e-5)
    assert one.scores["truth_ratio"] == pytest.approx(8 * inside / 200, rel=1e-5)


def test_where_nothing_changes_there_is_no_ratio() -> None:
    before = brain(0)
    assert np.isnan(truth_errors(before, before, before + 1).scores["truth_ratio"])
    full = np.ones((8, 8, 8), np.float32)
    one = truth_errors(full, full * 2, full * 2)
    assert np.isnan(one.scores["outside_error"])
    known = truth_errors(before, before * 2, before + 1)
    pair = [Measured(f"sub-{index}", "x", each.scores, each.nothing) for index, each in enumerate([one, known])]
    (row,) = [row for row in summarise(pair) if row.metric == "outside_error"]
    assert row.ours == known.scores["outside_error"] > 0


def test_brightness_does_not_weigh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for gain in (1.0, 64.0):
        twins, edited = cohort(tmp_path / str(gain), [0.25, 0.75], gain)
        words = ("--truth", str(twins), str(edited), "--metric", "truth_ratio,psnr")
        rows = facts_of(*words, capsys=capsys)["rows"]
        scores.append([row["ours"] for row in rows])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_interval_is_over_subjects_and_brackets_the_ratio() -> None:
    subjects = [f"sub-{index:02d}" for index in range(30)]
    generator = np.random.default_rng(0)
    below = np.ones(30)
    above = generator.normal(0.5, 0.1, 30)
    ratio, low, high = bootstrap_ratio(subjects, above, below, seed=0)
    assert low < ratio < high
    assert ratio == pytest.approx(above.mean())
    # 95 % of a mean of 30: +-1.96 standard errors
    assert high - low == pytest.approx(2 * 1.96 * above.std() / 30**0.5, rel=0.1)
    assert bootstrap_ratio(subjects, above, below, seed=0) == (ratio, low, high)
    assert bootstrap_ratio(subjects, above, below, seed=1)[1:] != (low, high)
    # Each image twice tells no more of the subjects.
    twice = bootstrap_ratio(subjects * 2, np.tile(above, 2), np.tile(below, 2), seed=0)
    assert twice == pytest.approx((ratio, low, high))
    assert np.isnan(bootstrap_ratio(["sub-01"], above[:1], below[:1], seed=0)[1:]).all()


def test_ratio_of_means_mean_of_ratios_and_worst_are_told_apart() -> None:
    def one(subject: str, setting: str, inside: float, nothing: float) -> Measured:
        scores = {"truth_ratio": inside / nothing, "inside_error": inside}
        return Measured(subject, setting, scores, {"truth_ratio": 1.0, "inside_error": nothing})

    rows = summarise([one("b", "age79", 3.0, 6.0), one("a", "age79", 1.0, 1.0)])
    assert [(row.setting, row.metric, row.ours) for row in rows] == [
        ("age79", "truth_ratio", pytest.approx(4 / 7)),
        ("age79", "truth_ratio_mean", pytest.approx(0.75)),
        ("age79", "truth_ratio_worst", 1.0),
        ("age79", "inside_error", 2.0),
    ]
    assert rows[3] == Row("age79", "inside_error", 2.0, 1.0, 3.0, 3.5, 2)
    both = summarise([one("a", "age79", 1.0, 1.0), one("a", "age20", 1.0, 3.0)])
    assert [row.setting for row in both[::4]] == ["age20", "age79", "overall"]
    assert (both[8].ours, both[8].n) == (0.5, 1)


def reference(
    first: np.ndarray, second: np.ndarray, data_range: float, kernel_size: int | tuple[int, ...] = 11
) -> float:
    """torchmetrics' MS-SSIM, in the images' own precision."""
    one, two = (torch.from_numpy(np.ascontiguousarray(image))[None, None] for image in (first, second))
    betas = ms_ssim_weights(first.shape)
    similarity = multiscale_structural_similarity_index_measure
    return float(similarity(one, two, data_range=data_range, betas=betas, kernel_size=kernel_size))


# Single precision costs torchmetrics 3e-5 on images far from zero; double takes it far too much memory.
@pytest.mark.parametrize(
    ("shape", "precision", "error"),
    [((11, 12, 14), np.float64, 2e-6), ((22, 25, 23), np.float32, 5e-5), ((44, 46, 45), np.float32, 5e-5)],
)
def test_ms_ssim_is_torchmetrics(shape: tuple[int, int, int], precision: type, error: float) -> None:
    generator = np.random.default_rng(3)
    first = np.asfortranarray(generator.uniform(300, 900, shape).astype(np.float32))
    first[:, : shape[1] // 3] = 0
    noisy = (first * 0.8 + generator.normal(0, 60, shape)).astype(np.float32)
    one = Pyramid.of(first)
    assert ms_ssim(one, one, 1000) == pytest.approx(1, abs=1e-6)
    for other in (noisy, 900 - first):
        expected = reference(other.astype(precision), first.astype(precision), 1000)
        assert expected < 0.99
        assert ms_ssim(Pyramid.of(other), one, 1000) == pytest.approx(expected, abs=error)


def test_ms_ssim_has_as_many_scales_as_fit() -> None:
    counts = {10: 0, 11: 1, 21: 1, 22: 2, 43: 2, 44: 3, 80: 3, 87: 3, 88: 4, 160: 4, 175: 4, 176: 5, 400: 5}
    for side, count in counts.items():
        if count == 0:
            with pytest.raises(InputError, match="10x400x400 voxels are too few"):
                ms_ssim_weights((side, 400, 400))
            continue
        weights = ms_ssim_weights((400, side, 400))
        assert len(weights) == count and sum(weights) == pytest.approx(1)
        assert weights == pytest.approx([beta / sum(MS_SSIM_BETAS[:count]) for beta in MS_SSIM_BETAS[:count]])


@pytest.mark.slow
def test_ms_ssim_where_torchmetrics_refuses_the_scales_that_fit() -> None:
    generator = np.random.default_rng(4)
    first = generator.uniform(0, 1, (88, 90, 89)).astype(np.float32)
    second = (first + generator.normal(0, 0.2, first.shape)).astype(np.float32)
    with pytest.raises(ValueError, match="must be larger"):
        reference(first, second, 1)
    # torchmetrics takes its Gaussian window from sigma: these sizes move nothing but the bound it checks.
    expected = reference(first, second, 1, kernel_size=(9, 9, 11))
    assert ms_ssim(Pyramid.of(first), Pyramid.of(second), 1) == pytest.approx(expected, abs=5e-5)


def test_psnr_is_over_the_whole_grid() -> None:
    image = np.zeros((4, 4, 4), np.float32)
    image[0] = 3
    assert psnr(image, np.zeros_like(image), 30) == pytest.approx(10 * np.log10(900 / (9 / 4)), rel=1e-6)
    assert psnr(image, image, 30) == float("inf")
    assert intensity_scale(image) == 3
    with pytest.raises(InputError, match="no bright voxel"):
        intensity_scale(-image)


def test_table_json_and_tsv_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins, edited = cohort(tmp_path, [0.5, 1.0, 0.75])
    outputs = tmp_path / "scores.json", tmp_path / "scores.tsv"
    words = ["--truth", str(twins), str(edited), "--json", str(outputs[0]), "--tsv", str(outputs[1])]
    assert main(words) == 0
    out, err = capsys.readouterr()
    facts = json.loads(outputs[0].read_text())
    assert facts["command"].startswith("cf-score")
    assert facts["cohort"] == {"n": 3, "truths": 6, "scored": 6, "missing": [], "failed": []}
    largest = max(float(brain(index).max()) for index in range(3))
    assert facts["ms_ssim"] == {"data_range": pytest.approx(largest), "betas": {"16x16x16": [1.0]}}
    assert f"data range {largest:g}" in err and "1 scales for 16x16x16 voxels" in err
    assert [len(lines) for lines in (facts["rows"], facts["images"])] == [3 * 7, 6]
    printed = [line.split("\t") for line in out.splitlines()]
    written = [line.split("\t") for line in outputs[1].read_text().splitlines()]
    assert written[0] == ["setting", "metric", "ours", "low", "high", "nothing", "n"]
    for row, shown, line in zip(facts["rows"], printed[1:], written[1:], strict=True):
        assert row == {**row, "setting": line[0], "metric": line[1], "n": 3}
        assert shown[:2] == line[:2]
        for key, cell, short in zip(written[0][2:6], line[2:6], shown[2:6], strict=True):
            if row[key] is None:  # infinite for the perfect edit, or no interval of it
                assert {cell, short} <= {"n/a", "inf"}
            else:
                assert float(cell) == pytest.approx(row[key], rel=1e-8)
                assert float(short) == pytest.approx(row[key], rel=1e-3)
    assert found(facts["rows"], "agePlus30", "psnr_db")["ours"] is None
    perfect = facts["images"][2]
    assert (perfect["subject"], perfect["setting"]) == ("sub-0002", "ageMinus10")
    assert perfect["scores"]["ms_ssim"] == pytest.approx(1, abs=1e-6)
    assert perfect["scores"]["psnr_db"] is None
    assert perfect["nothing"]["ms_ssim"] < 0.9999
    for output in (words[3:5], words[5:7]):
        assert main([*words[:3], *output]) == 2
        assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0


def test_missing_edits_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins, edited = cohort(tmp_path, [0.5, 0.5])
    (edited / "sub-0002" / "anat" / "sub-0002_desc-agePlus30_T1w.nii.gz").unlink()
    words = ("--truth", str(twins), str(edited), "--metric", "truth-ratio")
    assert main([*words, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert "warning: 1 of 4 true counterfactuals have no edited image: sub-0002 agePlus30" in err
    facts = json.loads(out)
    assert facts["cohort"]["missing"] == ["sub-0002 agePlus30"]
    assert found(facts["rows"], "agePlus30", "truth_ratio")["n"] == 1
    assert found(facts["rows"], "agePlus30", "truth_ratio")["low"] is None
    assert main([*words, "--strict"]) == 3


def test_edits_may_lie_in_one_folder_unpacked(tmp_path: Path) -> None:
    twins, edited = cohort(tmp_path, [0.5])
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in edited.rglob("*.nii.gz"):
        Volume.load(path).save(flat / path.name.removesuffix(".gz"))
    pairs, missing = find_counterfactuals(twins, flat)
    assert missing == []
    assert [str(pair) for pair in pairs] == ["sub-0001 ageMinus10", "sub-0001 agePlus30"]
    assert pairs[1].before == twins / "sub-0001" / "anat" / "sub-0001_T1w.nii.gz"
    assert pairs[1].edited == flat / "sub-0001_desc-agePlus30_T1w.nii"


def test_bad_images_are_named_and_the_others_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins, edited = cohort(tmp_path, [0.5, 0.5])
    bad = edited / "sub-0001" / "anat" / "sub-0001_desc-agePlus30_T1w.nii.gz"
    shifted = AFFINE.copy()
    shifted[0, 3] = 2
    for array, affine, reason in [
        (brain(0)[:-1], AFFINE, "(15x16x16 voxels against 16x16x16)"),
        (brain(0), shifted, "(another origin, orientation or voxel size)"),
    ]:
        bad.unlink()
        save(array, bad, affine)
        assert main(["--truth", str(twins), str(edited), "--json", "-"]) == 1
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if "not on the grid" in line]
        assert str(bad) in line and reason in line
        facts = json.loads(out)
        assert facts["cohort"]["failed"] == ["sub-0001 agePlus30"]
        assert facts["cohort"]["scored"] == 3
    for path in edited.rglob("*.nii.gz"):
        path.write_bytes(b"no image")
    assert main(["--truth", str(twins), str(edited), "--json", str(tmp_path / "none.json")]) == 3
    assert not (tmp_path / "none.json").exists()


def test_some_subjects_and_a_line_for_each_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins, edited = cohort(tmp_path, [0.5, 0.0, 1.0])
    (edited / "sub-0003/anat/sub-0003_desc-agePlus30_T1w.nii.gz").write_bytes(b"nothing")
    table = tmp_path / "summary.tsv"
    words = ["--truth", str(twins), str(edited), "--metric", "truth_ratio,ms-ssim", "--threads", "2"]
    more = ["--participant-label", "0001,sub-0003", "--summary", str(table)]
    facts = facts_of(*words, *more, capsys=capsys, code=1)
    assert facts["cohort"]["n"] == 2 and facts["cohort"]["scored"] == 3
    header, *rows = (line.split("\t") for line in table.read_text().splitlines())
    lines = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(lines) == [f"{subject} {change}" for subject in ("sub-0001", "sub-0003") for change in CHANGES]
    assert [line["status"] for line in lines.values()] == ["done", "done", "done", "failed"]
    assert float(lines["sub-0001 agePlus30"]["truth_ratio"]) == pytest.approx(0.5, rel=1e-4)
    assert float(lines["sub-0003 ageMinus10"]["ms_ssim"]) == 1
    assert main([*words, "--participant-label", "7"]) == 2
    assert "no true counterfactual of sub-7" in capsys.readouterr().err
    assert main([*words, "--session-label", "1"]) == 2
    assert main([*words, "--summary", str(table)]) == 2


def test_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = brain(0)
    for name, array in [("scan", before), ("true", before * 0.75), ("edited", before * 0.875)]:
        save(array, Path(f"{name}.nii.gz"))
    words = ["--truth", "true.nii.gz", "--before", "scan.nii.gz", "edited.nii.gz"]
    assert main([*words, "-q"]) == 0
    table = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert table[1] == ["edited", "truth_ratio", "0.5", "n/a", "n/a", "1", "1"]
    assert len(table) == 1 + 7
    rows = facts_of(*words, "--metric", "psnr", capsys=capsys)["rows"]
    row = found(rows, "edited", "psnr_db")
    assert row["ours"] == pytest.approx(row["nothing"] + 20 * np.log10(2), rel=1e-5)
    save(before[:9], Path("small.nii.gz"))
    small = ["--truth", "small.nii.gz", "--before", "small.nii.gz", "small.nii.gz"]
    assert main([*small, "--metric", "ms-ssim"]) == 3
    assert "9x16x16 voxels are too few for MS-SSIM" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--truth", "twins", "edited", "--metric", "fid"], 2, "--metric fid: choose from truth_ratio"),
        (["--truth", "twins", "twins/derivatives/truth"], 2, "is the truth itself"),
        (["--truth", "twins", "edited", "--before", "scan.nii.gz"], 2, "leave it out"),
        (["--truth", "nowhere", "edited"], 2, "--truth nowhere: does not exist"),
        (["--truth", "twins/participants.tsv", "edited"], 2, "name the scan with --before"),
        (["--truth", "twins", "nowhere"], 2, "nowhere: is no folder"),
        (["--truth", "edited", "edited"], 3, "no derivatives/truth/sub-*/ in it"),
        (["--truth", "twins", "empty"], 3, "no edited image of the 2 true counterfactuals in twins"),
        (["--truth", "twins", "edited", "--tsv", "-"], 2, "tab-separated as it is"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: list[str],
    code: int,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    cohort(Path(), [0.5])
    Path("twins/participants.tsv").write_text("participant_id\n")
    Path("empty").mkdir()
    assert main(words) == code
    err = capsys.readouterr().err
    assert reason in err and err.count("\n") == 1


def test_a_scan_that_is_gone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twins, edited = cohort(tmp_path, [0.5])
    shutil.rmtree(twins / "sub-0001")
    assert main(["--truth", str(twins), str(edited)]) == 3
    assert "sub-0001_T1w.nii.gz" in capsys.readouterr().err
