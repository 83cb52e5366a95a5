"""Schedules: which times a run goes through, as a list of moves.

A move's index counts from 1 along its schedule and keys its random draws, so that each of RePaint's passes over the
same interval has its own; 0 keys what is drawn for the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from cftools.diffusion.path import Path
from cftools.errors import PathError

Spacing = Literal["trailing", "leading", "uniform"]


@dataclass(frozen=True)
class Move:
    """One move from time t to time s.

    Attributes:
        kind: solve, the solver's step: s < t samples, s > t inverts; or renoise, up by fresh noise, s > t.
    """

    t: float
    s: float
    kind: Literal["solve", "renoise"]
    index: int


def times(
    path: Path, steps: int, start: float = 1.0, spacing: Spacing = "trailing", end: float = 0.0
) -> tuple[float, ...]:
    """Times from start down to 0, steps + 1 of them.

    Where training times are discrete the schedule keeps to them, n / T from n_0 = round(start T) down; K is steps:

    - trailing: n_0 - k n_0 / K, rounded: begins at n_0 (Lin et al. 2024, section 3.3);
    - leading: 1 + k floor(n_0 / K): ends with the move from 1 / T (DDIM's in Nichol and Dhariwal's code);
    - uniform: K times from n_0 to 1, rounded: both (Nichol and Dhariwal 2021, section 4).

    On a continuous path all three are start (1 - k / K).

    Args:
        end: if not 0, where the last move begins, whatever the spacing: the others are even down to it, and from there
            the estimate of x_0 is the result, without detail that such noise still hides.
    Raises:
        PathError: start is not in (0, 1], end not in [0, start), or there are fewer training times between them than
            steps.
    """
    if not 0 < start <= 1:
        raise PathError(f"start time {start:g} must be above 0 and at most 1")
    if not 0 <= end < start:
        raise PathError(f"end time {end:g} must be 0 or more and below the start's, {start:g}")
    if steps < (2 if end else 1):
        raise PathError("steps must be 1 or more, and 2 or more with an end time")
    if path.times is None:
        even = np.linspace(start, end, steps) if end else start * (1 - np.arange(steps) / steps)
        return (*(float(t) for t in even), 0.0)
    top, bottom = round(start * path.times), max(round(end * path.times), 1)
    if top - bottom + 1 < steps:
        between = f"from time {start:g}" + (f" to {end:g}" if end else "")
        raise PathError(f"{steps} steps {between} are more than its {top - bottom + 1} training times")
    counts: np.ndarray
    if end:
        counts = np.round(np.linspace(top, bottom, steps))
    elif spacing == "trailing":
        counts = np.round(np.arange(steps, 0, -1) * (top / steps))
    elif spacing == "leading":
        counts = 1 + np.arange(steps - 1, -1, -1) * (top // steps)
    elif spacing == "uniform":
        counts = np.round(np.linspace(top, 1, steps))
    else:
        raise PathError(f"{spacing!r} is no spacing: there are trailing, leading and uniform")
    return (*(float(n / path.times) for n in counts), 0.0)


def down(times: Sequence[float], resample: int = 1) -> tuple[Move, ...]:
    """Moves that sample, from the first time to the last.

    Args:
        times: falling.
        resample: U, passes over each move: after each but the last the image is noised back up (Lugmayr et al. 2022,
            algorithm 1). The move to t = 0 has one pass: there is nothing to go up from but the result.
    Raises:
        PathError: the times do not fall, or resample is below 1.
    """
    if resample < 1:
        raise PathError("resample must be 1 or more")
    moves: list[Move] = []
    for t, s in _pairs(times):
        moves.append(Move(t, s, "solve", len(moves) + 1))
        for _ in range(resample - 1 if s > 0 else 0):
            moves.append(Move(s, t, "renoise", len(moves) + 1))
            moves.append(Move(t, s, "solve", len(moves) + 1))
    return tuple(moves)


def up(times: Sequence[float]) -> tuple[Move, ...]:
    """Moves that invert, from the last time to the first: the same intervals as `down`, the other way.

    Raises:
        PathError: the times do not fall.
    """
    return tuple(Move(s, t, "solve", index) for index, (t, s) in enumerate(reversed(_pairs(times)), 1))


def _pairs(times: Sequence[float]) -> list[tuple[float, float]]:
    pairs = list(pairwise(times))
    if not pairs or any(s >= t for t, s in pairs):
        raise PathError("the times of a schedule must fall, and be two or more")
    return pairs
