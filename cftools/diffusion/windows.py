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
        weight = self._weight().to(total)
        for place in self._places(tuple(x.shape[2:])):
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

    def _places(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        if len(shape) != len(self.size) or any(n < size for n, size in zip(shape, self.size, strict=True)):
            raise PathError(f"a volume of {shape} voxels does not hold a window of {self.size}: pad it")
        starts = []
        for n, size in zip(shape, self.size, strict=True):
            count = math.ceil((n - size) / max(size * (1 - self.overlap), 1)) + 1
            starts.append([round(k * (n - size) / max(count - 1, 1)) for k in range(count)])
        for corner in product(*starts):
            spatial = (slice(begin, begin + size) for begin, size in zip(corner, self.size, strict=True))
            yield (slice(None), slice(None), *spatial)

    def _weight(self) -> Tensor:
        weight = torch.ones(self.size, dtype=torch.float64)
        for axis, size in enumerate(self.size):
            ramp = torch.arange(1, size + 1, dtype=torch.float64)
            ramp = torch.minimum(ramp, ramp.flip(0)) / ((size + 1) // 2)
            weight = weight * ramp.view(-1, *[1] * (len(self.size) - axis - 1))
        return weight
