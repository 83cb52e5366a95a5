"""Scores of sets as rows, averaged over people, and the one shape that a reproduction's JSON has."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cftools.score.counterfactual import OVERALL, bootstrap_ratio
from cftools.score.distribution import Estimate

#: The scans that a set is compared with, in the place of a change.
REFERENCE = "reference"
_NAN = float("nan")


@dataclass(frozen=True)
class Score:
    """One score of one set.

    Attributes:
        method: of the set: its folder's name, or a preset.
        setting: the change it is of, "overall", or "reference".
        ours, low, high: the score and its 95 % interval, nan where there is none.
        nothing: the same of doing nothing, nan where that means nothing.
        n: number of people.
    """

    method: str
    setting: str
    metric: str
    ours: float
    low: float = _NAN
    high: float = _NAN
    nothing: float = _NAN
    n: int = 0

    @classmethod
    def of(cls, method: str, setting: str, metric: str, found: Estimate, n: int) -> Score:
        """One of a set as a whole."""
        return cls(method, setting, metric, found.ours, found.low, found.high, n=n)


@dataclass(frozen=True)
class Value:
    """One number of one image: whose, of which change, and the same of doing nothing (nan where unknown)."""

    subject: str
    setting: str
    metric: str
    ours: float
    nothing: float = _NAN


def averaged(method: str, values: Sequence[Value], seed: int = 0) -> list[Score]:
    """Means of each metric for each change, and of all changes together where there are several.

    Intervals are over people, each with all of its images. What is nan for an image is left out.
    """
    settings = sorted({one.setting for one in values}, key=_in_order)
    rows = []
    for setting in [*settings, *([OVERALL] if len(settings) > 1 else [])]:
        group = [one for one in values if setting in (one.setting, OVERALL)]
        for metric in dict.fromkeys(one.metric for one in group):
            some = [one for one in group if one.metric == metric and not math.isnan(one.ours)]
            together = setting == OVERALL != settings[0]
            if len({one.setting for one in some}) > together:
                rows.append(_mean(method, setting, metric, some, seed))
    return rows


def _mean(method: str, setting: str, metric: str, values: Sequence[Value], seed: int) -> Score:
    people = [one.subject for one in values]
    numbers = np.array([one.ours for one in values])
    ours, low, high = bootstrap_ratio(people, numbers, np.ones(len(numbers)), seed)
    unchanged = [one.nothing for one in values if not math.isnan(one.nothing)]
    nothing = float(np.mean(unchanged)) if len(unchanged) == len(values) else _NAN
    return Score(method, setting, metric, ours, low, high, nothing, len(set(people)))


def _in_order(setting: str) -> tuple[bool, float, str]:
    """Changes of a number from the most taken away to the most added, then the others by name."""
    digits = "".join(letter for letter in setting if letter.isdigit() or letter == "p").strip("p").replace("p", ".")
    if not digits or digits.count(".") > 1:
        return True, 0.0, setting
    return False, -float(digits) if "Minus" in setting else float(digits), setting


def reproduction(
    command: str, cohort: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], machine: str | None = None
) -> dict[str, Any]:
    """What every reproduction of a paper writes: the same keys, whatever the paper.

    Args:
        cohort: {"seed", "n"} and what else there is to say.
        rows: {"table", "method", "setting", "metric", "ours", "low", "high", "paper"} each, as `row` makes them.
        machine: in words; by default this one's processor and number of cores.
    """
    import os

    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine or f"{platform.machine()}, {os.cpu_count()} cores",
        "cohort": dict(cohort),
        "rows": [dict(one) for one in rows],
    }


def row(table: str, score: Score, paper: float | None = None, **other: Any) -> dict[str, Any]:
    """A score as a reproduction's row; null where there is no number.

    Args:
        table: of the paper, or of an ablation.
        paper: the paper's number, None where it has none.
        other: values that take the place of the score's: method="cdm".
    """
    facts = {name: known(value) for name, value in asdict(score).items() if name not in ("nothing", "n")}
    return {"table": table, **facts, **other, "paper": paper}


def known(value: Any) -> Any:
    """A value as JSON has it: None for what is no finite number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
