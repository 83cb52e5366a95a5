"""Training the twin flow: simulated pairs in, the true counterfactual as the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools import field
from cftools.nets.twin import TwinArchitecture, TwinNet
from cftools.phantom.twins import Aged, Family, Subject
from cftools.prepare import intensity_scale

#: Share of training pairs whose sex is withheld, so that the flow also works where it is not known.
UNKNOWN_SEX = 0.3
#: The widest range of ages the law knows.
AGES = (5.0, 100.0)


class Twins(Dataset[dict[str, Tensor]]):
    """Pairs of one subject at two ages, as a network meets them: stripped, normalised, on the 2 mm grid.

    Item i holds both directions of pair i: image, target (2, 1, X, Y, Z); source, goal (2, 2), age and sex scaled
    to [-1, 1], nan where unknown; truth (2, 3, *FIELD_SHAPE), the displacement from image to target.

    Args:
        family: where subjects come from.
        seed: of the draws.
        cohort: number of different pairs before they repeat, kept in memory in half precision; 0 never repeats.
    """

    def __init__(self, family: Family, seed: int, cohort: int = 0) -> None:
        self.family = family
        self.seed = seed
        self.cohort = cohort
        self._made: dict[int, dict[str, Tensor]] = {}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not self.cohort:
            return self._draw(index)
        number = index % self.cohort
        if number not in self._made:
            self._made[number] = {name: value.half() for name, value in self._draw(number).items()}
        return {name: value.float() for name, value in self._made[number].items()}

    def _draw(self, number: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 1, number])
        ages = random.uniform(*AGES, size=2)
        subject = self.family.draw(self.seed, number)
        known = random.random() >= UNKNOWN_SEX
        first, second = (subject.at(float(age)) for age in ages)
        return _pair(subject, first, second, known)


def _pair(subject: Subject, first: Aged, second: Aged, known: bool) -> dict[str, Tensor]:
    images = [aged.image() * aged.strip() for aged in (first, second)]
    scales = [intensity_scale(image[0, 0].numpy()) for image in images]
    masks = [(image > 0).float() for image in images]
    sex = {"F": -1.0, "M": 1.0}[subject.sex] if known else float("nan")
    condition = [torch.tensor([[scaled_age(aged.age), sex]]) for aged in (first, second)]
    # What lies outside the scan's own brain mask is never touched, so nothing is asked there.
    targets = [images[1] * masks[0] / scales[0], images[0] * masks[1] / scales[1]]
    return {
        "image": torch.cat([image / scale for image, scale in zip(images, scales, strict=True)]).clamp(0, 1.5),
        "target": torch.cat(targets).clamp(0, 1.5),
        "mask": torch.cat(masks),
        "source": torch.cat(condition),
        "goal": torch.cat(condition[::-1]),
        "truth": torch.cat([first.to(second), second.to(first)]),
    }


def normalised(aged: Aged) -> Tensor:
    """The stripped image as `prepare` would scale it, (1, 1, X, Y, Z)."""
    image = aged.image() * aged.strip()
    return (image / intensity_scale(image[0, 0].numpy())).clamp(0, 1.5)


def scaled_age(age: float) -> float:
    """Years to [-1, 1] over AGES."""
    low, high = AGES
    return 2 * (age - low) / (high - low) - 1


@dataclass(frozen=True)
class TwinObjective:
    """L1 to the true counterfactual, L2 to the true displacement, and smoothness of the velocity.

    loss = |warp(x, exp v) + r - x'| + field_weight |exp v - u|^2 + smooth_weight |grad v|^2, means over the brain;
    displacements in millimetres.
    """

    architecture: TwinArchitecture
    twins: Dataset[dict[str, Tensor]]
    seed: int
    field_weight: float
    smooth_weight: float
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
            "smooth_weight": self.smooth_weight,
            "data": self.data,
        }

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        velocity, residual = network(item["image"], item["source"], item["goal"])
        # Compared at 4 mm, the field's own resolution: an eighth of the voxels, and less of the noise.
        image, target, mask = (functional.avg_pool3d(item[name], 2) for name in ("image", "target", "mask"))
        with torch.autocast(image.device.type, enabled=False):
            shape = tuple(image.shape[2:])
            displacement = field.exponential(velocity.float(), 5)
            answer = field.warp(image, displacement) + field.resize(residual.float(), shape) * mask
            error = ((answer - target).abs() * mask).sum() / mask.sum()
            nothing = ((image - target).abs() * mask).sum() / mask.sum()
            inside = field.resize(mask, tuple(displacement.shape[2:]))
            truth = field.resize(item["truth"], tuple(displacement.shape[2:]))
            # Squared: the mean of what is uncertain, where absolute values would shrink to its median.
            drift = ((displacement - truth).square() * inside).sum() / inside.sum() / 3
            roughness = sum(torch.diff(velocity, dim=axis).square().mean() for axis in (2, 3, 4))
            loss = error + self.field_weight * drift + self.smooth_weight * roughness
        return {
            "loss": loss,
            "error": error,
            "nothing": nothing,
            "drift": drift,
            "roughness": torch.as_tensor(roughness),
        }
