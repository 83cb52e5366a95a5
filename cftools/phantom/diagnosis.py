"""What a diagnosis does to volumes, beyond age: a table of ratios, with its sources."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from cftools.errors import UsageError
from cftools.phantom.deform import TARGETS
from cftools.schema import FrozenMapping, read, rest

#: The diagnosis of a healthy person: cognitively normal.
HEALTHY = "CN"


@dataclass(frozen=True)
class Diagnosis:
    """How volumes differ from those of healthy people of the same age and sex.

    Attributes:
        sources: publications, what was taken from each, and how well it is known.
        ratios: by structure; all of TARGETS.
    """

    sources: tuple[str, ...]
    ratios: Mapping[str, float] = rest()

    def __post_init__(self) -> None:
        if set(self.ratios) != set(TARGETS):
            raise ValueError(f"needs a ratio for each of {', '.join(TARGETS)}")
        if not all(0 < ratio < 10 for ratio in self.ratios.values()):
            raise ValueError("ratios are positive numbers")


@cache
def diagnoses() -> Mapping[str, Diagnosis]:
    """By name, from healthy to ill: CN, MCI (mild cognitive impairment), AD (Alzheimer's disease)."""
    file = resources.files("cftools.phantom") / "diagnosis.toml"
    healthy = Diagnosis((), FrozenMapping(dict.fromkeys(TARGETS, 1.0)))
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    return {HEALTHY: healthy} | {
        name: read(Diagnosis, one, f"{file.name}: {name}", UsageError) for name, one in table.items()
    }
