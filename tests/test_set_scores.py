"""cf-score of sets: images whose age is known to a stand-in that reads it exactly, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_distribution import published
from torch import nn
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from cftools import weights
from cftools.cli.score import main
from cftools.cli.score_sets import _compared
from cftools.condition import Condition, Variable
from cftools.errors import InputError
from cftools.imagesets import Member, find_members, real, scored, spread_over_ages, with_targets
from cftools.nets.convolutional import ConvolutionalArchitecture, ConvolutionalReader
from cftools.nets.regressor import Regressor, RegressorArchitecture
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM, GRID_4MM, Grid
from cftools.score.image import MS_SSIM_BETAS
from cftools.score.looking import Shown
from cftools.setscores import Seen
from cftools.volume import Volume

AGE = Variable("age", "number", 5.0, 100.0, unit="years")
SEX = Variable("sex", "category", values=("F", "M"))
TINY = ConvolutionalArchitecture(channels=(4, 6))


def looks_like(age: float, seed: int = 0) -> np.ndarray:
    """A brain that the stand-in below reads as this old: 5 years, and 5 more for every place full of fluid."""
    random = np.random.default_rng(seed)
    image = np.zeros(GRID_2MM.shape, np.float32)
    image[10:70, 10:86, 10:78] = random.uniform(0.97, 1.0, (60, 76, 68))
    places = round((age - 5) / 5)
    for place in range(places):  # deep in the brain, and none of them split between two places
        x, y, z = 20 + 4 * (place % 5), 24 + 4 * (place // 5), 40
        image[x : x + 4, y : y + 4, z : z + 4] = 0.4
    return 800 * image


def save(array: np.ndarray, path: Path, grid: Grid = GRID_2MM, **told: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Volume.from_array(array, np.array(grid.affine)).save(path)
    facts = {"SpatialReference": "MNI152NLin2009aSym", "cftools": {"condition": {"target": told}}}
    (path.parent / f"{path.name.removesuffix('.nii.gz')}.json").write_text(json.dumps(facts))


def keep(
    path: Path,
    network: nn.Module,
    kind: str,
    architecture: Any,
    variables: Mapping[str, Variable],
    grid: Grid = GRID_2MM,
) -> str:
    rows = tuple(tuple(float(value) for value in row) for row in np.asarray(grid.affine))
    facts = weights.Facts(
        architecture=kind,
        architecture_arguments=asdict(architecture),
        variables=variables,
        grid=weights.GridFacts(grid.name, grid.shape, rows),  # type: ignore[arg-type]
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=weights.TrainingFacts("cf-train", "nothing", 0, 0, 0.0, "2026-01-31"),
        licence="Apache-2.0",
    )
    weights.save(path, network.state_dict(), facts, dtype="float")
    return str(path)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Weights that read the age of `looks_like`, that take all for men, and random features."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    reader = Regressor(RegressorArchitecture())
    nn.init.constant_(reader.read.weight, 10 / 95)
    nn.init.constant_(reader.read.bias, -1.0)
    men = ConvolutionalReader(ConvolutionalArchitecture(2, (2,)))
    nn.init.zeros_(men.read.weight)
    men.read.bias.data = torch.tensor([0.0, 1.0])
    both = {"age": AGE, "sex": SEX}
    return {
        "age": keep(folder / "years.safetensors", reader, "reader", RegressorArchitecture(), {"age": AGE}),
        "sex": keep(folder / "men.safetensors", men, "convolutional", men.architecture, {"sex": SEX}),
        "features": keep(folder / "seen.safetensors", ConvolutionalReader(TINY), "convolutional", TINY, both),
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scans of men and women from 20 to 80, and edits of three, ten years off when they are made older."""
    folder = tmp_path_factory.mktemp("cohort")
    people = []
    for number, age in enumerate((20, 35, 50, 65, 80)):
        name, sex = f"sub-{number + 1:02d}", "FM"[number % 2]
        people.append(f"{name}\t{age}\t{sex}\n")
        save(looks_like(age, number), folder / "real" / name / "anat" / f"{name}_T1w.nii.gz")
        if age > 40:
            for change, off in ((-30, 0), (30, 10)):
                entity = f"age{'Plus' if change > 0 else 'Minus'}{abs(change)}"
                made = looks_like(min(age + change + off, 100), number + 10)
                path = folder / "edited" / name / "anat" / f"{name}_desc-{entity}_T1w.nii.gz"
                save(made, path, age=float(age + change), sex=sex)
    (folder / "real" / "participants.tsv").write_text("participant_id\tage\tsex\n" + "".join(people))
    return folder


def facts_of(*words: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert main([*words, "--json", "-", "--threads", "1"]) == code
    facts = json.loads(capsys.readouterr().out)
    assert isinstance(facts, dict)
    return facts


def found(facts: dict[str, Any], method: str, setting: str, metric: str) -> dict[str, Any]:
    key = {"method": method, "setting": setting, "metric": metric}
    (row,) = [row for row in facts["rows"] if {name: row[name] for name in key} == key]
    return row


def test_ages_are_scored_by_change(
    cohort: Path, networks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ref", str(cohort / "real"), str(cohort / "edited"), "--metric", "age,sex"]
    readers = ["--reader", f"age={networks['age']}", "--reader", f"sex={networks['sex']}"]
    facts = facts_of(*words, *readers, "--plots", str(tmp_path / "plots"), capsys=capsys)
    younger, older = (found(facts, "edited", setting, "age_mae") for setting in ("ageMinus30", "agePlus30"))
    assert younger["ours"] == pytest.approx(0, abs=0.02) and younger["n"] == 3
    # 80 + 30 is no age: left out.
    assert older["ours"] == pytest.approx((10 + 5) / 2, abs=0.02) and older["n"] == 2
    assert younger["nothing"] == older["nothing"] == pytest.approx(30, abs=0.02)
    assert facts["sets"]["edited"]["targets_left_out"] == 1
    overall = found(facts, "edited", "overall", "age_mae")
    assert overall["ours"] == pytest.approx(15 / 5, abs=0.02) and overall["low"] <= 3 <= overall["high"]
    itself = found(facts, "real", "reference", "age_mae")
    assert itself["ours"] == pytest.approx(0, abs=0.02) and itself["n"] == 5
    assert found(facts, "real", "reference", "sex_accuracy")["ours"] == pytest.approx(2 / 5)
    assert found(facts, "edited", "ageMinus30", "sex_accuracy")["ours"] == pytest.approx(1 / 3)
    assert facts["readers"]["age"].startswith("years (")
    one = next(image for image in facts["images"] if "sub-03_desc-agePlus30" in image["image"])
    assert one["told"] == {"age": 80.0, "sex": "F"} and one["read"]["age"] == pytest.approx(90, abs=0.02)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"ages.png", "age-errors.png", "samples.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "plots").iterdir())


def test_distances_name_their_features(
    cohort: Path, networks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    for number, path in enumerate(sorted((cohort / "real").rglob("*.nii.gz"))):
        save(Volume.load(path).array, near / path.name)
        save(Volume.load(path).array * np.random.default_rng(number).uniform(0, 1, GRID_2MM.shape), far / path.name)
    table = tmp_path / "scores.tsv"
    words = ["--ref", str(cohort / "real"), str(near), str(far), "--features", networks["features"]]
    assert main([*words, "--metric", "fid,kid,psnr", "--tsv", str(table), "--json", str(tmp_path / "s.json")]) == 0
    out, err = capsys.readouterr()
    facts = json.loads((tmp_path / "s.json").read_text())
    assert facts["features"].startswith("seen (") and f"features: {facts['features']}" in err
    same, other = (found(facts, name, "overall", "fid") for name in ("near", "far"))
    assert same["ours"] == pytest.approx(0, abs=1e-6) and other["ours"] > 1e-3 and other["high"] > other["low"]
    assert found(facts, "far", "overall", "kid")["ours"] > found(facts, "near", "overall", "kid")["ours"]
    assert found(facts, "near", "overall", "psnr_db")["ours"] is None  # infinite
    assert found(facts, "far", "overall", "psnr_db")["ours"] < 20
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    assert lines[0] == ["method", "setting", "metric", "ours", "low", "high", "nothing", "n"]
    assert [line[:3] for line in lines[1:]] == [[row["method"], row["setting"], row["metric"]] for row in facts["rows"]]
    shown = [line.split("\t") for line in out.splitlines()]
    assert [line[:3] for line in shown[1:]] == [line[:3] for line in lines[1:]]


def test_distances_in_a_published_network(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published(tmp_path / "resnet_10.pth")
    for number, path in enumerate(sorted((cohort / "real").rglob("*.nii.gz"))[:2]):
        save(Volume.load(path).array[::-1] * (1 + number), tmp_path / "made" / path.name)
    words = ["--ref", str(cohort / "real"), "--participant-label", "01,02", str(tmp_path / "made"), "--metric", "fid"]
    facts = facts_of(*words, "--features", f"medicalnet:{tmp_path / 'resnet_10.pth'}", capsys=capsys)
    assert facts["features"] == "medicalnet:resnet_10.pth"
    row = found(facts, "made", "overall", "fid")
    assert row["ours"] > 0 and row["n"] == 2


def test_diversity_is_the_mean_over_all_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    grid = Grid("small", (24, 24, 24), np.diag([2.0, 2, 2, 1]))
    images = [random.uniform(0, 90, grid.shape).astype(np.float32) for _ in range(3)]
    for number, image in enumerate(images):
        save(image, tmp_path / "made" / f"sample{number}_T1w.nii.gz", grid)
    assert main([str(tmp_path / "made"), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    betas = tuple(beta / sum(MS_SSIM_BETAS[:2]) for beta in MS_SSIM_BETAS[:2])
    largest = float(max(image.max() for image in images))
    tensors = [torch.from_numpy(image)[None, None] for image in images]
    pairs = [
        float(multiscale_structural_similarity_index_measure(one, other, data_range=largest, betas=betas))
        for one, other in combinations(tensors, 2)
    ]
    assert found(facts, "made", "overall", "ms_ssim")["ours"] == pytest.approx(np.mean(pairs), abs=1e-4)
    assert facts["sets"]["made"]["ms_ssim"] == {"data_range": pytest.approx(largest), "betas": pytest.approx(betas)}
    assert f"data range {largest:g}" in err and "2 scales" in err


def test_scans_each_on_their_own_grid_do_not_stop_a_set(
    networks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Grid("small", (16, 16, 16), np.diag([2.0, 2, 2, 1]))
    for number in range(3):
        array = np.random.default_rng(number).uniform(1, 2, (16, 16, 16))
        save(array, tmp_path / "made" / f"s{number}.nii.gz", small)
        save(array[: 12 + number], tmp_path / "real" / f"s{number}.nii.gz", small)
    words = ["--ref", str(tmp_path / "real"), str(tmp_path / "made"), "--metric", "ms-ssim"]
    assert main([*words, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert [row["method"] for row in json.loads(out)["rows"]] == ["made"]
    assert "real: ms_ssim is left out" in err and "cf-prep" in err
    for words in ([str(tmp_path / "real")], [str(tmp_path / "real"), "--metric", "ms-ssim"]):
        assert main(words) == 3 and "is not on the grid of" in capsys.readouterr().err


def test_what_was_not_insisted_on_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)

    def seen(number: int) -> Seen:
        name = f"sub-{number}"
        member = Member(Path(f"{name}_T1w.nii.gz"), name, "", "", Condition())
        return Seen(member, 1.0, (20 + number % 2, 20, 20), np.eye(4), random.normal(size=4))

    sets = {name: [seen(number) for number in range(6)] for name in ("made", "real")}
    compared = _compared(sets, "real", ("fid", "ms-ssim"), False, 0)
    assert [[row.metric for row in one.rows] for one in compared.values()] == [["fid"], []]
    assert capsys.readouterr().err.count("ms_ssim is left out") == 2
    with pytest.raises(InputError, match="is not on the grid of"):
        _compared(sets, "real", ("fid", "ms-ssim"), True, 0)
    several = _compared({**sets, "other": sets["made"]}, "real", ("fid", "ms-ssim"), True, 0)
    assert [row.metric for name in ("made", "other") for row in several[name].rows] == ["fid", "fid"], "of several sets"


def test_a_set_too_small_for_a_score_goes_without(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)

    def seen(number: int) -> Seen:
        name = f"sub-{number}"
        member = Member(Path(f"{name}_T1w.nii.gz"), name, "", "", Condition())
        return Seen(member, 1.0, (20, 20, 20), np.eye(4), random.normal(size=4))

    def metrics(sizes: dict[str, int], insisted: bool) -> dict[str, list[str]]:
        sets = {name: [seen(number) for number in range(size)] for name, size in sizes.items()}
        compared = _compared(sets, "real", ("fid", "kid"), insisted, 0)
        return {name: [row.metric for row in one.rows] for name, one in compared.items() if name != "real"}

    assert metrics({"few": 3, "one": 1, "made": 6, "real": 6}, True) == {
        "few": ["fid"],
        "one": [],
        "made": ["fid", "kid"],
    }
    said = capsys.readouterr().err
    assert "few: kid: left out" in said and "one: fid, kid: left out" in said
    assert metrics({"few": 3, "real": 6}, False) == {"few": ["fid"]}
    with pytest.raises(InputError, match="KID needs 4 images"):
        metrics({"few": 3, "real": 6}, True)
    with pytest.raises(InputError, match="FID needs 2 images"):
        metrics({"one": 1, "real": 6}, False)


def test_a_damaged_image_is_named_and_the_others_scored(
    cohort: Path, networks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    for path in sorted((cohort / "real").rglob("*.nii.gz"))[:3]:
        (made / path.name).write_bytes(path.read_bytes())
    (made / "sub-09_T1w.nii.gz").write_bytes(b"nothing")
    summary = tmp_path / "summary.tsv"
    assert main([str(made), "--summary", str(summary), "--json", str(tmp_path / "facts.json")]) == 1
    assert "sub-09_T1w.nii.gz" in capsys.readouterr().err
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["sets"]["made"]["images"] == 4 and facts["sets"]["made"]["scored"] == 3
    assert [Path(one).name for one in facts["sets"]["made"]["failed"]] == ["sub-09_T1w.nii.gz"]
    assert [line.split("\t")[1] for line in summary.read_text().splitlines()[1:]] == ["done"] * 3 + ["failed"]
    (none := tmp_path / "none").mkdir()
    (none / "sub-01_T1w.nii.gz").write_bytes(b"nothing")
    both, plots = tmp_path / "both.json", ["--plots", str(tmp_path / "plots")]
    assert main([str(none), str(made), "--metric", "ms-ssim", *plots, "--json", str(both)]) == 1
    assert (tmp_path / "plots" / "samples.png").exists()
    assert "none: none of its images could be looked at" in capsys.readouterr().err
    assert {row["method"] for row in json.loads(both.read_text())["rows"]} == {"made"}
    for sets, code in (([none], 3), (["--ref", made, none], 1), (["--ref", none, made], 1)):
        kept = both.read_bytes()
        assert main([*map(str, sets), "--metric", "ms-ssim", "--json", str(both), "--force"]) == code
        assert "could be looked at" in capsys.readouterr().err and both.read_bytes() == kept


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["one", "--metric", "fid"], 2, "--metric fid: compares with real scans: name them with --ref"),
        (["one", "--metric", "beauty"], 2, "--metric beauty: choose from fid, kid"),
        (["--ref", "real", "one", "--metric", "fid", "--features", "FEATURES"], 3, "FID needs 2 images"),
        (["one"], 3, "needs 2 images or more"),
        (["--ref", "real", "empty"], 3, "empty: no T1w image in it"),
        (["--ref", "nowhere", "one"], 3, "nowhere: is no folder"),
        (["--ref", "real", "real"], 2, "the same folder twice"),
        (["--ref", "real", "one", "--truth", "real"], 2, "choose one"),
        (["--ref", "real", "one", "--features", "none.safetensors"], 3, "cf-train --preset features"),
        (["--ref", "real", "one", "--features", "AGE"], 3, "holds a reader network where a convolutional one"),
        (["--ref", "real", "one", "--features", "medicalnet:none.pth"], 3, "none.pth: no such file"),
        (["one", "--metric", "age", "--reader", "age=SEX"], 3, "reads sex, and age is to be read"),
        (["one", "--metric", "age", "--reader", "age=FEATURES"], 3, "read no variable off a scan"),
        (["one", "--metric", "age", "--reader", "years=AGE"], 2, "write age=WEIGHTS"),
        (["one", "--metric", "age", "--reader", "age=AGE"], 3, "age_mae need what each image should show"),
        (["--ref", "real", "other", "--metric", "psnr"], 3, "no image has a counterpart"),
        (["--ref", "real", "coarse", "--metric", "ssim"], 3, "not on the grid"),
        (["--ref", "real", "one", "--tsv", "-"], 2, "tab-separated as it is"),
        (["one", "--session-label", "1"], 2, "goes with --truth"),
        (["--axioms", "real", "one"], 2, "name one folder"),
        (["--axioms", "real", "--metric", "age"], 2, "--axioms measures all of its own"),
        (["--axioms", "one", "--preset", "features"], 2, "can neither edit"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: list[str],
    code: int,
    reason: str,
    cohort: Path,
    networks: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("real").symlink_to(cohort / "real")
    Path("empty").mkdir()
    save(looks_like(20), Path("one/sample_T1w.nii.gz"))
    save(looks_like(20), Path("other/sub-77_T1w.nii.gz"))
    save(np.indices(GRID_4MM.shape)[0], Path("coarse/sub-01_T1w.nii.gz"), GRID_4MM)
    names = {name.upper(): path for name, path in networks.items()}
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
    assert main(words) == code
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "warning" not in line]
    assert reason in err and len(lines) == 1, err


def test_bundled_names_are_said_when_they_are_not_there(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights, "bundled_dir", lambda: tmp_path)
    assert main(["--ref", str(cohort / "real"), str(cohort / "edited"), "--metric", "fid"]) == 3
    assert "features-2mm: neither bundled weights nor a file: cf-train --preset features" in capsys.readouterr().err
    assert main([str(cohort / "edited"), "--metric", "age"]) == 3
    assert "score-age-2mm: neither" in capsys.readouterr().err


def test_edits_are_told_by_sidecar_else_by_name(tmp_path: Path) -> None:
    array = np.ones((4, 4, 4))
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-1\t40\tF\n")
    save(array, tmp_path / "sub-1/anat/sub-1_T1w.nii.gz")
    edits = tmp_path / "elsewhere" / "edits"
    for name in ("desc-agePlus2p5", "desc-ageMinus10SexM", "desc-age79", "desc-diagnosisAD"):
        save(array, edits / f"sub-1_{name}_T1w.nii.gz")
    save(array, edits / "sub-1_desc-agePlus30_T1w.nii.gz", age=69.0)
    save(array, edits / "sub-1_desc-age50_dseg.nii.gz")
    save(array, edits / "sub-1_desc-age50_T2w.nii.gz")
    members = find_members(edits)
    assert [one.setting for one in members] == ["age79", "ageMinus10SexM", "agePlus2p5", "agePlus30", "diagnosisAD"]
    sources = real(find_members(tmp_path))
    told = {one.setting: one.told for one in with_targets(scored(members), sources)}
    assert told["agePlus2p5"] == Condition({"age": 42.5, "sex": "F"})
    assert told["ageMinus10SexM"] == Condition({"age": 30.0, "sex": "M"})
    assert told == {one.setting: one.told for one in members}  # the table above them tells of who was edited
    (tmp_path / "participants.tsv").rename(tmp_path / "kept.tsv")
    assert [one.told["age"] for one in find_members(edits)] == [79, None, None, 69, None]
    assert told["age79"]["age"] == 79 and told["agePlus30"]["age"] == 69 and told["diagnosisAD"]["age"] == 40


def test_only_what_is_registered_is_taken_as_it_is(networks: dict[str, str], tmp_path: Path) -> None:
    """A head of its own size may lie on the same voxels."""
    shown = Shown(GRID_2MM, lambda: "cpu")
    with torch.inference_mode():
        subject = Family([template_anatomy()], load_law("normative")).draw(0, 1, "M")
        image = 700 * (aged := subject.at(60.0)).image()[0, 0].numpy() * aged.strip()[0, 0].numpy()
    save(image, tmp_path / "registered.nii.gz")
    save(image, tmp_path / "native.nii.gz")
    (tmp_path / "native.json").write_text("{}")
    registered, native = (shown(Volume.load(tmp_path / f"{name}.nii.gz")) for name in ("registered", "native"))
    assert registered.max() == pytest.approx(native.max(), rel=0.1) and registered.min() == native.min() == 0
    assert np.array_equal(registered > 0, image > 0)
    assert abs((native > 0).sum() / (registered > 0).sum() - 1) > 0.05


def test_scans_are_spread_over_ages(cohort: Path) -> None:
    members = real(find_members(cohort / "real"))
    assert [one.told["age"] for one in spread_over_ages(members, 3)] == [20, 50, 80]
    assert len(spread_over_ages(members, 9)) == 5 and len(spread_over_ages(members, 1)) == 1


def test_scans_beside_their_edits_are_no_part_of_the_set(tmp_path: Path) -> None:
    for name in ("sub-1_T1w", "sub-1_desc-age79_T1w", "sub-1_desc-brain_mask", "sub-2_T1w"):
        save(np.ones((4, 4, 4)), tmp_path / name[:5] / "anat" / f"{name}.nii.gz")
    members = find_members(tmp_path)
    assert [one.path.name for one in scored(members)] == ["sub-1_desc-age79_T1w.nii.gz"]
    assert [one.path.name for one in real(members)] == ["sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz"]
    assert [one.subject for one in find_members(tmp_path, labels=["2"])] == ["sub-2"]
    with pytest.raises(InputError, match="no T1w image in it of sub-3"):
        find_members(tmp_path, labels=["3"])
