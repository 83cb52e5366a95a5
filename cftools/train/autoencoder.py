"""Training the autoencoder behind latent diffusion on patches of scans, simulated and real."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.facts import SpaceFacts
from cftools.nets.autoencoder import Adversaries, Autoencoder, AutoencoderArchitecture, Critic
from cftools.space import VaeSpace
from cftools.train.loop import Product
from cftools.train.store import Store

#: Images whose latents are measured for their spread.
SPREAD_FROM = 16


class Images(Protocol):
    """Whole images, by number; the same number always gives the same."""

    def __call__(self, number: int) -> Tensor:
        """(1, X, Y, Z), normalised as `prepare` does; 0 outside the brain."""


class Patches(Dataset[dict[str, Tensor]]):
    """Item i holds `count` patches (count, 1, *[side] * 3) of one image, mirrored at random, most of it brain.

    Args:
        images: where they come from; seed: of the cuts.
        cohort: number of different images before they repeat.
        side: of a patch, voxels, a multiple of the autoencoder's factor.
        store: where they are kept, in half precision.
    """

    def __init__(
        self, images: Images, seed: int, cohort: int, side: int, count: int, store: Store | None = None
    ) -> None:
        self.images, self.seed, self.cohort, self.side, self.count = images, seed, cohort, side, count
        self.store = store or Store()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 6, index])
        # Every second step brings a new image until the cohort is full; the others look again at one that is known.
        known = min(self.cohort, index // 2 + 1)
        number = known - 1 if index % 2 == 0 and index // 2 < self.cohort else int(random.integers(known))
        image = self.store.get(number, lambda: {"image": self.images(number).half()})["image"].float()
        if random.random() < 0.5:
            image = image.flip(1)
        return {"image": torch.stack([self._cut(image, random) for _ in range(self.count)])}

    def _cut(self, image: Tensor, random: np.random.Generator) -> Tensor:
        """A patch with brain in its middle, where there is any in a few tries."""
        sides = [min(self.side, n) for n in image.shape[1:]]
        for _ in range(8):
            start = [int(random.integers(n - side + 1)) for n, side in zip(image.shape[1:], sides, strict=True)]
            patch = image
            for axis, (first, side) in enumerate(zip(start, sides, strict=True), start=1):
                patch = patch.narrow(axis, first, side)
            if float(patch[:, sides[0] // 2, sides[1] // 2, sides[2] // 2]) > 0:
                break
        return patch


@dataclass(frozen=True)
class AutoencoderObjective:
    """L1 + kl KL(N(mean, std) | N(0, 1)) + adversarial (D(y) - 1)^2, and the critic's own (D(x) - 1)^2 + D(y)^2.

    Least squares (Mao et al. 2017), as in Pinaya et al. 2022. Both sides take one step at once, from one sum of
    losses: what the critic says of y reaches the autoencoder alone, and what it learns the critic alone.
    """

    architecture: AutoencoderArchitecture
    patches: Dataset[dict[str, Tensor]]
    images: Images
    sides: tuple[int, ...]
    seed: int
    weights: dict[str, float]
    data: dict[str, Any]
    divisor: int = 4

    def network(self) -> Adversaries:
        torch.manual_seed(self.seed)
        return Adversaries(Autoencoder(self.architecture), Critic(self.architecture.dimensions))

    def product(self, network: nn.Module) -> Product:
        """The autoencoder without its critic, and the scale that brings its latents to unit spread."""
        assert isinstance(network, Adversaries)
        kept = network.kept.eval()
        facts = SpaceFacts("vae", self.sides, self.architecture.latent_channels, self.architecture.factor, self.divisor)
        bare = VaeSpace(facts, kept)
        device = next(kept.parameters()).device
        with torch.inference_mode():
            spread = [bare.encode(self.images(number)[None].to(device))[0].std() for number in range(SPREAD_FROM)]
        return Product(kept, space=replace(facts, scale=round(1 / float(torch.stack(spread).mean()), 4)))

    def preview(self, network: nn.Module, item: dict[str, Tensor]) -> Tensor:
        """Patches and what the autoencoder makes of them, (patches, 2, X, Y, Z)."""
        assert isinstance(network, Adversaries)
        x = item["image"]
        return torch.cat([x, network.kept.decode(network.kept.encode(x)[0]).float()], dim=1)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.patches

    def description(self) -> dict[str, Any]:
        return {
            "architecture": asdict(self.architecture),
            "seed": self.seed,
            "losses": self.weights,
            "data": self.data,
        }

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        assert isinstance(network, Adversaries)
        x = item["image"]
        mean, std = network.kept.encode(x)
        y = network.kept.decode(mean + std * torch.randn_like(std))
        with torch.autocast(x.device.type, enabled=False):
            mean, std, y = mean.float(), std.float(), y.float()
            l1 = functional.l1_loss(y, x)
            # Summed over the latent and divided by the images, as the papers' weight of 1e-7 is meant.
            kl = 0.5 * (mean**2 + std**2 - 2 * std.log() - 1).sum() / len(x)
            loss = self.weights["l1"] * l1 + self.weights["kl"] * kl
            found = {"l1": l1, "kl": kl}
            if self.weights["adversarial"]:
                # Not in bfloat16: there torch 2.13 on a CPU may give nan gradients where few voxels are left.
                fooled = (network.judged(y) - 1).square().mean()
                told = (network.critic(x) - 1).square().mean() + network.critic(y.detach()).square().mean()
                loss = loss + self.weights["adversarial"] * fooled + told
                found |= {"fooled": fooled, "critic": told}
        return {"loss": loss, **found}
