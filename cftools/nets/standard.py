"""Latents as a denoiser takes them: less what is usual at each place, each channel by what it does to the image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

#: Of the effect of the channel that changes an image most: the least that one is taken to have.
LEAST_GAIN = 0.05


class Standard(nn.Module):
    """Latents less what is usual at each place, in units of the image, of variance 1 over all.

    Registered scans have an average to take off: else the noise drowns what tells one brain from another long before
    it drowns what all have in common. A channel counts as much as the image changes by it, so that noise of a latent
    is noise of an image, which drowns detail first and the outline last. Were every channel brought to the same
    variance, the brightness of 8 mm would drown together with the finest detail. Rombach et al. 2022 (section 4.3.2
    and appendix G) scale all channels by one number.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, channels: int, sides: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1, channels, *sides))
        self.register_buffer("spread", torch.ones(1, channels, *[1] * len(sides)))

    def learn(self, latents: Tensor, decode: Callable[[Tensor], Tensor] | None = None) -> None:
        """Take centre and spread from latents (B, C, *sides) such as will be trained on.

        Args:
            decode: latents to images; without it all channels count alike.
        """
        centre = latents.mean(0, keepdim=True)
        apart = latents - centre
        others = (0, *range(2, latents.ndim))
        deviation = apart.square().mean(others).sqrt()
        deviation = deviation.where(deviation > 0, torch.ones_like(deviation))  # one latent alone is its own average
        gain = torch.ones_like(deviation) if decode is None else gains(decode, latents[:1], deviation)
        by_channel = gain.view(1, -1, *[1] * (latents.ndim - 2))
        size = (deviation * gain).square().mean().sqrt()
        self.centre.copy_(centre)
        self.spread.copy_(size / by_channel)

    def of(self, latents: Tensor) -> Tensor:
        """Latents (B, C, *sides) as the network takes them."""
        return (latents - self.centre) / self.spread

    def back(self, x: Tensor) -> Tensor:
        """The latents of what `of` makes of them."""
        return x * self.spread + self.centre


def gains(decode: Callable[[Tensor], Tensor], latent: Tensor, deviation: Tensor) -> Tensor:
    """How much an image changes, root mean square, by a unit of each channel of its latent, (C,).

    Args:
        decode: latents to images.
        latent: (1, C, *sides); deviation: by how much each channel is moved at random, (C,).
    """
    random = torch.Generator().manual_seed(0)
    found = []
    with torch.no_grad():
        image = decode(latent)
        for channel, much in enumerate(deviation):
            moved = latent.clone()
            moved[:, channel] += much * torch.randn(moved[:, channel].shape, generator=random).to(moved)
            found.append((decode(moved) - image).square().mean().sqrt().to(much) / much)
    gain = torch.stack(found)
    return gain.clamp_min(LEAST_GAIN * float(gain.max()))


def taken_by(network: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C, *sides) of a space as a denoiser has them: as they are, unless it takes them centred."""
    standard = getattr(network, "standard", None)
    return latents if standard is None else standard.of(latents)


def knowing(network: Any, clean: Tensor) -> Any:
    """A denoiser that is asked about a scan, whose latents these are, as the network has them, (B, C, *sides).

    One with templates keeps to that scan's: noise under another condition is easily taken for somebody else.
    """
    recognised = getattr(network, "recognised", None)
    share = recognised(clean) if recognised else None
    return network if share is None else partial(network, share=share)


def given_by(network: nn.Module, x: Tensor) -> Tensor:
    """The space's latents of what `taken_by` makes of them."""
    standard = getattr(network, "standard", None)
    return x if standard is None else standard.back(x)
