"""Simulated scans to train on, and their latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cftools.condition import Condition, Variable
from cftools.diffuse import load_space
from cftools.facts import SpaceFacts
from cftools.phantom.twins import Aged, Family
from cftools.space import Space
from cftools.train.twin import AGES, normalised


@dataclass(frozen=True)
class Scans:
    """Simulated subjects by number, each at some ages of its own; the same number always gives the same.

    Attributes:
        family: where subjects come from; seed: of the draws; ages: how many of each subject.
        contrasts: each subject is scanned in one of these.
    """

    family: Family
    seed: int
    ages: int = 1
    contrasts: tuple[str, ...] = ("T1w",)

    def subject(self, number: int) -> list[Aged]:
        """A subject at its ages, drawn evenly over AGES."""
        drawn = np.random.default_rng([self.seed, 8, number]).uniform(*AGES, size=self.ages)
        person = self.family.draw(self.seed, number)
        return [person.at(float(age)) for age in drawn]

    def image(self, number: int) -> Tensor:
        """The first scan of a subject, (1, X, Y, Z), normalised."""
        contrast = self.contrasts[int(np.random.default_rng([self.seed, 9, number]).integers(len(self.contrasts)))]
        with torch.inference_mode():
            return normalised(self.subject(number)[0], contrast)[0].clone()


@dataclass(frozen=True)
class Mixed:
    """Simulated scans with real ones among them; the same number always gives the same.

    Attributes:
        real: (1, X, Y, Z) each, normalised; share: of the numbers that give one of them.
    """

    scans: Scans
    real: Sequence[Tensor]
    share: float

    def image(self, number: int) -> Tensor:
        """A scan, (1, X, Y, Z), normalised."""
        random = np.random.default_rng([self.scans.seed, 10, number])
        if self.real and random.random() < self.share:
            return self.real[int(random.integers(len(self.real)))]
        return self.scans.image(number)


@dataclass(frozen=True, eq=False)
class Encoder:
    """An autoencoder that was trained, as what makes latents to train on.

    Attributes:
        sha256: of its weights.
    """

    space: Space
    sha256: str

    @classmethod
    def of(cls, name: str) -> Encoder:
        """Load weights by name or path; errors as `load_space`."""
        space, checkpoint = load_space(name)
        return cls(space, checkpoint.sha256)

    @property
    def facts(self) -> SpaceFacts:
        """Of the space."""
        return self.space.facts

    def latents(self, scans: Scans, number: int, variables: Mapping[str, Variable]) -> dict[str, Tensor]:
        """A subject's latents at its ages.

        Returns:
            mean, std: (A, C, *sides); context: (A, V), the values of the variables on [-1, 1].
        """
        with torch.inference_mode():
            people = scans.subject(number)
            pairs = [self.space.encode(normalised(aged)) for aged in people]
            mean, std = (torch.cat(parts).clone() for parts in zip(*pairs, strict=True))
        told = [Condition({"age": aged.age, "sex": aged.subject.sex}) for aged in people]
        rows = [[variable.encode(one.get(name)) for name, variable in variables.items()] for one in told]
        return {"mean": mean, "std": std, "context": torch.tensor(rows)}
