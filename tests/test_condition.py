"""Conditions as typed: what is read, what is refused, what it leads to, and what it is called."""

from __future__ import annotations

import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cftools.condition import (
    Change,
    Condition,
    Variable,
    apply,
    check,
    entity,
    parse_assignments,
    parse_condition,
    parse_values,
)
from cftools.errors import CftoolsWarning, ConditionError

AGE = Variable("age", "number", low=5.0, high=100.0, unit="years")
SEX = Variable("sex", "category", values=("F", "M"))
DIAGNOSIS = Variable("diagnosis", "category", values=("CN", "MCI", "AD"))
PROMPT = Variable("prompt", "text")
VOCABULARY = {variable.name: variable for variable in (AGE, SEX, DIAGNOSIS, PROMPT)}

NUMBERS = st.floats(min_value=0, max_value=1e6, allow_nan=False).filter(lambda x: x == 0 or x > 1e-9)


def typed(value: float) -> str:
    return f"{value:.12f}".rstrip("0").rstrip(".")


@pytest.mark.parametrize(
    ("text", "value", "relative", "name"),
    [
        ("+30", 30.0, True, "agePlus30"),
        ("-10", -10.0, True, "ageMinus10"),
        ("79", 79.0, False, "age79"),
        ("+2.5", 2.5, True, "agePlus2p5"),
        (" 79. ", 79.0, False, "age79"),
        ("-.5", -0.5, True, "ageMinus0p5"),
        ("0.0001", 0.0001, False, "age0p0001"),
        ("+0", 0.0, True, "agePlus0"),
        # The same edit has the same name, and -0 is +0.
        ("-0", 0.0, True, "agePlus0"),
        ("n/a", None, False, "ageNone"),
    ],
)
def test_a_leading_sign_is_relative(text: str, value: float | None, relative: bool, name: str) -> None:
    change = Change.parse("age", text)
    assert (repr(change.value), change.relative, change.entity) == (repr(value), relative, name)


@pytest.mark.parametrize(
    ("name", "text", "entity"),
    [
        ("diagnosis", "AD", "diagnosisAD"),
        ("load", "high", "loadHigh"),
        ("lesion", "stroke", "lesionStroke"),
        ("sex", "female", "sexF"),
        ("ventricle_volume", "mild-to severe", "ventricleVolumeMildToSevere"),
    ],
)
def test_names_of_words(name: str, text: str, entity: str) -> None:
    assert Change.parse(name, text).entity == entity


def test_changes_together_are_named_whatever_their_order() -> None:
    changes = [Change.parse("sex", "m"), Change.parse("age", "+30")]
    assert entity(changes) == entity(changes[::-1]) == "agePlus30SexM"
    with pytest.raises(ConditionError, match="nothing to change"):
        entity([])


BAD_TEXTS = [
    *("", " ", "nan", "+nan", "NaN", "inf", "-inf", "Infinity", "1e5", "0x10", "1_000", "+", "--5", "+-5"),
    *(
        "79,5",
        "+2,5",
        "\uff17\uff19",
        "\u221210",
        "79y",
        "+AD",
        "-high",
        "5 5",
        "a\nb",
        "\x00",
        "9" * 400,
        "9" * 17,
    ),
]


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_what_is_no_value_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConditionError) as caught:
        Change.parse("age", text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1", "2", "x", "other", "+1"])
def test_sex_is_never_guessed(text: str) -> None:
    with pytest.raises(ConditionError, match="sex"):
        Change.parse("sex", text)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, [], "", "  ", "a\tb", 10**400])
def test_a_condition_holds_plain_values_only(value: object) -> None:
    with pytest.raises(ConditionError):
        Condition({"age": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["", "1age", "a b", "../age", "âge", "a-b"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(ConditionError, match="cannot name"):
        Condition({name: 1.0})


def test_condition_is_frozen_and_compares_by_value() -> None:
    source = Condition({"sex": "female", "age": 49})
    target = source.do(age=79)
    assert source == Condition({"age": 49.0, "sex": "F"}) == {"age": 49.0, "sex": "F"}
    assert hash(source) == hash(Condition({"age": 49, "sex": "f"}))
    assert target == {"age": 79.0, "sex": "F"} != source
    assert list(target) == ["age", "sex"]
    assert repr(target) == "Condition({'age': 79.0, 'sex': 'F'})"
    assert pickle.loads(pickle.dumps(target)) == target
    assert source.get("diagnosis") is None and "diagnosis" not in source
    with pytest.raises(TypeError):
        source["age"] = 3  # type: ignore[index]


@given(NUMBERS, NUMBERS)
def test_relative_adds_and_absolute_sets(before: float, value: float) -> None:
    source = Condition({"age": before, "sex": "F"})
    number = float(typed(value))
    assert apply([Change.parse("age", typed(value))], source) == {"age": number, "sex": "F"}
    assert apply([Change.parse("age", f"+{typed(value)}")], source)["age"] == before + number
    assert apply([Change.parse("age", f"-{typed(value)}")], source)["age"] == before - number


@given(NUMBERS, NUMBERS, st.sampled_from(["", "+", "-"]), st.sampled_from(["", "+", "-"]))
def test_entities_are_letters_and_digits_and_tell_changes_apart(a: float, b: float, sign_a: str, sign_b: str) -> None:
    first, second = Change.parse("age", sign_a + typed(a)), Change.parse("age", sign_b + typed(b))
    assert re.fullmatch("[A-Za-z0-9]+", first.entity)
    assert (first.entity == second.entity) == (first == second)


@given(st.text())
def test_the_parser_knows_only_its_own_error(text: str) -> None:
    try:
        change = Change.parse("age", text)
    except ConditionError:
        return
    assert change.value is None or change == Change("age", change.value, change.relative)


def test_relative_needs_a_number_to_start_from() -> None:
    change = Change.parse("age", "+30")
    with pytest.raises(ConditionError, match=r"unknown.*--from age="):
        apply([change], Condition())
    with pytest.raises(ConditionError, match="--from"):
        apply([change], Condition({"age": None}))
    with pytest.raises(ConditionError, match="young"):
        apply([change], Condition({"age": "young"}))


def test_apply_to_a_number() -> None:
    assert Change.parse("age", "-10").apply(49.5) == 39.5
    assert Change.parse("age", "79").apply(49.5) == 79
    with pytest.raises(ConditionError, match="must be a number"):
        Change.parse("diagnosis", "AD").apply(1.0)


def test_lists() -> None:
    sweep = parse_values("age", "-30,-10,+10,+30")
    assert [change.entity for change in sweep] == ["ageMinus30", "ageMinus10", "agePlus10", "agePlus30"]
    assert parse_condition("sex=F,age=49") == {"age": 49.0, "sex": "F"}
    assert parse_condition(["sex=F", "age=n/a"]) == {"age": None, "sex": "F"}
    assert parse_assignments("age=+30, sex=M") == (Change("age", 30.0, True), Change("sex", "M"))


@pytest.mark.parametrize("text", ["+2,5", "+10,+10", "10,", ",", "-0,+0"])
def test_bad_sweeps(text: str) -> None:
    with pytest.raises(ConditionError):
        parse_values("age", text)


@pytest.mark.parametrize("text", ["", "age", "age=", "=5", "age=49,5", "age=49,age=50", "age=+3", "age==4", "age:4"])
def test_bad_sources(text: str) -> None:
    with pytest.raises(ConditionError):
        parse_condition(text)


def test_range() -> None:
    inside = Condition({"age": 100, "sex": "F", "diagnosis": "ad", "prompt": "high lesion load"})
    assert check(inside, VOCABULARY)["diagnosis"] == "AD"
    assert check(Condition({"age": None}), VOCABULARY) == {"age": None}
    assert check(Condition({"age": 5}), VOCABULARY) == {"age": 5}
    with pytest.raises(ConditionError, match=r"age=100\.5: .* 5 to 100 years; .*--clip"):
        check(Condition({"age": 100.5}), VOCABULARY)
    with pytest.warns(CftoolsWarning, match=r"age=-3 clipped to 5: .*5 to 100 years"):
        assert check(Condition({"age": -3}), VOCABULARY, clip=True) == {"age": 5.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"load": "high"}, "know age, sex, diagnosis, prompt; not load"),
        ({"age": "old"}, "age=old"),
        ({"diagnosis": 3}, "CN, MCI, AD"),
        ({"diagnosis": "PD"}, "CN, MCI, AD"),
        ({"prompt": 3}, "a text"),
    ],
)
def test_what_weights_do_not_know(values: dict[str, float | str], message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        check(Condition(values), VOCABULARY, clip=True)


def test_codes() -> None:
    assert [AGE.encode(age) for age in (5, 52.5, 100)] == [-1, 0, 1]
    assert [SEX.encode(sex) for sex in "FM"] == [-1, 1]
    assert [DIAGNOSIS.encode(name) for name in ("CN", "MCI", "AD")] == [-1, 0, 1]
    assert math.isnan(AGE.encode(None))
    assert AGE.decode(AGE.encode(37.25)) == pytest.approx(37.25)
    assert (AGE.decode(-3), AGE.decode(3)) == (5, 100)
    for variable, value in ((PROMPT, "x"), (AGE, "old"), (SEX, "x")):
        with pytest.raises(ConditionError):
            variable.encode(value)
    with pytest.raises(ConditionError):
        SEX.decode(0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "age", "kind": "number"},
        {"name": "age", "kind": "number", "low": 5.0, "high": 5.0},
        {"name": "age", "kind": "number", "low": 5.0, "high": 9.0, "values": ("a", "b")},
        {"name": "sex", "kind": "category", "values": ("F",)},
        {"name": "sex", "kind": "category", "values": ("F", "f")},
        {"name": "sex", "kind": "category", "values": ("F", "M"), "low": 0.0},
        {"name": "a b", "kind": "text"},
    ],
)
def test_a_variable_makes_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Variable(**arguments)  # type: ignore[arg-type]
