"""Training a network that reads age off a scan, on simulated subjects."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.nets.regressor import Regressor, RegressorArchitecture
from cftools.phantom.anatomy import TEMPLATE
from cftools.phantom.twins import Family
from cftools.train.loop import Product
from cftools.train.store import Store
from cftools.train.twin import AGES, normalised, scaled_age

#: Subjects in one step, each at two ages.
SUBJECTS = 8


class AgedBrains(Dataset[dict[str, Tensor]]):
    """Item i holds SUBJECTS subjects at two ages: image (16, 1, X, Y, Z) and value (16,), age scaled to [-1, 1].

    Two ages of one subject, rather than two subjects, leave the network only ageing to tell them apart by. Who grows
    from a real person's scan differs from the average as that person does, and no further: twice the spread between
    people would teach the network to say the mean of all ages. Images are mirrored and their brightness bent at random,
    anew each time.

    Args:
        family: where subjects come from.
        seed: of the draws.
        cohort: number of different subjects before they repeat; 0 never repeats.
        store: where those are kept, in half precision.
    """

    def __init__(self, family: Family, seed: int, cohort: int = 0, store: Store | None = None) -> None:
        self.family = family
        self.seed = seed
        self.cohort = cohort
        self.store = store or Store()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 4, index])
        if self.cohort:
            # Those made in the first rounds are kept: each step brings one new subject until the cohort is full.
            known = min(self.cohort, SUBJECTS + index)
            numbers = random.integers(known, size=SUBJECTS)
            if index <= self.cohort - SUBJECTS:
                numbers[0] = known - 1
        else:
            numbers = index * SUBJECTS + np.arange(SUBJECTS)
        people = [self._subject(int(number)) for number in numbers]
        images = []
        for person in people:
            image = person["image"].float()
            if random.random() < 0.5:
                image = image.flip(2)
            images.append(image.clamp_min(0) ** float(np.exp(random.normal(0, 0.15))))
        return {"image": torch.cat(images), "value": torch.cat([person["value"] for person in people])}

    def _subject(self, number: int) -> dict[str, Tensor]:
        return self.store.get(number, lambda: self._drawn(number)) if self.cohort else self._drawn(number)

    def _drawn(self, number: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 3, number])
        ages = [float(age) for age in random.uniform(*AGES, size=2)]
        subject = self.family.draw(self.seed, number)
        if subject.anatomy.name != TEMPLATE:
            subject = replace(subject, noise=torch.zeros_like(subject.noise))
        images = torch.cat([normalised(subject.at(age)) for age in ages]).half()
        return {"image": images, "value": torch.tensor([scaled_age(age) for age in ages])}


@dataclass(frozen=True)
class ReaderObjective:
    """Mean absolute error of the scaled value."""

    architecture: RegressorArchitecture
    brains: AgedBrains
    seed: int
    data: dict[str, Any]

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return Regressor(self.architecture)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.brains

    def description(self) -> dict[str, Any]:
        return {"architecture": asdict(self.architecture), "seed": self.seed, "data": self.data}

    def product(self, network: nn.Module) -> Product:
        return Product(network)

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        error = (network(item["image"]) - item["value"]).abs().mean()
        return {"loss": error, "years": error * (AGES[1] - AGES[0]) / 2}
