"""A structural causal model of one brain: the same subject at any age and in any health, with everything else fixed.

    age, sex, diagnosis, noise u  ->  volumes  ->  deformation  ->  tissues  ->  image
    load, lesion, noise           ->  lesions  ->  push or pull  and  tissues

volume_k = base_k * law_k(age, sex) / law_k(age of the base, its sex) * ratio_k(diagnosis) * exp(sd_k u_k). A
counterfactual changes age or health and keeps u, the identity deformation, what lesions the subject has or would have,
the scanners and their noise (Pearl's abduction, action, prediction, with the abduction known because the subject was
made).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cftools import field
from cftools.phantom.anatomy import STRUCTURES, VOXEL_ML, Anatomy
from cftools.phantom.contrast import (
    CONTRASTS,
    LESION_TISSUES,
    Scanner,
    other_scanner,
    plain_scanner,
    random_scanner,
    render,
)
from cftools.phantom.deform import (
    FIELD_SHAPE,
    TARGETS,
    Knobs,
    affine_displacement,
    random_affine,
    random_displacement,
)
from cftools.phantom.diagnosis import HEALTHY, diagnoses
from cftools.phantom.head import Head, random_head
from cftools.phantom.law import AgeingLaw
from cftools.phantom.lesion import DESTROYED, Lesion, Zones
from cftools.phantom.plaques import LOADS, plaques
from cftools.phantom.stroke import stroke
from cftools.phantom.tumour import tumour
from cftools.prepare import GRID_2MM

#: Smoothness and size, mm, of what makes one head another: two scales of random velocity.
IDENTITY_SCALES = ((32.0, 2.5), (14.0, 0.6))
#: What registration leaves: log-scale, degrees and millimetres, standard deviations.
REGISTERED = (0.01, 1.0, 0.7)
#: Intracranial volume, ml: mean and standard deviation by sex (Kruggel 2006; Buckner et al. 2004).
CRANIUM_ML = {"F": (1370.0, 105.0), "M": (1540.0, 120.0)}
#: Numbers of the streams of random draws beside the subject's own, so that one can be drawn without the others.
STREAMS = {name: number for number, name in enumerate(("T2w", "FLAIR", "T1ce", "load", "stroke", "tumour", "head"))}
#: What can be in a brain beside plaques, and how it is drawn: zones, random stream and lesion masks to a lesion.
FOCAL: dict[str, Callable[[Zones, np.random.Generator, Sequence[Path]], Lesion]] = {
    "stroke": stroke,
    "tumour": lambda zones, random, masks: tumour(zones, random),
}
#: Label of what a lesion has left nothing of, after those of STRUCTURES.
LESION_LABEL = len(STRUCTURES) + 1
LESIONS = ("none", *FOCAL)


@dataclass(frozen=True)
class Health:
    """What a subject has.

    Attributes:
        diagnosis: one of `diagnoses()`.
        load: of multiple sclerosis, one of LOADS.
        lesion: one of LESIONS.
    """

    diagnosis: str = HEALTHY
    load: str = "none"
    lesion: str = "none"

    @property
    def has_lesions(self) -> bool:
        return (self.load, self.lesion) != ("none", "none")


WELL = Health()
#: The values that each part of a subject's health can take.
HEALTH = {"diagnosis": tuple(diagnoses()), "load": tuple(LOADS), "lesion": LESIONS}


@dataclass(frozen=True)
class Subject:
    """Everything about a simulated person that does not change with age.

    Attributes:
        anatomy, knobs: the real brain it grew from.
        law: how it ages.
        sex: "F" or "M".
        noise: (8,) standard normal draws, one for each of TARGETS.
        to_base, from_base: (1, 3, *FIELD_SHAPE) identity deformation and its inverse.
        scanner: how its T1w images are taken.
        key: seed and number of the subject, from which its other scanners and its lesions are drawn.
        varied: whether those scanners are like `random_scanner`'s.
        masks: where the shapes of strokes come from; empty to make them up.
    """

    anatomy: Anatomy
    knobs: Knobs
    law: AgeingLaw
    sex: str
    noise: Tensor
    to_base: Tensor
    from_base: Tensor
    scanner: Scanner
    key: tuple[int, int] = (0, 0)
    varied: bool = False
    masks: tuple[Path, ...] = ()

    def log_ratios(self, age: float, diagnosis: str = HEALTHY) -> Tensor:
        """Log volume of each of TARGETS relative to the base anatomy, at the base's own head size; (8,)."""
        base, ratios = self.anatomy, diagnoses()[diagnosis].ratios
        return torch.tensor(
            [
                np.log(self.law.ratio(name, age, self.sex) / self.law.ratio(name, base.age, base.sex))
                + self.law.log_sd(name) * float(u)
                + np.log(ratios[name])
                for name, u in zip(TARGETS, self.noise, strict=True)
            ],
            dtype=torch.float32,
        )

    @cached_property
    def cranium(self) -> Tensor:
        """The inside of the skull, (1, 1, X, Y, Z) in 0..1 on the anatomy's grid; the same at every age."""
        whole = self.anatomy.tissues.sum(1, keepdim=True)
        return field.sample(whole, _points(self.anatomy, self.to_base))

    def at(self, age: float, health: Health = WELL) -> Aged:
        """The subject at an age and in some health."""
        velocity = self.knobs.velocity(self.knobs.solve(self.log_ratios(age, health.diagnosis)))
        lesion = self.lesion(health)
        if lesion is not None and lesion.velocity is not None:
            velocity = velocity + lesion.velocity
        return Aged(self, age, velocity, health, lesion)

    def random(self, stream: str) -> np.random.Generator:
        """The beginning of one of STREAMS."""
        return np.random.default_rng([self.key[0], 7, self.key[1], STREAMS[stream]])

    def scanned(self, contrast: str) -> Scanner:
        """How the subject's images of one of CONTRASTS are taken."""
        if contrast == self.scanner.contrast:
            return self.scanner
        return other_scanner(self.scanner, contrast, self.random(contrast), self.varied)

    def lesion(self, health: Health) -> Lesion | None:
        """The lesions the subject has, or would have, in some health; None where there are none."""
        found = []
        if health.load != "none":
            found.append(self._once(health.load, lambda: plaques(self._zones, self.random("load"), health.load)))
        if health.lesion != "none":
            draw = FOCAL[health.lesion]
            found.append(self._once(health.lesion, lambda: draw(self._zones, self.random(health.lesion), self.masks)))
        return found[0].under(found[1]) if len(found) == 2 else found[0] if found else None

    @cached_property
    def head(self) -> Head:
        """What is around the skull; the same at every age."""
        return random_head(self.cranium, self.random("head"), self.varied)

    @cached_property
    def _zones(self) -> Zones:
        return Zones(self.anatomy)

    @cached_property
    def _made(self) -> dict[str, Lesion]:
        return {}

    def _once(self, name: str, make: Callable[[], Lesion]) -> Lesion:
        """A lesion takes a second to make, and a subject is seen at several ages."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


@dataclass(frozen=True)
class Aged:
    """One subject at one age and in one health.

    Attributes:
        velocity: (1, 3, *FIELD_SHAPE), swells the base anatomy to this age and health.
        health: what the subject has.
        lesion: what grows in the base anatomy, or None.
    """

    subject: Subject
    age: float
    velocity: Tensor
    health: Health = WELL
    lesion: Lesion | None = None

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

    def image(self, contrast: str = "T1w") -> Tensor:
        """An image of one of CONTRASTS, (1, 1, X, Y, Z) on the anatomy's grid."""
        subject, scanner = self.subject, self.subject.scanned(contrast)
        points = _points(subject.anatomy, self.displacement)
        tissues = field.sample(subject.anatomy.tissues, points)
        # The skull holds still: what a smooth field leaves open at its inside is fluid, what it pushes out is cut.
        cranium = subject.cranium
        missing = (cranium - tissues.sum(1, keepdim=True)).clamp(0, 1)
        tissues = torch.cat([tissues[:, :1] + missing, tissues[:, 1:]], dim=1) * (cranium > 0.5)
        texture = field.sample(scanner.texture.to(points.device), points)
        ratio = subject.law.contrast(self.age, subject.sex) if CONTRASTS[contrast].ages else 1.0
        return render(tissues, texture, scanner, ratio, self.lesions)

    @cached_property
    def lesions(self) -> Tensor | None:
        """Fractions of LESION_TISSUES, (1, 8, X, Y, Z) on the anatomy's grid; None where there are none."""
        if self.lesion is None:
            return None
        points = _points(self.subject.anatomy, self.displacement)
        return field.sample(self.lesion.tissues, points) * (self.subject.cranium > 0.5)

    def lesion_mask(self) -> Tensor:
        """1 where more than half of a voxel is lesion, (X, Y, Z) uint8."""
        lesions = self.lesions
        if lesions is None:
            return torch.zeros(self.subject.anatomy.labels.shape, dtype=torch.uint8)
        return (lesions.sum(1)[0] > 0.5).to(torch.uint8)

    def lesion_ml(self) -> float:
        """Volume of all lesions, ml: their fractions, deformed as the image is."""
        lesions = self.lesions
        return 0.0 if lesions is None else float(lesions.sum()) * field.voxel_ml(lesions)

    def strip(self) -> Tensor:
        """1 where skull-stripping keeps the image, (1, 1, X, Y, Z)."""
        kept = self.subject.cranium > 0.5
        if self.subject.scanner.tight:
            kept &= field.sample(self.subject.anatomy.strip, _points(self.subject.anatomy, self.displacement)) > 0.5
        return kept.float()

    def brain(self) -> Tensor:
        """1 in the brain, without the fluid around it, (X, Y, Z) uint8."""
        anatomy = self.subject.anatomy
        tight = field.sample(anatomy.strip, _points(anatomy, self.displacement)) > 0.5
        return (tight & (self.subject.cranium > 0.5))[0, 0].to(torch.uint8)

    def labels(self) -> Tensor:
        """Structure labels, (X, Y, Z) uint8: 1 + index in STRUCTURES, LESION_LABEL where none is left, 0 outside."""
        labels = torch.from_numpy(self.subject.anatomy.labels.astype(np.float32))[None, None]
        moved = field.sample(labels, _points(self.subject.anatomy, self.displacement), mode="nearest")
        labels = moved[0, 0].to(torch.uint8)
        lesions = self.lesions
        if lesions is not None:
            labels[(_destroyed(lesions)[0, 0] > 0.5) & (labels > 0)] = LESION_LABEL
        return labels

    def volumes(self) -> dict[str, float]:
        """Volume of each structure, ml: fractions of the anatomy, deformed as the image is; lesions destroy some."""
        regions = self.subject.anatomy.regions
        if self.lesion is not None:
            regions = regions * (1 - field.resize(_destroyed(self.lesion.tissues), GRID_2MM.shape))
        totals = field.warp(regions, self.displacement)[0].sum((1, 2, 3)) * VOXEL_ML
        return {name: float(total) for name, total in zip(STRUCTURES, totals, strict=True)}

    def to(self, other: Aged) -> Tensor:
        """The true displacement that turns this image into the one at another age, (1, 3, *GRID_2MM.shape)."""
        return field.compose(self.inverse, other.displacement)


def _destroyed(lesions: Tensor) -> Tensor:
    return lesions[:, [LESION_TISSUES.index(name) for name in DESTROYED]].sum(1, keepdim=True)


def _points(anatomy: Anatomy, displacement: Tensor) -> Tensor:
    """Where the voxels of the anatomy's grid come from, (1, 3, X, Y, Z), millimetres."""
    shape = tuple(anatomy.tissues.shape[2:])
    return field.identity(shape, displacement.device)[None] + field.resize(displacement, shape)


def _fine(displacement: Tensor) -> Tensor:
    return field.resize(displacement, GRID_2MM.shape)


class Family:
    """Anatomies with their knobs, from which subjects are drawn.

    Args:
        anatomies: the real brains, all on one grid.
        law: how they age.
        varied: random scanners and registration errors, to train on; else plain scans in heads of natural size.
        registered: plain scans, registered to MNI152 as well as it is usually done: what a generator should make.
        first: share of the subjects that grow from the first anatomy; None, as many as from any other.
        masks: files of lesions in MNI152 space that strokes take their shape from; none to make them up.
    """

    def __init__(
        self,
        anatomies: list[Anatomy],
        law: AgeingLaw,
        varied: bool = False,
        first: float | None = None,
        masks: Sequence[Path] = (),
        registered: bool = False,
    ) -> None:
        if varied and registered:
            raise ValueError("people are varied, or as they are once registered: one of the two")
        self.masks = tuple(masks)
        self.law = law
        self.varied, self.registered = varied, registered
        rest = len(anatomies) - 1
        self.shares = None if first is None or not rest else [first, *[(1 - first) / rest] * rest]
        self.members = [(anatomy, Knobs.of(anatomy)) for anatomy in anatomies]

    def to(self, device: torch.device | str) -> Family:
        """The same, simulating on another device: to a tolerance the same subjects. Lesions and heads need the CPU."""
        family = copy(self)
        family.members = [(anatomy.to(device), knobs.to(device)) for anatomy, knobs in self.members]
        return family

    def bases(self) -> list[Subject]:
        """Each anatomy as it is, under an even scanner without noise: what subjects are deformed from."""
        still = torch.zeros(1, 3, *FIELD_SHAPE, device=self.members[0][0].tissues.device)
        means = CONTRASTS["T1w"].means
        even = Scanner(means, torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 3, 20, 24, 22), (0.0, 0.0, 0.0), 0.0, False, 0)
        drawn = torch.zeros(len(TARGETS))
        return [
            Subject(anatomy, knobs, self.law, anatomy.sex or "F", drawn, still, still, even)
            for anatomy, knobs in self.members
        ]

    def draw(self, seed: int, index: int, sex: str | None = None) -> Subject:
        """Subject number `index`; the same whatever was drawn before, or in which process."""
        random = np.random.default_rng([seed, 0, index])
        drawn_sex = ("F", "M")[random.integers(2)]
        sex = sex or drawn_sex
        anatomy, knobs = self.members[random.choice(len(self.members), p=self.shares)]
        noise = torch.from_numpy(random.standard_normal(len(TARGETS)).astype(np.float32)).clamp(-2, 2)
        head = random.standard_normal()
        jitter = random_affine(random, *(REGISTERED if self.registered else (0.02, 2.5, 1.5)))
        if not self.varied and not self.registered:
            mean, spread = CRANIUM_ML[sex]
            target = np.clip(mean + spread * head, mean - 2.5 * spread, mean + 2.5 * spread)
            cranium = float(anatomy.regions.sum()) * VOXEL_ML
            jitter[:3, :3] *= (cranium / target) ** (1 / 3)
        elif self.varied and random.random() < 0.5:  # the network must not rely on symmetry of the left and right
            jitter[:, 0] *= -1
        size = random.uniform(0.5, 2.0) if self.varied else 1.0
        device = anatomy.tissues.device
        scales = tuple((smooth, size * mm) for smooth, mm in IDENTITY_SCALES)
        shape, unshape = random_displacement(random, scales, device)
        there = affine_displacement(jitter[:3]).to(device)
        back = affine_displacement(np.linalg.inv(jitter)[:3]).to(device)
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
            (seed, index),
            self.varied,
            self.masks,
        )
