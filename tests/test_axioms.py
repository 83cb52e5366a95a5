"""The axioms of counterfactuals: a perfect editor keeps them, and each broken one fails the axiom that it breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from cftools import weights
from cftools.cli.score import main
from cftools.condition import Condition, Variable
from cftools.nets.twin import TwinArchitecture, TwinNet
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM
from cftools.score.axioms import UNCHANGED, minimality, soundness
from cftools.score.table import Value
from cftools.train.twin import normalised
from cftools.volume import Volume

AGED = Condition({"age": 40.0, "sex": "F"})
TARGETS = {"agePlus30": AGED.do(age=70.0), "ageMinus10": AGED.do(age=30.0)}
#: An image is a number: what is the person's own, and its age.
Image = tuple[float, float]


def age(condition: Condition) -> float:
    value = condition["age"]
    assert isinstance(value, float)
    return value


def scores(edit: Callable[[Image, Condition, Condition], Image], cycles: int = 10) -> dict[tuple[str, str], Value]:
    counted: list[Image] = []

    def counting(image: Image, source: Condition, target: Condition) -> Image:
        counted.append(image)
        return edit(image, source, target)

    found = soundness(
        "sub-1",
        (7.0, 40.0),
        AGED,
        TARGETS,
        counting,
        lambda one, other: abs(one[0] - other[0]) + abs(one[1] - other[1]),
        lambda image: Condition({"age": image[1], "sex": "F"}),
        cycles,
    )
    values = {(one.setting, one.metric): one for _, _, each in found for one in each}
    # Composition, and for each change the rounds there and back, of which the first edit serves effectiveness too.
    assert len(counted) == cycles + len(TARGETS) * 2 * cycles
    return values


def perfect(image: Image, source: Condition, target: Condition) -> Image:
    return image[0], image[1] + age(target) - age(source)


def test_a_perfect_editor_keeps_them_all() -> None:
    found = scores(perfect)
    assert {metric for setting, metric in found if setting == UNCHANGED} == {"composition_1", "composition_10"}
    for (_, metric), one in found.items():
        assert one.ours == (1.0 if metric == "effectiveness_sex_accuracy" else 0.0)
    assert found["agePlus30", "effectiveness_age_mae"].nothing == 30
    assert found["ageMinus10", "reversibility_1"].nothing == 10  # so far is the edit itself from the scan


def test_each_break_shows_in_its_axiom() -> None:
    nothing = scores(lambda image, source, target: image)
    assert nothing["agePlus30", "effectiveness_age_mae"].ours == 30
    assert nothing["agePlus30", "reversibility_10"].ours == nothing[UNCHANGED, "composition_10"].ours == 0
    drifting = scores(lambda image, source, target: (image[0] + 0.5, perfect(image, source, target)[1]))
    assert drifting[UNCHANGED, "composition_1"].ours == 0.5 and drifting[UNCHANGED, "composition_10"].ours == 5
    assert drifting["agePlus30", "reversibility_1"].ours == 1 and drifting["agePlus30", "reversibility_10"].ours == 10
    assert drifting["agePlus30", "effectiveness_age_mae"].ours == 0
    half = scores(lambda image, source, target: (image[0], image[1] + 0.5 * max(age(target) - age(source), 0)))
    assert half["agePlus30", "effectiveness_age_mae"].ours == 15
    assert half["agePlus30", "reversibility_10"].ours == 150 and half[UNCHANGED, "composition_10"].ours == 0
    once = scores(perfect, cycles=1)
    assert {metric for _, metric in once if "_1" in metric} == {"composition_1", "reversibility_1"}


def test_minimality_is_of_ones_own_over_others() -> None:
    people = [np.random.default_rng(number).uniform(0.5, 1, (8, 8, 8)) for number in range(4)]
    own, *others = people

    def of(made: np.ndarray) -> float:
        (one,) = minimality("sub-1", "agePlus30", made, own, others)
        return one.ours

    assert of(own) == 0
    assert of(0.9 * own + 0.1 * others[0]) < of(0.5 * own + 0.5 * others[0]) < of(others[0])
    assert of(others[0]) > 0.9
    assert list(minimality("sub-1", "agePlus30", own, own, [])) == []


@pytest.mark.slow
def test_a_preset_is_tried_on_scans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family([template_anatomy()], load_law("normative"))
    lines = ["participant_id\tage\tsex"]
    for number, years in enumerate((50.0, 72.0)):
        name = f"sub-{number}"
        image = 500 * normalised(family.draw(0, number).at(years))[0, 0].numpy()
        path = tmp_path / "scans" / name / "anat" / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        Volume.from_array(image, np.array(GRID_2MM.affine)).save(path)
        lines.append(f"{name}\t{years:g}\tF")
    (tmp_path / "scans" / "participants.tsv").write_text("\n".join(lines) + "\n")
    twin = _twin(tmp_path / "twin.safetensors")
    words = ["--axioms", str(tmp_path / "scans"), "--weights", twin, "--age", "-30,+30", "--cycles", "2"]
    words += ["--reader", "age=", "--reader", "sex=", "--threads", "1", "--plots", str(tmp_path / "plots")]
    assert main([*words, "--json", str(tmp_path / "facts.json")]) == 0
    capsys.readouterr()
    facts = json.loads((tmp_path / "facts.json").read_text())
    rows = {(row["setting"], row["metric"]): row for row in facts["rows"]}
    assert facts["cohort"] == {"seed": 0, "n": 2, "left_out": 1}  # 72 + 30
    assert rows[UNCHANGED, "composition_1"]["ours"] == rows[UNCHANGED, "composition_2"]["ours"] == 0
    back = rows["ageMinus30", "reversibility_1"]
    assert 0 < back["ours"] < back["nothing"]  # a flow back takes back most of the way there
    assert rows["ageMinus30", "reversibility_2"]["ours"] > back["ours"]
    assert 0 < rows["ageMinus30", "minimality"]["ours"] < 1 and rows["agePlus30", "minimality"]["n"] == 1
    assert not [metric for _, metric in rows if metric.startswith("effectiveness")]
    assert (tmp_path / "plots" / "minimality.png").exists()


def _twin(path: Path) -> str:
    torch.manual_seed(1)
    architecture = TwinArchitecture(variables=2, changes=(0,), channels=(4, 4), velocity_mm=8, atlas=1)
    network = TwinNet(architecture)
    for name, parameter in network.named_parameters():
        if name.endswith(("head", "film.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    rows = tuple(tuple(float(value) for value in row) for row in GRID_2MM.affine)
    facts = weights.Facts(
        architecture="twin",
        architecture_arguments=asdict(architecture),
        variables={
            "age": Variable("age", "number", 5.0, 100.0, unit="years"),
            "sex": Variable("sex", "category", values=("F", "M")),
        },
        grid=weights.GridFacts(GRID_2MM.name, GRID_2MM.shape, rows),  # type: ignore[arg-type]
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=weights.TrainingFacts("cf-train", "nothing", 0, 0, 0.0, "2026-01-31"),
        licence="Apache-2.0",
    )
    weights.save(path, network.state_dict(), facts)
    return str(path)
