"""Training a network that says what a scan is made of, on simulated subjects whose tissues are known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools import field
from cftools.nets.segmenter import Segmenter, SegmenterArchitecture
from cftools.phantom.twins import Family
from cftools.train.loop import Product
from cftools.train.store import Store
from cftools.train.twin import AGES, normalised


class Segmented(Dataset[dict[str, Tensor]]):
    """Item i holds one subject: image (1, 1, X, Y, Z) and fractions (1, 1 + structures, X, Y, Z) of what is in it.

    Every second item is of someone new until the cohort is full. Images are mirrored and their brightness bent at
    random, anew each time.

    Args:
        family: where subjects come from.
        seed: of the draws.
        cohort: number of different subjects before they repeat.
        store: where they are kept, in half precision, 15 MB each.
    """

    def __init__(self, family: Family, seed: int, cohort: int, store: Store | None = None) -> None:
        self.family, self.seed, self.cohort = family, seed, cohort
        self.store = store or Store()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 11, index])
        known = min(self.cohort, index // 2 + 1)
        number = known - 1 if index % 2 == 0 and known == index // 2 + 1 else int(random.integers(known))
        item = {name: values.float() for name, values in self._subject(number).items()}
        if random.random() < 0.5:
            item = {name: values.flip(2) for name, values in item.items()}
        return item | {"image": item["image"] ** float(np.exp(random.normal(0, 0.15)))}

    def _subject(self, number: int) -> dict[str, Tensor]:
        return self.store.get(number, lambda: self.drawn(number))

    def drawn(self, number: int) -> dict[str, Tensor]:
        """What is kept of a subject."""
        age = float(np.random.default_rng([self.seed, 12, number]).uniform(*AGES))
        with torch.inference_mode():
            aged = self.family.draw(self.seed, number).at(age)
            image = normalised(aged)
            regions = field.warp(aged.subject.anatomy.regions, aged.displacement) * (image > 0)
            fractions = torch.cat([1 - regions.sum(1, keepdim=True), regions], dim=1).clamp(0, 1)
            return {"image": image.half().cpu().clone(), "fractions": fractions.half().cpu().clone()}


@dataclass(frozen=True)
class SegmenterObjective:
    """Cross-entropy of fractions, and what else is asked of them.

    Cross-entropy alone is least where each share is what it is on average. The Dice loss sharpens, and takes small
    structures for larger than they are; the volume loss asks for the sums themselves.

    Attributes:
        dice: weight of the Dice loss (Milletari et al. 2016), as MONAI has it.
        volume: weight of the mean square of log(said / true) over the structures' volumes inside the scan's mask.
    """

    architecture: SegmenterArchitecture
    subjects: Dataset[dict[str, Tensor]]
    seed: int
    data: dict[str, Any]
    dice: float = 1.0
    volume: float = 0.0

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return Segmenter(self.architecture)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.subjects

    def description(self) -> dict[str, Any]:
        weights = {"dice": self.dice, "volume": self.volume}
        return {"architecture": asdict(self.architecture), "seed": self.seed, "data": self.data, **weights}

    def product(self, network: nn.Module) -> Product:
        return Product(network)

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        said, fractions = network(item["image"]), item["fractions"]
        with torch.autocast(said.device.type, enabled=False):
            shares = said.float().log_softmax(1)
            entropy = -(fractions * shares).sum(1).mean()
            losses = {"entropy": entropy}
            if self.dice:
                losses["dice"] = DiceLoss(softmax=True)(said.float(), fractions)
            if self.volume:
                inside = item["image"] > 0
                found, true = ((one * inside).sum((2, 3, 4))[:, 1:].clamp_min(1) for one in (shares.exp(), fractions))
                losses["volume"] = (found / true).log().square().mean()
        loss = entropy + self.dice * losses.get("dice", 0.0) + self.volume * losses.get("volume", 0.0)
        return {"loss": loss, **losses}
