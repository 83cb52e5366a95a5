"""What any counterfactual must satisfy, whoever makes it, measured without knowing the truth.

Composition, reversibility and effectiveness are those of Monteiro et al. 2023, Measuring axiomatic soundness of
counterfactual image models; minimality asks, in the spirit of Melistas et al. 2024, Benchmarking counterfactual image
generation, whether an edit stays nearer to its own scan than other people are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from cftools.condition import Condition
from cftools.score.adherence import METRICS
from cftools.score.table import Value

#: What an unchanged condition is called.
UNCHANGED = "unchanged"
Image = TypeVar("Image")
#: An image under one condition, as it would be under another.
Edit = Callable[[Image, Condition, Condition], Image]


def soundness(
    subject: str,
    image: Image,
    told: Condition,
    targets: Mapping[str, Condition],
    edit: Edit[Image],
    distance: Callable[[Image, Image], float],
    read: Callable[[Image], Condition] | None = None,
    cycles: int = 10,
) -> Iterator[tuple[str, Image | None, list[Value]]]:
    """What the axioms ask of one scan: composition first, then each change with what was made of the scan.

    Composition: the scan edited to the condition that it has, once and `cycles` times, is the scan. Reversibility: so
    it is when changed and changed back, once and `cycles` times. Effectiveness: what a network reads off an edit is
    what was asked, beside what it reads off the scan itself. Beside reversibility stands how far the edit is from the
    scan: that much would be left by an edit that is not turned back.

    Args:
        targets: conditions by the name of the change.
        distance: of two images of the scan. read: age and sex as an image looks; None leaves out effectiveness.
    Yields:
        the change (UNCHANGED first), the edit (None for that), and the values.
    """
    yield (
        UNCHANGED,
        None,
        [
            Value(subject, UNCHANGED, f"composition_{cycle}", far)
            for cycle, far in _cycled(image, [told], edit, distance, cycles)
        ],
    )
    seen = read(image) if read else Condition()
    for setting, target in targets.items():
        made = edit(image, told, target)
        values = [
            Value(subject, setting, f"reversibility_{cycle}", far, distance(made, image))
            for cycle, far in _cycled(image, [target, told], edit, distance, cycles, made)
        ]
        if read:
            values += _effective(subject, setting, target, seen, read(made))
        yield setting, made, values


def minimality(
    subject: str, setting: str, made: np.ndarray, own: np.ndarray, others: Sequence[np.ndarray]
) -> Iterator[Value]:
    """How far an edit is from its own scan, over the median of how far it is from other people's.

    0 is the scan itself, and an edit that is another person comes out at 1. It is good to be low only where the edit is
    effective: doing nothing is the nearest of all.

    Args:
        made, own, others: on a model's grid, (X, Y, Z), normalised.
    """
    if others:
        away = float(np.median([_apart(made, other) for other in others]))
        if away > 0:
            yield Value(subject, setting, "minimality", _apart(made, own) / away)


def _cycled(
    image: Image,
    conditions: Sequence[Condition],
    edit: Edit[Image],
    distance: Callable[[Image, Image], float],
    cycles: int,
    first: Image | None = None,
) -> Iterator[tuple[int, float]]:
    """How far from the scan it is after one round through conditions and after all rounds.

    Args:
        conditions: of a round; the last is the scan's own.
        first: the first edit of the first round, where it is known already.
    """
    now, here = image, conditions[-1]
    for cycle in range(1, cycles + 1):
        for place, there in enumerate(conditions):
            known = first if (cycle, place) == (1, 0) else None
            now, here = edit(now, here, there) if known is None else known, there
        if cycle in (1, cycles):
            yield cycle, distance(now, image)


def _effective(subject: str, setting: str, target: Condition, before: Condition, after: Condition) -> Iterator[Value]:
    """The error of what is read off the edit, and of what is read off the scan, for each variable that is asked."""
    for variable, metric in METRICS.items():
        asked, was, found = (each.get(variable) for each in (target, before, after))
        if asked is None or found is None or was is None:
            continue
        error, nothing = (
            abs(asked - said) if isinstance(asked, float) and isinstance(said, float) else float(asked == said)
            for said in (found, was)
        )
        yield Value(subject, setting, f"effectiveness_{metric}", error, nothing)


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference where either shows brain."""
    brain = (first > 0) | (second > 0)
    return float(np.abs(first - second)[brain].mean(dtype=np.float64)) if brain.any() else 0.0
