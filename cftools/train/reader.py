"""Training a network that reads age off a scan, on simulated subjects."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.nets.regressor import Regressor, RegressorArchitecture
from cftools.phantom.twins import Family
from cftools.train.twin import AGES, normalised, scaled_age


class AgedBrains(Dataset[dict[str, Tensor]]):
    """Item i holds one subject at two ages: image (2, 1, X, Y, Z) and value (2,), age scaled to [-1, 1].

    Two ages of one subject, rather than two subjects, leave the network only ageing to tell them apart by.
    """

    def __init__(self, family: Family, seed: int) -> None:
        self.family = family
        self.seed = seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 3, index])
        ages = [float(age) for age in random.uniform(*AGES, size=2)]
        subject = self.family.draw(self.seed, index)
        images = [normalised(subject.at(age)) for age in ages]
        return {"image": torch.cat(images), "value": torch.tensor([scaled_age(age) for age in ages])}


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

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        error = (network(item["image"]) - item["value"]).abs().mean()
        return {"loss": error, "years": error * (AGES[1] - AGES[0]) / 2}
