"""Whether images show the age and sex that they were meant to show, by networks that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cftools.condition import Condition
from cftools.score.table import REFERENCE, Value

#: What each variable's errors are called.
METRICS = {"age": "age_mae", "sex": "sex_accuracy"}
#: Ages outside of which a target is left out, as in the CDM paper's Table 2.
AGES = (0.0, 100.0)


@dataclass(frozen=True)
class Looked:
    """How one image looks.

    Attributes:
        setting: what was changed; empty for a scan as it is.
        told: what it was meant to show; read: what networks say that it shows.
        before: what they say of the scan that was edited, empty where that is not there.
    """

    subject: str
    setting: str
    told: Condition
    read: Condition
    before: Condition = field(default_factory=Condition)

    @property
    def is_target(self) -> bool:
        """Whether it shows an age that a person can have."""
        age = self.told.get("age")
        return not isinstance(age, float) or AGES[0] <= age <= AGES[1]


def adherence(looked: Looked, setting: str = "") -> Iterator[Value]:
    """An image's error in years, and whether its sex is right (1 or 0); of what nothing is told, nothing.

    Args:
        setting: what to call it where nothing was changed.
    """
    name = looked.setting or setting or REFERENCE
    for variable, metric in METRICS.items():
        told, read, before = (each.get(variable) for each in (looked.told, looked.read, looked.before))
        if told is None or read is None:
            continue
        nothing = float("nan") if before is None else _error(told, before)
        yield Value(looked.subject, name, metric, _error(told, read), nothing)


def _error(told: float | str, read: float | str) -> float:
    if isinstance(told, float) and isinstance(read, float):
        return abs(told - read)
    return float(told == read)
