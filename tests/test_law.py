from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cftools.errors import ConditionError, UsageError
from cftools.phantom.law import CONTRAST, STRUCTURES, AgeingLaw, built_in_laws, load_law

FLUID = ("lateral_ventricles", "third_ventricle", "sylvian_fissure", "sulci")
#: Shares of the intracranial volume at 25 years, and of the brain: docs/ageing.md.
BRAIN, FLUID_SHARES, REST = 0.84, (0.012, 0.0006, 0.010, 0.1024), 0.035
TISSUE = {"cortex": 0.52, "deep_grey": 0.06, "white_matter": 0.42}


@pytest.fixture(scope="module")
def normative() -> AgeingLaw:
    return load_law("normative")


@pytest.fixture(params=["normative", "altered"])
def law(request: pytest.FixtureRequest) -> AgeingLaw:
    return load_law(request.param)


def law_text(**changes: str) -> str:
    """A minimal law of two knots in which each piece can be replaced, or dropped with an empty text."""
    pieces = {"name": 'name = "small"', "description": 'description = "for tests"', "ages": "ages = [5, 100]"}
    curve = 'F = [1.0, 2.0]\nM = [1.0, 3.0]\nlog_sd = 0.1\nsources = ["none"]'
    pieces |= {name: f"[{name}]\n{curve}" for name in (*STRUCTURES, CONTRAST)}
    return "\n".join((pieces | changes).values())


def sulci(extra: str = "", **changes: str) -> str:
    """The table of the sulci with some of its values replaced."""
    values = {"F": "[1, 2]", "M": "[1, 2]", "log_sd": "1", "sources": '["a"]'} | changes
    return "\n".join(["[sulci]", *(f"{key} = {value}" for key, value in values.items()), extra])


def test_built_in_laws() -> None:
    assert built_in_laws() == ("altered", "normative")


def test_ratio_is_one_at_25(law: AgeingLaw) -> None:
    for structure in law.structures:
        for sex in ("F", "M", None):
            assert law.ratio(structure, 25, sex) == pytest.approx(1)
    assert law.contrast(25) == pytest.approx(1)
    assert "deep_grey" in law.structures
    assert CONTRAST not in law.structures


@pytest.mark.parametrize(
    ("structure", "low", "high"),
    [
        ("lateral_ventricles", 1.55, 1.8),
        ("third_ventricle", 1.5, 1.8),
        ("sylvian_fissure", 1.35, 1.6),
        ("brain", 0.90, 0.93),
        ("cortex", 0.87, 0.90),
        ("hippocampus", 0.90, 0.93),
    ],
)
def test_change_from_30_to_67(normative: AgeingLaw, structure: str, low: float, high: float) -> None:
    for sex in ("F", "M"):
        assert low < normative.ratio(structure, 67, sex) / normative.ratio(structure, 30, sex) < high


def test_ventricles_of_men_grow_faster(normative: AgeingLaw) -> None:
    ratio = [normative.ratio("lateral_ventricles", 67, sex) for sex in ("F", None, "M")]
    assert ratio[0] < ratio[1] < ratio[2]
    assert ratio[1] == pytest.approx(math.sqrt(ratio[0] * ratio[2]))


def test_direction(law: AgeingLaw) -> None:
    ages = np.arange(25, 100.5, 0.5)
    for sex in ("F", "M"):
        for structure in FLUID:
            assert np.diff([law.ratio(structure, age, sex) for age in ages]).min() > 0
        for structure in ("cortex", "brain", "deep_grey", CONTRAST):
            assert np.diff([law.ratio(structure, age, sex) for age in ages]).max() < 0
        white = [law.ratio("white_matter", age, sex) for age in ages]
        assert 35 <= ages[int(np.argmax(white))] <= 50


def test_no_kinks(law: AgeingLaw) -> None:
    # The yearly log rate of no structure turns by more than 1 % from one year to the next.
    for structure in law.structures:
        logs = [math.log(law.ratio(structure, age, "F")) for age in range(5, 101)]
        assert np.abs(np.diff(logs, 2)).max() < 0.01


def test_brain_is_the_sum_of_its_tissues(law: AgeingLaw) -> None:
    for sex in ("F", "M"):
        for age in range(5, 101, 5):
            tissue = sum(share * law.ratio(name, age, sex) for name, share in TISSUE.items())
            assert law.ratio("brain", age, sex) == pytest.approx(tissue, abs=0.003)


def test_intracranial_volume_is_constant(law: AgeingLaw) -> None:
    # The rest (basal cisterns, posterior fossa) grows half as fast as the sulci.
    for sex in ("F", "M"):
        for age in range(5, 101, 5):
            fluid = sum(share * law.ratio(name, age, sex) for name, share in zip(FLUID, FLUID_SHARES, strict=True))
            rest = REST * law.ratio("cisterns", age, sex)
            assert BRAIN * law.ratio("brain", age, sex) + fluid + rest == pytest.approx(1, abs=0.002)


def test_altered_differs_by_a_quarter_to_two_fifths(normative: AgeingLaw) -> None:
    altered = load_law("altered")
    for structure in normative.structures:
        for sex in ("F", "M"):
            there, here = (math.log(law.ratio(structure, 100, sex)) for law in (altered, normative))
            assert 0.24 < abs(there / here - 1) < 0.41, (structure, sex)
        assert altered.log_sd(structure) != normative.log_sd(structure)


def test_altered_ventricles_grow_late(normative: AgeingLaw) -> None:
    altered = load_law("altered")
    for start, stop, late in ((30, 67, False), (80, 100, True)):
        there, here = (
            law.ratio("lateral_ventricles", stop) / law.ratio("lateral_ventricles", start)
            for law in (altered, normative)
        )
        assert (there > 1.1 * here) if late else (there < 0.9 * here)


def test_log_sd_of_lateral_ventricles(normative: AgeingLaw) -> None:
    assert 0.35 <= normative.log_sd("lateral_ventricles") <= 0.45


@pytest.mark.parametrize("age", [4.9, 100.1, -1, math.nan, math.inf])
def test_age_out_of_range(normative: AgeingLaw, age: float) -> None:
    with pytest.raises(ConditionError, match="5 to 100"):
        normative.ratio("brain", age, "F")


def test_unknown_sex_and_structure(normative: AgeingLaw) -> None:
    with pytest.raises(ConditionError, match="'X'"):
        normative.contrast(40, "X")
    with pytest.raises(UsageError, match="cerebellum"):
        normative.ratio("cerebellum", 40, "F")
    with pytest.raises(UsageError, match="cerebellum"):
        normative.log_sd("cerebellum")


def test_own_law(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(law_text())
    law = load_law(path)
    assert law.structures == STRUCTURES
    # Two knots: the log is straight, from 1 at 5 years to 2 at 100.
    assert law.ratio("brain", 100, "F") == pytest.approx(2 ** (75 / 95))
    assert load_law(str(path)) == law


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name missing"),
        ({"name": "name = 3"}, "name: must be a text"),
        ({"sulci": ""}, "sulci missing"),
        ({"extra": "[cerebellum]"}, "unknown cerebellum"),
        ({"sulci": sulci("fit = 1")}, "sulci: unknown fit"),
        ({"sulci": sulci(F="[1, 2, 3]")}, "F has 3 values for 2"),
        ({"sulci": sulci(M="[1, 0]")}, "M: 0 is not a positive"),
        ({"sulci": sulci(F="[1, nan]")}, "nan is not a positive"),
        ({"sulci": sulci(F="[1, inf]")}, "inf is not a positive"),
        ({"sulci": sulci(F="[1, true]")}, "True is not a positive"),
        ({"sulci": sulci(F="1")}, "F: must be a list"),
        ({"sulci": sulci(log_sd="-1")}, "log_sd: -1 is not"),
        ({"sulci": sulci(sources="[]")}, "at least one text"),
        ({"ages": "ages = [5, 5, 100]"}, "rise from 5 to 100"),
        ({"ages": "ages = [10, 100]"}, "rise from 5 to 100"),
        ({"ages": "ages = []"}, "rise from 5 to 100"),
        ({"ages": "ages = [5, 100"}, "not a TOML file"),
    ],
)
def test_a_file_that_is_no_law(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(law_text(**changes))
    with pytest.raises(UsageError, match=message) as caught:
        load_law(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_structure_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    text = law_text(sulci="")
    path.write_text(text.replace("ages =", "sulci = 3\nages ="))
    with pytest.raises(UsageError, match="sulci: must be a table"):
        load_law(path)


def test_no_such_law(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml.*altered, normative"):
        load_law(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match="normal: no such ageing law"):
        load_law("normal")
