"""Who networks are trained on: people by number, simulated or from a cohort, with what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.data import Dataset

from cftools.condition import Condition, Variable, encoded
from cftools.errors import PresetError
from cftools.phantom.twins import Aged, Family
from cftools.train.store import Made, Store
from cftools.train.twin import AGES, normalised

if TYPE_CHECKING:
    from cftools.train.kinds import Job


class People(Protocol):
    """People by number; the same number always gives the same.

    Attributes:
        size: number of different people.
    """

    @property
    def size(self) -> int: ...

    def scans(self, number: int) -> Made:
        """A person at one age or at several.

        Returns:
            image: (A, 1, X, Y, Z) half precision, normalised as `prepare` does; context: (A, V), the values of the
            variables on [-1, 1], nan where unknown.
        """

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """The least and the greatest value of each variable among them, on [-1, 1]."""

    def pick(self, random: np.random.Generator, known: int) -> int:
        """One of the first `known`, as a mini-batch draws them."""


@dataclass(frozen=True, eq=False)
class Simulated:
    """Simulated subjects, each at some ages of its own.

    Attributes:
        family: where subjects come from; seed: of the draws; ages: how many of each subject, drawn evenly over AGES.
        size: number of different subjects.
        contrasts: each subject is scanned in one of these.
        variables: what is told of it.
        pooled: voxels of the anatomies' grid along a side of the images'.
        paired: at each age a woman and a man follow one another who are alike but for that.
        store: where the images are kept.
    """

    family: Family
    seed: int
    ages: int = 1
    size: int = 1
    contrasts: tuple[str, ...] = ("T1w",)
    variables: Mapping[str, Variable] = field(default_factory=dict)
    pooled: int = 1
    paired: bool = False
    store: Store = field(default_factory=Store)

    def subject(self, number: int) -> list[Aged]:
        """A subject at its ages."""
        drawn = np.random.default_rng([self.seed, 8, number]).uniform(*AGES, size=self.ages)
        people = [self.family.draw(self.seed, number, sex) for sex in ("FM" if self.paired else (None,))]
        return [person.at(float(age)) for age in drawn for person in people]

    def scans(self, number: int) -> Made:
        made = self.store.get(number, lambda: self._made(number))
        known = [Condition({"age": float(age), "sex": "FM"[int(sex)]}) for age, sex in made["who"]]
        return {"image": made["image"], "context": torch.tensor([encoded(one, self.variables) for one in known])}

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        return ((-1.0, 1.0),) * len(self.variables)

    def pick(self, random: np.random.Generator, known: int) -> int:
        return int(random.integers(known))

    def unlike(self, count: int) -> Tensor:
        """Scans of people unlike one another, (count, 1, X, Y, Z): the anatomies as they are, then subjects."""
        with torch.inference_mode():
            own = [normalised(subject.at(subject.anatomy.age), "T1w") for subject in self.family.bases()[:count]]
            own = [functional.avg_pool3d(image, self.pooled) if self.pooled > 1 else image for image in own]
        more = [self.scans(number)["image"][:1] for number in range(count - len(own))]
        return torch.cat([*(image.half().cpu().clone() for image in own), *more])

    def _made(self, number: int) -> Made:
        contrast = self.contrasts[int(np.random.default_rng([self.seed, 9, number]).integers(len(self.contrasts)))]
        with torch.inference_mode():
            people = self.subject(number)
            image = torch.cat([normalised(aged, contrast) for aged in people])
            image = functional.avg_pool3d(image, self.pooled) if self.pooled > 1 else image
            who = torch.tensor([[aged.age, "FM".index(aged.subject.sex)] for aged in people], dtype=torch.float64)
            return {"image": image.half().cpu().clone(), "who": who}


@dataclass(frozen=True, eq=False)
class Portrait:
    """A scan as it is, (1, X, Y, Z), normalised on the grid, and what is known of who is on it.

    Attributes:
        subject: who that is, as other scans of theirs say too; "" for somebody of their own.
    """

    image: Tensor
    condition: Condition
    subject: str = ""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans of a cohort as they are, drawn so that every decade of age comes as often as another.

    Attributes:
        variables: what is told of a scan.
    """

    portraits: Sequence[Portrait]
    variables: Mapping[str, Variable]

    @property
    def size(self) -> int:
        return len(self.portraits)

    def scans(self, number: int) -> Made:
        one = self.portraits[number]
        return {"image": one.image[None].half(), "context": torch.tensor([encoded(one.condition, self.variables)])}

    @cached_property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """Those of -1 to 1 of a variable that is known of nobody."""
        told = np.array([encoded(one.condition, self.variables) for one in self.portraits])
        known = [column[~np.isnan(column)] for column in told.T]
        return tuple((float(one.min()), float(one.max())) if len(one) else (-1.0, 1.0) for one in known)

    def pick(self, random: np.random.Generator, known: int) -> int:
        decades = {decade: [n for n in numbers if n < known] for decade, numbers in self._decades.items()}
        there = [numbers for numbers in decades.values() if numbers]
        numbers = there[int(random.integers(len(there)))]
        return numbers[int(random.integers(len(numbers)))]

    def unlike(self, count: int) -> Tensor:
        """As above: evenly through the cohort by age, from the first again where there are too few."""
        ages = [one.condition.get("age") for one in self.portraits]
        order = sorted(range(self.size), key=lambda n: (not isinstance(ages[n], float), ages[n] or 0.0, n))
        some = [order[n * self.size // count] if count <= self.size else order[n % self.size] for n in range(count)]
        return torch.stack([self.portraits[n].image.half() for n in some])

    @cached_property
    def _decades(self) -> dict[int | None, list[int]]:
        """Numbers of the scans by decade of age; those of unknown age are one more."""
        found: dict[int | None, list[int]] = {}
        for number, one in enumerate(self.portraits):
            age = one.condition.get("age")
            found.setdefault(int(age // 10) if isinstance(age, float) else None, []).append(number)
        return found


def joined(random: np.random.Generator, people: People, index: int, count: int, every: int) -> list[int]:
    """Numbers of those whom step `index` meets: anyone known so far; one more joins every few steps.

    Nothing but the first few has to be made before the first step.
    """
    known = min(people.size, index // every + 1)
    numbers = [people.pick(random, known) for _ in range(count)]
    if index % every == 0 and known == index // every + 1:
        numbers[0] = known - 1
    return numbers


class Batches(Dataset[Made]):
    """Item i holds some people at some ages, mirrored at random: image (S, T, 1, X, Y, Z), context (S, T, V).

    Args:
        subjects: S; together: T, ages of each, all different.
        every: steps after which another person joins.
        alike: scans of a person that follow one another and come together, so that there are T times as many.
    """

    def __init__(
        self, people: People, seed: int, subjects: int, together: int = 1, every: int = 1, alike: int = 1
    ) -> None:
        self.people, self.seed, self.alike = people, seed, alike
        self.subjects, self.together, self.every = subjects, together, every

    @classmethod
    def of(cls, job: Job) -> Batches:
        """As a job's data say, of its people in its contrasts.

        Raises:
            PresetError: a step has more ages of a subject than are made, or an odd number of paired subjects.
        """
        ages, subjects, together, every = (int(job.data[name]) for name in ("ages", "subjects", "together", "every"))
        if together > ages:
            raise PresetError(f"data.together: {together} is more than data.ages, {ages}")
        alike = 2 if job.paired else 1
        if subjects % alike:
            raise PresetError(f"data.subjects: {subjects} cannot be women and men alike but for that: an even number")
        return cls(job.people(ages, job.data["contrasts"]), job.seed, subjects // alike, together, every, alike)

    def __getitem__(self, index: int) -> Made:
        random = np.random.default_rng([self.seed, 15, index])
        rows = []
        for number in joined(random, self.people, index, self.subjects, self.every):
            scans = self.people.scans(number)
            chosen = random.permutation(len(scans["image"]) // self.alike)[: self.together]
            some = torch.from_numpy(np.add.outer(chosen * self.alike, np.arange(self.alike)).ravel())
            row = {name: values[some].float() for name, values in scans.items()}
            rows.append(row | {"image": row["image"].flip(2)} if random.random() < 0.5 else row)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
