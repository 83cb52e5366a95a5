"""Images to train an autoencoder on, and the latents that one makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from cftools.diffuse import load_space
from cftools.facts import SpaceFacts
from cftools.space import Space
from cftools.train.people import People, Simulated
from cftools.train.store import Made


@dataclass(frozen=True)
class Mixed:
    """Simulated scans with real ones among them; the same number always gives the same.

    Attributes:
        real: (1, X, Y, Z) each, normalised; share: of the numbers that give one of them.
    """

    simulated: Simulated
    real: Sequence[Tensor]
    share: float

    def image(self, number: int) -> Tensor:
        """A scan, (1, X, Y, Z), normalised."""
        random = np.random.default_rng([self.simulated.seed, 10, number])
        if self.real and random.random() < self.share:
            return self.real[int(random.integers(len(self.real)))]
        return self.simulated.scans(number)["image"][0].float()


@dataclass(frozen=True, eq=False)
class Encoder:
    """An autoencoder that was trained, as what makes latents to train on: on the processor, where workers can.

    Attributes:
        name: of its weights, or their path; sha256: of them; grid: of its images, by name.
        device: where it encodes.
    """

    name: str
    space: Space
    sha256: str
    grid: str
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, name: str) -> Encoder:
        """Load weights by name or path; errors as `load_space`."""
        space, checkpoint = load_space(name)
        return cls(name, space, checkpoint.sha256, checkpoint.facts.grid.name)

    @property
    def facts(self) -> SpaceFacts:
        """Of the space."""
        return self.space.facts

    def on(self, device: torch.device) -> Encoder:
        """The same, encoding elsewhere."""
        return replace(self, space=_space_on(self.name, device), device=device)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 1, X, Y, Z) of latents (B, C, *sides) where those are, one after the other: memory of one."""
        space = self.space if latents.device.type == "cpu" else _space_on(self.name, latents.device)
        return torch.cat([space.decode(one[None].float()) for one in latents])

    def latents(self, people: People, number: int) -> Made:
        """A person's latents at each age.

        Returns:
            mean, std: (A, C, *sides); context: (A, V).
        """
        scans = people.scans(number)
        mean, std = self.encoded(scans["image"])
        return {"mean": mean, "std": std, "context": scans["context"]}

    def encoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, (B, C, *sides) each, of images (B, 1, X, Y, Z), one after the other."""
        with torch.inference_mode():
            pairs = [self.space.encode(image[None].to(self.device).float()) for image in images]
            mean, std = (torch.cat(parts).cpu().clone() for parts in zip(*pairs, strict=True))
        return mean, std


@cache
def _space_on(name: str, device: torch.device) -> Space:
    """The same space once more: what is on a GPU cannot be used in the workers, which are forked."""
    return load_space(name, device)[0]
