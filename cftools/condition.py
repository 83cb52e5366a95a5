"""Conditions such as age 79 or sex F: what is known of a scan, how to change it, and how the change is named.

A leading sign makes a change relative: `+30` and `-10` are relative, `79` is absolute.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from cftools.errors import CftoolsWarning, ConditionError
from cftools.schema import FrozenMapping

#: None is the null token: not known, or not to be told to the network.
Value = float | str | None

#: How BIDS tables spell what has one name here. 1 and 2 are no sex: tables disagree on which is which.
SPELLINGS = {"sex": {"f": "F", "female": "F", "m": "M", "male": "M"}}
#: How a null is written on a command line, as in BIDS tables.
NULL = "n/a"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


class Condition(FrozenMapping[Value]):
    """What is known of a scan, or asked of it: numbers, texts and None by name; frozen, hashable, sorted.

    Raises:
        ConditionError: a name or a value is none.
    """

    __slots__ = ()

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        super().__init__({name: _canonical(name, value) for name, value in sorted((values or {}).items())})

    def do(self, /, **changes: Value) -> Condition:
        """The same condition with some values set: Condition({"age": 49.0}).do(age=79)."""
        return Condition({**self, **changes})


def cell(value: Value) -> str:
    """A value as it stands in a BIDS table."""
    return NULL if value is None else f"{value:g}" if isinstance(value, float) else value


@dataclass(frozen=True)
class Variable:
    """One variable that weights know.

    Attributes:
        kind: number, with low <= value <= high; category, one of values; or free text.
        values: categories, in the order in which a network counts them.
        unit: for messages, such as "years".
    """

    name: str
    kind: Literal["number", "category", "text"]
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot name a condition")
        if self.kind == "number":
            if self.low is None or self.high is None or not self.low < self.high or self.values:
                raise ValueError(f"{self.name} is a number and needs low < high, and no values")
        elif self.low is not None or self.high is not None:
            raise ValueError(f"{self.name} is no number and has no low or high")
        lowered = {value.lower() for value in self.values}
        if self.kind == "category" and not 2 <= len(self.values) == len(lowered):
            raise ValueError(f"{self.name} is a category and needs two different values or more")

    def check(self, value: Value, clip: bool = False) -> Value:
        """The value as the weights know it: categories in their spelling, numbers within range.

        Args:
            clip: move a number out of range to the nearest end, with a warning, instead of refusing it.
        Raises:
            ConditionError: it is of another kind, or out of range.
        """
        if value is None:
            return None
        if self.kind == "number":
            return self._number(value, clip)
        if not isinstance(value, str):
            raise ConditionError(f"{self.name}={_digits(value)}: must be {self._range()}")
        if self.kind == "text":
            return value
        for known in self.values:
            if known.lower() == value.lower():
                return known
        raise ConditionError(f"{self.name}={value}: must be {self._range()}")

    def encode(self, value: Value) -> float:
        """The value on [-1, 1], linear from low to high or from the first category to the last; nan for None.

        Raises:
            ConditionError: it is no value of this variable, or a text.
        """
        if value is None:
            return math.nan
        if self.kind == "text":
            raise ConditionError(f"{self.name} is a text and no number stands for it")
        if self.kind == "category":
            return 2 * self.values.index(str(self.check(value))) / (len(self.values) - 1) - 1
        if isinstance(value, str):
            raise ConditionError(f"{self.name}={value}: must be {self._range()}")
        low, high = self._ends()
        return 2 * (value - low) / (high - low) - 1

    def decode(self, code: float) -> float:
        """The number that a code in [-1, 1] stands for, held within the range."""
        low, high = self._ends()
        return min(max(low + (code + 1) / 2 * (high - low), low), high)

    def _number(self, value: float | str, clip: bool) -> float:
        low, high = self._ends()
        if not isinstance(value, str) and low <= value <= high:
            return value
        if isinstance(value, str) or not clip:
            hint = "" if isinstance(value, str) else "; choose one of them, or --clip"
            shown = value if isinstance(value, str) else _digits(value)
            raise ConditionError(f"{self.name}={shown}: these weights know {self._range()}{hint}")
        end = low if value < low else high
        text = f"{self.name}={_digits(value)} clipped to {_digits(end)}: these weights know {self._range()}"
        warnings.warn(text, CftoolsWarning, stacklevel=3)
        return end

    def _ends(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ConditionError(f"{self.name} is no number")
        return self.low, self.high

    def _range(self) -> str:
        if self.kind == "text":
            return "a text"
        if self.kind == "category":
            return f"one of {', '.join(self.values)}"
        low, high = self._ends()
        return f"{_digits(low)} to {_digits(high)}{' ' + self.unit if self.unit else ''}"


Vocabulary = Mapping[str, Variable]


@dataclass(frozen=True)
class Change:
    """One thing to change: a value to set, or with `relative` a number to add.

    Raises:
        ConditionError: a name or a value is none, or something other than a number is relative.
    """

    name: str
    value: Value
    relative: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _canonical(self.name, self.value))
        if self.relative and not isinstance(self.value, float):
            raise ConditionError(f"{self.name}: only a number can be added, not {self.value}")

    @classmethod
    def parse(cls, name: str, text: str) -> Change:
        """A change as typed: "+30", "-10", "79", "F", "n/a".

        Raises:
            ConditionError: empty, nan, inf, a decimal comma, or neither number nor word.
        """
        word = text.strip()
        if word == NULL:
            return cls(name, None)
        if _NUMBER.fullmatch(word):
            return cls(name, float(word), relative=word[0] in "+-")
        if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", word):
            raise ConditionError(f"{name}={word}: a decimal comma; write {word.replace(',', '.')}")
        if not word[:1].isalpha() or not word.isprintable() or word.lower() in ("nan", "inf", "infinity"):
            raise ConditionError(f"{name}={word!r}: neither a plain number (79, +30, 2.5) nor a word")
        return cls(name, word)

    @property
    def entity(self) -> str:
        """For a file name, in letters and digits: agePlus30, ageMinus10, age79, agePlus2p5, diagnosisAD."""
        first, *others = self.name.split("_")
        name = first + "".join(map(_capital, others))
        if self.value is None:
            return f"{name}None"
        if isinstance(self.value, str):
            words = re.findall("[A-Za-z0-9]+", self.value)
            if not words:
                raise ConditionError(f"{self.name}={self.value}: no letters or digits to name a file with")
            return name + "".join(map(_capital, words))
        negative = self.value < 0
        sign = ("Minus" if negative else "Plus") if self.relative else ("Negative" if negative else "")
        return f"{name}{sign}{_digits(abs(self.value)).replace('.', 'p')}"

    def target(self, source: Condition) -> Value:
        """The value it leads to.

        Raises:
            ConditionError: it is relative and the source's value is unknown or no number.
        """
        if not self.relative:
            return self.value
        before = source.get(self.name)
        if before is None:
            hint = f"the scan's own {self.name} is unknown: give it with --from {self.name}=..."
            raise ConditionError(f"{self.entity} is relative, and {hint}")
        if isinstance(before, str):
            raise ConditionError(f"{self.entity} is relative, and the scan's own {self.name} is {before}")
        return self.apply(before)

    def apply(self, before: float) -> float:
        """The number it makes of a number.

        Raises:
            ConditionError: it sets no number.
        """
        if not isinstance(self.value, float):
            raise ConditionError(f"{self.name}={self.value}: must be a number")
        return before + self.value if self.relative else self.value


def encoded(condition: Mapping[str, Value], variables: Mapping[str, Variable]) -> list[float]:
    """A condition as a network takes it: each variable's value on [-1, 1], in their order; nan where unknown."""
    return [variable.encode(condition.get(name)) for name, variable in variables.items()]


def parse_values(name: str, text: str) -> tuple[Change, ...]:
    """The values of one option, separated by commas: "-30,-10,+10,+30" are four edits, not one.

    Raises:
        ConditionError: as for Change.parse; one twice; or signs on some only ("+2,5" is a decimal comma).
    """
    changes = tuple(Change.parse(name, word) for word in text.split(","))
    if len({change.relative for change in changes}) > 1:
        raise ConditionError(f"{name}={text}: some values have signs and some none; is it a decimal comma?")
    if len(set(changes)) < len(changes):
        raise ConditionError(f"{name}={text}: the same value twice")
    return changes


def parse_assignments(texts: str | Iterable[str]) -> tuple[Change, ...]:
    """One or many "name=value,name=value", such as "sex=F,age=49", as changes in the order of writing.

    Raises:
        ConditionError: a part is no name=value, a name comes twice, or a value cannot be read.
    """
    changes: dict[str, Change] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        for part in text.split(","):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not equals or not name:
                raise ConditionError(f"{text!r}: {part!r} is not name=value; a decimal point is a point")
            if name in changes:
                raise ConditionError(f"{text!r}: {name} is given twice")
            changes[name] = Change.parse(name, value)
    return tuple(changes.values())


def parse_condition(texts: str | Iterable[str]) -> Condition:
    """What is known of a scan, as typed: "sex=F,age=49".

    Raises:
        ConditionError: as for parse_assignments, or a value has a sign.
    """
    changes = parse_assignments(texts)
    for change in changes:
        if change.relative:
            raise ConditionError(f"{change.name}: the scan's own value is absolute; leave the sign out")
    return Condition({change.name: change.value for change in changes})


def apply(changes: Iterable[Change], source: Condition) -> Condition:
    """The condition that the changes lead to from a source."""
    return Condition({**source, **{change.name: change.target(source) for change in changes}})


def check(condition: Condition, vocabulary: Vocabulary, clip: bool = False) -> Condition:
    """The condition as weights know it.

    Raises:
        ConditionError: they do not know a variable, or its value is out of their range and not clipped.
    """
    for name in condition:
        if name not in vocabulary:
            known = ", ".join(vocabulary) or "no condition at all"
            raise ConditionError(f"these weights know {known}; not {name}")
    return Condition({name: vocabulary[name].check(value, clip) for name, value in condition.items()})


def entity(changes: Iterable[Change]) -> str:
    """The value of desc- for changes made together, in order of names: age79SexM.

    Raises:
        ConditionError: nothing is changed, or a value has no letters or digits.
    """
    first, *others = [change.entity for change in sorted(changes, key=lambda change: change.name)] or [""]
    if not first:
        raise ConditionError("nothing to change: name a condition, such as --age +30")
    return first + "".join(map(_capital, others))


def _canonical(name: str, value: Value) -> Value:
    if not _NAME.fullmatch(name):
        raise ConditionError(f"{name!r} cannot name a condition: a letter first, then letters, digits and _")
    if value is None:
        return None
    if isinstance(value, str):
        word = value.strip()
        if not word or not word.isprintable():
            raise ConditionError(f"{name}={value!r}: empty, or not printable")
        return _spelled(name, word)
    # Whole numbers beyond 2^53 are no doubles, and no condition.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) < 2**53:
        raise ConditionError(f"{name}: must be a finite number, a word, or {NULL}")
    if name in SPELLINGS:
        return _spelled(name, _digits(float(value)))
    return float(value) + 0.0  # -0.0 becomes 0.0


def _spelled(name: str, word: str) -> str:
    spellings = SPELLINGS.get(name)
    if spellings is None:
        return word
    if word.lower() not in spellings:
        known = ", ".join(sorted(set(spellings.values())))
        raise ConditionError(f"{name}={word}: must be one of {known}, or {NULL}")
    return spellings[word.lower()]


def _digits(value: float) -> str:
    """The shortest decimal that reads back as the number, never with an exponent: 79, 2.5, 0.0001."""
    text = format(Decimal(repr(float(value))), "f")
    return text.removesuffix(".0")


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
