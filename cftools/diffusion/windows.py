"""Sliding windows, blended at every step: a network trained on patches as a Denoiser of whole volumes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from cftools.diffusion.denoiser import Denoiser, Estimate, Inputs
from cftools.errors import PathError


@dataclass(frozen=True)
class Windows:
    """Estimates of overlapping windows, averaged with weights that fall linearly from each window's middle.

    All parts of an estimate are mixed alike, so it still adds up to x_t. Windows are seen one after the other.

    Attributes:
        size: of a window, voxels along each spatial axis. overlap: least share that neighbours share, [0, 1).
    """

    denoiser: Denoiser
    size: tuple[int, ...]
    overlap: float

    def __call__(self, x: Tensor, t: float, inputs: Inputs) -> Estimate:
        """Estimate for x, (B, C, *spatial), at t; the inputs' channels are cut up as x is.

        Raises:
            PathError: x is smaller than a window, or has another number of axes.
        """
        sums: list[Tensor | None] = [None, None, None]
        total = torch.zeros(x.shape[2:], dtype=x.dtype, device=x.device)
        weight = ramp(self.size).to(total)
        for place in places(tuple(x.shape[2:]), self.size, self.overlap):
            channels = None if inputs.channels is None else inputs.channels[place]
            part = self.denoiser(x[place], t, replace(inputs, channels=channels))
            total[place[2:]] += weight
            for slot, tensor in enumerate((part.x0, part.eps, part.log_var)):
                if tensor is not None:
                    whole = sums[slot]
                    sums[slot] = whole = torch.zeros_like(x) if whole is None else whole
                    whole[place] += weight * tensor
        x0, eps, log_var = (None if whole is None else whole / total for whole in sums)
        assert x0 is not None and eps is not None
        return Estimate(x0, eps, log_var)


def places(shape: tuple[int, ...], size: tuple[int, ...], overlap: float) -> Iterator[tuple[slice, ...]]:
    """Where windows of a size lie in a volume, as indices of (B, C, *spatial): as few as the overlap allows.

    Raises:
        PathError: the volume is smaller than a window, or has another number of axes.
    """
    if len(shape) != len(size) or any(n < side for n, side in zip(shape, size, strict=True)):
        raise PathError(f"a volume of {shape} voxels does not hold a window of {size}: pad it")
    starts = []
    for n, side in zip(shape, size, strict=True):
        count = math.ceil((n - side) / max(side * (1 - overlap), 1)) + 1
        starts.append([round(k * (n - side) / max(count - 1, 1)) for k in range(count)])
    for corner in product(*starts):
        spatial = (slice(begin, begin + side) for begin, side in zip(corner, size, strict=True))
        yield (slice(None), slice(None), *spatial)


def ramp(size: tuple[int, ...]) -> Tensor:
    """How much a window's voxels are trusted: falling linearly from its middle; doubles."""
    weight = torch.ones(size, dtype=torch.float64)
    for axis, side in enumerate(size):
        along = torch.arange(1, side + 1, dtype=torch.float64)
        along = torch.minimum(along, along.flip(0)) / ((side + 1) // 2)
        weight = weight * along.view(-1, *[1] * (len(size) - axis - 1))
    return weight
