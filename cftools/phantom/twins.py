"""A structural causal model of one brain: the same subject at any age, with everything else fixed.

    age, sex, noise u  ->  volumes  ->  deformation  ->  tissues  ->  image

volume_k(age) = base_k * law_k(age, sex) / law_k(age of the base, its sex) * exp(sd_k u_k). A counterfactual changes
the age and keeps u, the identity deformation, the scanner and its noise (Pearl's abduction, action, prediction,
with the abduction known because the subject was made).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cftools import field
from cftools.phantom.anatomy import STRUCTURES, VOXEL_ML, Anatomy
from cftools.phantom.contrast import Scanner, plain_scanner, random_scanner, render
from cftools.phantom.deform import (
    TARGETS,
    Knobs,
    affine_displacement,
    random_affine,
    random_displacement,
)
from cftools.phantom.law import AgeingLaw
from cftools.prepare import GRID_2MM

#: Smoothness and size, mm, of what makes one head another: two scales of random velocity.
IDENTITY_SCALES = ((32.0, 2.5), (14.0, 0.6))
#: Intracranial volume, ml: mean and standard deviation by sex (Kruggel 2006; Buckner et al. 2004).
CRANIUM_ML = {"F": (1370.0, 105.0), "M": (1540.0, 120.0)}


@dataclass(frozen=True)
class Subject:
    """Everything about a simulated person that does not change with age.

    Attributes:
        anatomy, knobs: the real brain it grew from.
        law: how it ages.
        sex: "F" or "M".
        noise: (8,) standard normal draws, one for each of TARGETS.
        to_base, from_base: (1, 3, *FIELD_SHAPE) identity deformation and its inverse.
        scanner: how its images are taken.
    """

    anatomy: Anatomy
    knobs: Knobs
    law: AgeingLaw
    sex: str
    noise: Tensor
    to_base: Tensor
    from_base: Tensor
    scanner: Scanner

    def log_ratios(self, age: float) -> Tensor:
        """Log volume of each of TARGETS relative to the base anatomy, at the base's own head size; (8,)."""
        base = self.anatomy
        return torch.tensor(
            [
                np.log(self.law.ratio(name, age, self.sex) / self.law.ratio(name, base.age, base.sex))
                + self.law.log_sd(name) * float(u)
                for name, u in zip(TARGETS, self.noise, strict=True)
            ],
            dtype=torch.float32,
        )

    @cached_property
    def cranium(self) -> Tensor:
        """The inside of the skull, (1, 1, X, Y, Z) in 0..1 on the anatomy's grid; the same at every age."""
        whole = self.anatomy.tissues.sum(1, keepdim=True)
        return field.sample(whole, _points(self.anatomy, self.to_base))

    def at(self, age: float) -> Aged:
        """The subject at an age."""
        return Aged(self, age, self.knobs.velocity(self.knobs.solve(self.log_ratios(age))))


@dataclass(frozen=True)
class Aged:
    """One subject at one age.

    Attributes:
        velocity: (1, 3, *FIELD_SHAPE), swells the base anatomy to this age.
    """

    subject: Subject
    age: float
    velocity: Tensor

    @cached_property
    def displacement(self) -> Tensor:
        """Pull-back from this subject at this age to the base anatomy, (1, 3, *GRID_2MM.shape), millimetres.

        At 2 mm: every interpolation at 4 mm takes its share of the growth.
        """
        return field.compose(field.exponential(-self.velocity), _fine(self.subject.to_base))

    @cached_property
    def inverse(self) -> Tensor:
        """Pull-back from the base anatomy to this subject, (1, 3, *GRID_2MM.shape)."""
        return field.compose(self.subject.from_base, _fine(field.exponential(self.velocity)))

    def image(self) -> Tensor:
        """The T1w image, (1, 1, X, Y, Z) on the anatomy's grid."""
        subject = self.subject
        points = _points(subject.anatomy, self.displacement)
        tissues = field.sample(subject.anatomy.tissues, points)
        # The skull holds still: what a smooth field leaves open at its inside is fluid, what it pushes out is cut.
        cranium = subject.cranium
        missing = (cranium - tissues.sum(1, keepdim=True)).clamp(0, 1)
        tissues = torch.cat([tissues[:, :1] + missing, tissues[:, 1:]], dim=1) * (cranium > 0.5)
        texture = field.sample(subject.scanner.texture, points)
        contrast = subject.law.contrast(self.age, subject.sex)
        return render(tissues, texture, subject.scanner, contrast)

    def strip(self) -> Tensor:
        """1 where skull-stripping keeps the image, (1, 1, X, Y, Z)."""
        kept = self.subject.cranium > 0.5
        if self.subject.scanner.tight:
            kept &= field.sample(self.subject.anatomy.strip, _points(self.subject.anatomy, self.displacement)) > 0.5
        return kept.float()

    def labels(self) -> Tensor:
        """Structure labels, (X, Y, Z) uint8: 1 + index in STRUCTURES, 0 outside."""
        labels = torch.from_numpy(self.subject.anatomy.labels.astype(np.float32))[None, None]
        moved = field.sample(labels, _points(self.subject.anatomy, self.displacement), mode="nearest")
        return moved[0, 0].to(torch.uint8)

    def volumes(self) -> dict[str, float]:
        """Volume of each structure, ml: fractions of the anatomy, deformed as the image is."""
        totals = field.warp(self.subject.anatomy.regions, self.displacement)[0].sum((1, 2, 3)) * VOXEL_ML
        return {name: float(total) for name, total in zip(STRUCTURES, totals, strict=True)}

    def to(self, other: Aged) -> Tensor:
        """The true displacement that turns this image into the one at another age, (1, 3, *GRID_2MM.shape)."""
        return field.compose(self.inverse, other.displacement)


def _points(anatomy: Anatomy, displacement: Tensor) -> Tensor:
    """Where the voxels of the anatomy's grid come from, (1, 3, X, Y, Z), millimetres."""
    shape = tuple(anatomy.tissues.shape[2:])
    return field.identity(shape)[None] + field.resize(displacement, shape)


def _fine(displacement: Tensor) -> Tensor:
    return field.resize(displacement, GRID_2MM.shape)


class Family:
    """Anatomies with their knobs, from which subjects are drawn.

    Args:
        anatomies: the real brains, all on one grid.
        law: how they age.
        varied: random scanners and registration errors, to train on; else plain scans in heads of natural size.
        first: share of the subjects that grow from the first anatomy; None, as many as from any other.
    """

    def __init__(
        self, anatomies: list[Anatomy], law: AgeingLaw, varied: bool = False, first: float | None = None
    ) -> None:
        self.law = law
        self.varied = varied
        rest = len(anatomies) - 1
        self.shares = None if first is None or not rest else [first, *[(1 - first) / rest] * rest]
        self.members = [(anatomy, Knobs.of(anatomy)) for anatomy in anatomies]

    def draw(self, seed: int, index: int, sex: str | None = None) -> Subject:
        """Subject number `index`; the same whatever was drawn before, or in which process."""
        random = np.random.default_rng([seed, 0, index])
        drawn_sex = ("F", "M")[random.integers(2)]
        sex = sex or drawn_sex
        anatomy, knobs = self.members[random.choice(len(self.members), p=self.shares)]
        noise = torch.from_numpy(random.standard_normal(len(TARGETS)).astype(np.float32)).clamp(-2, 2)
        head = random.standard_normal()
        jitter = random_affine(random, 0.02, 2.5, 1.5)
        if not self.varied:
            mean, spread = CRANIUM_ML[sex]
            target = np.clip(mean + spread * head, mean - 2.5 * spread, mean + 2.5 * spread)
            cranium = float(anatomy.regions.sum()) * VOXEL_ML
            jitter[:3, :3] *= (cranium / target) ** (1 / 3)
        elif random.random() < 0.5:  # the network must not rely on symmetry of the left and right
            jitter[:, 0] *= -1
        size = random.uniform(0.5, 2.0) if self.varied else 1.0
        shape, unshape = random_displacement(random, tuple((smooth, size * mm) for smooth, mm in IDENTITY_SCALES))
        there = affine_displacement(jitter[:3])
        back = affine_displacement(np.linalg.inv(jitter)[:3])
        scanner = random_scanner(random) if self.varied else plain_scanner(random)
        return Subject(
            anatomy,
            knobs,
            self.law,
            sex,
            noise,
            field.compose(shape, there),
            field.compose(back, unshape),
            scanner,
        )
