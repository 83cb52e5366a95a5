"""The one-pass generator: a code and a condition to an image, and the encoder that finds a scan's code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from cftools.nets import wavelet
from cftools.nets.unet import Tokens

#: Adam moves a number by the rate a step, whatever it is for: bands, of order 1, would be learned after all else.
USUAL_SCALE = 10.0


@dataclass(frozen=True)
class GeneratorArchitecture:
    """Size and shape of encoder and decoder; everything needed to rebuild them.

    Attributes:
        sides: of the image, multiples of 2^wavelets.
        channels: width at each level, from the wavelets', at 1/2^wavelets of the sides, to where the code enters; every
            level after the first halves them, rounded up.
        variables: condition variables it is told.
        code: numbers in a code.
        spatial: channels in which a code is spread over the last level.
        variational: the encoder says how sure it is of each number, and a code is drawn from that.
        groups: of the group norm.
        wavelets: levels of the Haar wavelet that the networks work on.
    """

    sides: tuple[int, int, int]
    channels: tuple[int, ...]
    variables: int
    code: int = 128
    spatial: int = 16
    variational: bool = False
    groups: int = 8
    wavelets: int = 1

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(f"channels {list(self.channels)}: at least two widths, each a multiple of {self.groups}")
        if self.wavelets < 1:
            raise ValueError(f"wavelets {self.wavelets}: at least 1")
        if len(self.sides) != 3 or any(side < 1 or side % 2**self.wavelets for side in self.sides):
            raise ValueError(f"sides {list(self.sides)}: three multiples of {2**self.wavelets}")
        if min(self.code, self.spatial, self.variables) < 1:
            raise ValueError(
                f"code {self.code}, spatial {self.spatial}, variables {self.variables}: at least 1 of each"
            )

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """Sides of each level."""
        levels = [tuple(side // 2**self.wavelets for side in self.sides)]
        for _ in self.channels[1:]:
            levels.append(tuple(-(-side // 2) for side in levels[-1]))
        return tuple(levels)


class Block(nn.Module):
    """Two 3x3x3 convolutions after a group norm each, the second scaled and shifted by what is told."""

    def __init__(self, inputs: int, outputs: int, told: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.first = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.film = nn.Linear(told, 2 * outputs)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        x = self.first(functional.silu(self.norm1(x)))
        scale, shift = self.film(told)[:, :, None, None, None].chunk(2, dim=1)
        return x + self.second(functional.silu(self.norm2(x) * (1 + scale) + shift))


class Generator(nn.Module):
    """G(z, c) and E(x, c). No convolution runs at the image's own resolution: both work on its Haar bands.

    The condition enters beside the code, as the papers append it, and into each block. Scans are registered, so what is
    usual at each place is learned as such: features that the decoder starts from, and bands that its own are added to.
    """

    def __init__(self, architecture: GeneratorArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        width, last, count = 4 * a.channels[0], a.places[-1], math.prod(a.places[-1])
        self.tokens = Tokens(a.variables, width)
        self.enter = nn.Conv3d(8**a.wavelets, a.channels[0], 3, padding=1)
        self.down = nn.ModuleList(Block(n, m, width, a.groups, stride=2) for n, m in pairwise(a.channels))
        self.narrow = nn.Conv3d(a.channels[-1], a.spatial, 1)
        self.to_code = nn.Linear(a.spatial * count, (2 if a.variational else 1) * a.code)
        self.from_code = nn.Linear(a.code + width, a.spatial * count)
        self.mixed = nn.Linear(a.code + width, width)
        self.atlas = nn.Parameter(0.1 * torch.randn(1, a.channels[-1], *last))
        self.widen = nn.Conv3d(a.spatial, a.channels[-1], 1)
        self.up = nn.ModuleList(Block(n, m, width, a.groups) for n, m in pairwise(a.channels[::-1]))
        self.usual = nn.Parameter(torch.zeros(1, 8**a.wavelets, *a.places[0]))
        self.leave = nn.Sequential(
            nn.GroupNorm(a.groups, a.channels[0]), nn.SiLU(), nn.Conv3d(a.channels[0], 8**a.wavelets, 3, padding=1)
        )

    def encode(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the code, (B, code) each, of images (B, 1, X, Y, Z) under conditions (B, V).

        The std is 0 where the encoder is not variational.
        """
        told = self.tokens(context).sum(1)
        x = self.enter(wavelet.forward(x, self.architecture.wavelets))
        for block in self.down:
            x = block(x, told)
        said = self.to_code(self.narrow(functional.silu(x)).flatten(1)).float()
        if not self.architecture.variational:
            return said, torch.zeros_like(said)
        mean, log_variance = said.chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-20, 10)).exp()

    def decode(self, z: Tensor, context: Tensor) -> Tensor:
        """The image (B, 1, X, Y, Z) of codes (B, code) under conditions (B, V)."""
        a = self.architecture
        joined = torch.cat([z, self.tokens(context).sum(1).to(z.dtype)], dim=1)
        told = functional.silu(self.mixed(joined))
        x = self.widen(self.from_code(joined).view(len(z), a.spatial, *a.places[-1])) + self.atlas
        for block, sides in zip(self.up, a.places[-2::-1], strict=True):
            x = block(functional.interpolate(x, size=sides, mode="nearest"), told)
        return wavelet.inverse(self.leave(x).float() + USUAL_SCALE * self.usual, a.wavelets)
