"""Latents as a denoiser takes them: less what is usual at each place, over how much they vary there."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

#: Of the spread of a channel's latents over all places: the least that one place has.
LEAST_SPREAD = 0.1


class Standard(nn.Module):
    """Latents less what is usual at each place, over how much they vary there, so that they have unit variance.

    Else the noise drowns what tells one brain from another long before it drowns what all have in common, and most of
    a training, and of a sampling, is about an average (Rombach et al. 2022, section 4.3.2 and appendix G, scale by one
    number; registered scans have an average worth taking off, and a background where nothing varies).
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, channels: int, sides: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1, channels, *sides))
        self.register_buffer("spread", torch.ones(1, channels, *sides))

    def learn(self, latents: Tensor) -> None:
        """Take centre and spread from latents (B, C, *sides) such as will be trained on."""
        centre = latents.mean(0, keepdim=True)
        variance = (latents - centre).square().mean(0, keepdim=True)
        # Neighbours vary alike, and few latents say how much; where next to nothing varies, not all is blown up.
        pool = functional.avg_pool3d if latents.ndim == 5 else functional.avg_pool2d
        variance = pool(variance, 3, stride=1, padding=1, count_include_pad=False)
        least = LEAST_SPREAD * variance.mean(tuple(range(2, latents.ndim)), keepdim=True).sqrt()
        self.centre.copy_(centre)
        self.spread.copy_(torch.maximum(variance.sqrt(), least).clamp_min(1e-3))

    def of(self, latents: Tensor) -> Tensor:
        """Latents (B, C, *sides) as the network takes them."""
        return (latents - self.centre) / self.spread

    def back(self, x: Tensor) -> Tensor:
        """The latents of what `of` makes of them."""
        return x * self.spread + self.centre


def taken_by(network: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C, *sides) of a space as a denoiser has them: as they are, unless it takes them centred."""
    standard = getattr(network, "standard", None)
    return latents if standard is None else standard.of(latents)


def given_by(network: nn.Module, x: Tensor) -> Tensor:
    """The space's latents of what `taken_by` makes of them."""
    standard = getattr(network, "standard", None)
    return x if standard is None else standard.back(x)
