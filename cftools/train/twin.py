"""Training the twin flow: simulated pairs in, the true counterfactual as the answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools import field
from cftools.carry import surface
from cftools.condition import Condition, Variable
from cftools.nets.twin import TwinArchitecture, TwinNet
from cftools.phantom.anatomy import STRUCTURES
from cftools.phantom.deform import FIELD_SHAPE, TARGETS
from cftools.phantom.twins import WELL, Aged, Family, Health
from cftools.prepare import intensity_scale
from cftools.train.loop import Product
from cftools.train.store import Store

#: Share of training pairs of which something that does not change is withheld, for scans of which it is unknown.
UNKNOWN = 0.3
#: What keeps pairs of nearly one age from counting much: normalised intensity, millimetres, and volume in standard
#: deviations between people.
LEAST_CHANGE, LEAST_MOTION, LEAST_GROWTH = 0.01, 0.1, 0.2
#: How far apart, millimetres, two points must be for their relative motion to count as much as their motion.
REACH = 6.0
#: The widest range of ages the law knows.
AGES = (5.0, 100.0)


#: What a subject can be told apart by, and the range of it that is drawn from.
AGED = {"age": Variable("age", "number", *AGES, unit="years"), "sex": Variable("sex", "category", values=("F", "M"))}


class Twins(Dataset[dict[str, Tensor]]):
    """Pairs of one subject under two conditions, as a network meets them: stripped, normalised, on the 2 mm grid.

    Item i holds both directions of pair i: image, target (2, 1, X, Y, Z); source, goal (2, V), the variables
    scaled to [-1, 1], nan where unknown; truth (2, 3, *FIELD_SHAPE), the displacement from image to target; regions
    (2, 8, *FIELD_SHAPE), fractions of TARGETS in the image; beyond (2,), what a shrinking brain uncovers (see
    `carry.surface`).

    Args:
        family: where subjects come from.
        seed: of the draws.
        cohort: number of different pairs before they repeat, mirrored and with their brightness bent at random; 0
            never repeats.
        variables: what the network is told: age and sex, and diagnosis where that changes.
        changes: those of them in which the two differ: age, diagnosis.
        store: where a cohort is kept, in half precision, 10 MB each.
    """

    def __init__(
        self,
        family: Family,
        seed: int,
        cohort: int = 0,
        variables: Mapping[str, Variable] = AGED,
        changes: Sequence[str] = ("age",),
        store: Store | None = None,
    ) -> None:
        self.family = family
        self.seed = seed
        self.cohort = cohort
        self.variables = variables
        self.changes = tuple(changes)
        self.store = store or Store()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not self.cohort:
            return self._draw(index)
        number = index % self.cohort
        made = self.store.get(number, lambda: {name: value.half() for name, value in self._draw(number).items()})
        item = {name: value.float() for name, value in made.items()}
        return _augmented(item, np.random.default_rng([self.seed, 5, index]))

    def _draw(self, number: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 1, number])
        low, high = (self.variables["age"].decode(end) for end in (-1.0, 1.0))
        ages = [float(age) for age in random.uniform(low, high, size=2)]
        subject = self.family.draw(self.seed, number)
        withheld = {"sex"} if random.random() < UNKNOWN else set()
        health = [WELL, WELL]
        if "diagnosis" in self.changes:
            drawn = random.choice(self.variables["diagnosis"].values, size=2, replace="age" in self.changes)
            health = [Health(diagnosis=str(one)) for one in drawn]
        if "age" not in self.changes:
            ages[1] = ages[0]
            withheld |= {"age"} if random.random() < UNKNOWN else set()
        first, second = (subject.at(*one) for one in zip(ages, health, strict=True))
        return _pair(first, second, [self._told(one, withheld) for one in (first, second)])

    def _told(self, aged: Aged, withheld: Collection[str]) -> Tensor:
        """What the network is told of a subject, (1, V)."""
        known = Condition({"age": aged.age, "sex": aged.subject.sex, "diagnosis": aged.health.diagnosis})
        values = [None if name in withheld else known[name] for name in self.variables]
        codes = [variable.encode(value) for variable, value in zip(self.variables.values(), values, strict=True)]
        return torch.tensor([codes])


def _augmented(item: dict[str, Tensor], random: np.random.Generator) -> dict[str, Tensor]:
    """The pair left for right, or not, and on another curve of brightness."""
    if random.random() < 0.5:
        item |= {name: item[name].flip(2) for name in ("image", "target", "truth", "regions")}
        item["truth"][:, 0] *= -1
    power = float(np.exp(random.normal(0, 0.15)))
    return item | {name: item[name] ** power for name in ("image", "target", "beyond")}


def _pair(first: Aged, second: Aged, condition: list[Tensor]) -> dict[str, Tensor]:
    images = [aged.image() * aged.strip() for aged in (first, second)]
    scales = [intensity_scale(image[0, 0].numpy()) for image in images]
    masks = [(image > 0).float() for image in images]
    brains = [(image / scale)[0, 0].numpy() for image, scale in zip(images, scales, strict=True)]
    insides = [brain > 0 for brain in brains]
    # What lies outside the scan's own brain mask is never touched, so nothing is asked there.
    targets = [images[1] * masks[0] / scales[0], images[0] * masks[1] / scales[1]]
    return {
        "image": torch.cat([image / scale for image, scale in zip(images, scales, strict=True)]).clamp(0, 1.5),
        "target": torch.cat(targets).clamp(0, 1.5),
        "source": torch.cat(condition),
        "goal": torch.cat(condition[::-1]),
        "truth": field.coarsen(torch.cat([first.to(second), second.to(first)]), FIELD_SHAPE),
        "regions": torch.cat([_regions(aged) for aged in (first, second)]),
        "beyond": torch.tensor([surface(*planes) for planes in zip(brains, insides, strict=True)]),
    }


def _regions(aged: Aged) -> Tensor:
    """Fractions of TARGETS on the field's grid, (1, 8, *FIELD_SHAPE)."""
    regions = aged.subject.anatomy.regions[:, [STRUCTURES.index(name) for name in TARGETS]]
    return field.warp(functional.avg_pool3d(regions, 2), aged.displacement)


def normalised(aged: Aged, contrast: str = "T1w") -> Tensor:
    """The stripped image as `prepare` would scale it, (1, 1, X, Y, Z)."""
    image = aged.image(contrast) * aged.strip()
    return (image / intensity_scale(image[0, 0].cpu().numpy())).clamp(0, 1.5)


def scaled_age(age: float) -> float:
    """Years to [-1, 1] over AGES."""
    low, high = AGES
    return 2 * (age - low) / (high - low) - 1


@dataclass(frozen=True)
class TwinObjective:
    """L1 to the true counterfactual, L2 to the true displacement and to the true growth, each over doing nothing's.

    loss = sum|y - x'| / sum|x - x'| + field_weight |u - u'|_H^2 / |u'|_H^2 + volume_weight |g - g'|^2 / |g'|^2
    + smooth_weight |grad v|^2, means over pairs of sums over the brain; y is the edited image, |u|_H^2 = |u|^2
    + (6 mm)^2 |grad u|^2 as gradients change volumes, and g the log growth of each of TARGETS under u, in standard
    deviations between people: a small structure counts as much there as a large one.
    """

    architecture: TwinArchitecture
    twins: Dataset[dict[str, Tensor]]
    seed: int
    field_weight: float
    volume_weight: float
    smooth_weight: float
    spread: tuple[float, ...]
    data: dict[str, Any]

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return TwinNet(self.architecture)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.twins

    def description(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "seed": self.seed,
            "field_weight": self.field_weight,
            "volume_weight": self.volume_weight,
            "smooth_weight": self.smooth_weight,
            "spread": list(self.spread),
            "data": self.data,
        }

    def product(self, network: nn.Module) -> Product:
        return Product(network)

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        velocity, residual = network(item["image"], item["source"], item["goal"])
        # Compared at 4 mm, the field's own resolution: an eighth of the voxels, and less of the noise.
        inside = (item["image"] > 0).float()
        beyond = item["beyond"].view(-1, 1, 1, 1, 1)
        filled = item["image"] + (1 - inside) * beyond
        image, target, mask, filled = (
            functional.avg_pool3d(one, 2) for one in (item["image"], item["target"], inside, filled)
        )
        with torch.autocast(image.device.type, enabled=False):
            displacement = field.exponential(velocity.float(), 5)
            offset, gain = field.resize(residual.float(), tuple(image.shape[2:])).split(1, dim=1)
            answer = ((1 + gain) * field.warp(filled, displacement) + offset) * mask
            left, nothing = (_sum((one - target).abs() * mask) for one in (answer, image))
            error = left / (nothing + LEAST_CHANGE * _sum(mask))
            inside = field.resize(mask, tuple(displacement.shape[2:]))
            truth = field.resize(item["truth"], tuple(displacement.shape[2:]))
            # Squared: the mean of what is uncertain, where absolute values would shrink to its median.
            drift = _energy(displacement - truth, inside) / (_energy(truth, inside) + LEAST_MOTION**2 * _sum(inside))
            spread = torch.tensor(self.spread, device=displacement.device)
            growth, wanted = (_growth(item["regions"], u) / spread for u in (displacement, item["truth"]))
            volume = (growth - wanted).square().mean(1) / (wanted.square().mean(1) + LEAST_GROWTH**2)
            roughness = sum(torch.diff(velocity, dim=axis).square().mean() for axis in (2, 3, 4))
            loss = error.mean() + self.field_weight * drift.mean()
            loss = loss + self.volume_weight * volume.mean() + self.smooth_weight * roughness
        return {
            "loss": loss,
            "error": error.mean(),
            "drift": drift.mean(),
            "volume": volume.mean(),
            "roughness": torch.as_tensor(roughness),
        }


def _sum(values: Tensor) -> Tensor:
    """Over all but the batch, (B,)."""
    return values.flatten(1).sum(1)


def _growth(regions: Tensor, displacement: Tensor) -> Tensor:
    """Log ratio of each region's volume after and before, (B, K)."""
    after = field.warp(regions, displacement).sum((2, 3, 4))
    return torch.log(after.clamp_min(1e-3) / regions.sum((2, 3, 4)).clamp_min(1e-3))


def _energy(displacement: Tensor, inside: Tensor) -> Tensor:
    """Sum of |u|^2 + REACH^2 |grad u|^2 over the brain, mm2, (B,)."""
    spacing = field.BOX[0] / displacement.shape[2]
    total = _sum(displacement.square() * inside)
    for axis in (2, 3, 4):
        slope = torch.diff(displacement, dim=axis) * (REACH / spacing)
        total = total + _sum(slope.square() * inside.narrow(axis, 1, inside.shape[axis] - 1))
    return total
