"""Training the networks that score sets of images: they read age or sex, or give the features of a brain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.errors import PresetError
from cftools.nets.convolutional import ConvolutionalArchitecture, ConvolutionalReader
from cftools.prepare import GRID_2MM
from cftools.recipe import Recipe
from cftools.train.building import GRIDS, architecture_of
from cftools.train.looks import DAMAGES, bent, cut_back, damaged
from cftools.train.loop import Product
from cftools.train.people import Batches
from cftools.train.twin import AGED, AGES

if TYPE_CHECKING:
    from cftools.train.kinds import Job

#: Voxels along a side of the places whose content the features must tell.
PLACE = 16
#: The loss of that content is small beside the others: tissue differs little from brain to brain.
LAYOUT_WEIGHT = 10.0


def places_of(shape: tuple[int, ...]) -> int:
    """How many numbers describe the layout of an image of a shape, (X, Y, Z)."""
    x, y, z = (side // PLACE for side in shape)
    return 2 * x * y * z


def layout(images: Tensor) -> Tensor:
    """What is where in images (B, 1, X, Y, Z): mean and standard deviation of the intensity in each place, (B, N)."""
    mean = functional.avg_pool3d(images, PLACE)
    square = functional.avg_pool3d(images * images, PLACE)
    return torch.cat([mean, (square - mean * mean).clamp_min(1e-6).sqrt()], dim=1).flatten(1)


def reader_architecture(recipe: Recipe, conditions: Sequence[str]) -> ConvolutionalArchitecture:
    """One output for a number, one for each value of a category."""
    values = AGED[conditions[0]].values
    found: ConvolutionalArchitecture = architecture_of(ConvolutionalArchitecture, recipe, outputs=max(1, len(values)))
    return found


def features_architecture(recipe: Recipe, conditions: Sequence[str]) -> ConvolutionalArchitecture:
    """Outputs for all that the features are learned from."""
    if set(conditions) != set(AGED):
        raise PresetError(f"features are learned from {' and '.join(AGED)}: name both, or none")
    grid = GRIDS[recipe.data.get("grid", GRID_2MM.name)]
    outputs = 3 + len(DAMAGES) + places_of(grid.shape)
    found: ConvolutionalArchitecture = architecture_of(ConvolutionalArchitecture, recipe, outputs=outputs)
    return found


@dataclass(frozen=True)
class _Objective:
    """What the objectives below share.

    Attributes:
        images: items of image (S, T, 1, X, Y, Z) and context (S, T, V), as `people.Batches` gives them.
        alike: images that follow one another and differ in what is learned alone.
    """

    architecture: ConvolutionalArchitecture
    images: Dataset[dict[str, Tensor]]
    seed: int
    data: dict[str, Any]
    alike: int = 1

    @classmethod
    def of(cls, job: Job, architecture: ConvolutionalArchitecture) -> Self:
        """The objective of a job, on its people in its contrasts. Raises a PresetError as `Batches.of`."""
        batches = Batches.of(job)
        return cls(architecture, batches, job.seed, job.record, batches.alike)

    def network(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return ConvolutionalReader(self.architecture)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.images

    def description(self) -> dict[str, Any]:
        return {"architecture": asdict(self.architecture), "seed": self.seed, "data": self.data}

    def product(self, network: nn.Module) -> Product:
        return Product(network)


@dataclass(frozen=True)
class NumberObjective(_Objective):
    """Mean absolute error of the scaled age, in images whose brightness, edge and quality vary at random."""

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        images, context = item["image"].flatten(0, 1), item["context"].flatten(0, 1)
        seen, _ = _seen(cut_back(images))
        error = _mean_where_known(network(seen)[:, 0] - context[:, 0])
        return {"loss": error, "years": error * (AGES[1] - AGES[0]) / 2}


@dataclass(frozen=True)
class CategoryObjective(_Objective):
    """Cross-entropy of sex, in images whose brightness, edge and quality vary at random, alike in those of a pair."""

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        images, context = item["image"].flatten(0, 1), item["context"].flatten(0, 1)
        entropy, accuracy = _category(network(_seen_alike(images, self.alike)), context[:, 0])
        return {"loss": entropy, "accuracy": accuracy}


@dataclass(frozen=True)
class FeaturesObjective(_Objective):
    """Features that hold what a set of brains can differ in: all of these must be read off them by one linear layer.

    Age and sex, that they hold what ages do to a brain; the layout of the undamaged image, that they hold the anatomy
    whatever its cause; and how an image was damaged, that they tell a blurred or noisy brain from a sharp one, which a
    network told to see through damage would not. Brightness alone they are taught to see through.
    """

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        images, context = item["image"].flatten(0, 1), item["context"].flatten(0, 1)
        seen, damage = _seen(images)
        said = network(seen)
        age, sex, found, where = said.split([1, 2, len(DAMAGES), said.shape[1] - 3 - len(DAMAGES)], dim=1)
        years = _mean_where_known(age[:, 0] - context[:, 0])
        entropy, accuracy = _category(sex, context[:, 1])
        losses = {
            "years": years * (AGES[1] - AGES[0]) / 2,
            "accuracy": accuracy,
            "damage": (found - damage).abs().mean(),
            "layout": (where - layout(images)).abs().mean(),
        }
        loss = years + 0.5 * entropy + losses["damage"] + LAYOUT_WEIGHT * losses["layout"]
        return {"loss": loss, **losses}


def _seen(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images under other looks, and their damage, as `damaged`; not in half precision, which is damage too."""
    with torch.autocast(images.device.type, enabled=False):
        return damaged(bent(images))


def _seen_alike(images: Tensor, alike: int) -> Tensor:
    """Images cut back and damaged, every so many that follow one another by the same draws."""
    looks = []
    for place in range(alike):
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            looks.append(_seen(cut_back(images[place::alike]))[0])
    return torch.stack(looks, dim=1).flatten(0, 1)


def _category(logits: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of logits (B, K) for codes (B,) on [-1, 1], over those that are known."""
    number = ((code.nan_to_num() + 1) / 2 * (logits.shape[1] - 1)).round().long()
    unknown = code * 0
    entropy = _mean_where_known(functional.cross_entropy(logits, number, reduction="none") + unknown)
    return entropy, _mean_where_known((logits.argmax(1) == number) + unknown)


def _mean_where_known(values: Tensor) -> Tensor:
    """Mean of the absolute values that are no nan; 0 where there are none."""
    known = ~values.isnan()
    return values.abs().where(known, values.new_zeros(())).sum() / known.sum().clamp_min(1)
