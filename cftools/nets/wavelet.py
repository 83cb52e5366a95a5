"""The Haar wavelet, orthonormal, in 2D or 3D: an image as 2^d bands of half its sides.

Along each axis low = (even + odd) / sqrt(2) and high = (even - odd) / sqrt(2), so energy is kept, white noise stays
white, and the inverse is the transpose. Both directions are sums and differences with one multiplication at the
end, so that a round trip costs a few roundings and nothing else.

Bands are named by a letter an axis, L low and H high, and counted in binary with the first axis as the highest
digit: LL, LH, HL, HH in 2D; LLL, LLH, LHL, LHH, HLL, HLH, HHL, HHH in 3D, where LLH is high along Z alone. Bands are
the outer and image channels the inner part of the channel axis: channel = band * C + c. This order and the sign of
the high bands are those of WDM (Friedrich et al. 2024, WDM: 3D wavelet diffusion models for high-resolution medical
image synthesis), which also divides the lowest band by 3: see `cftools.space.WaveletSpace`.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def bands(dimensions: int) -> tuple[str, ...]:
    """Names of the bands in the order of the channels: bands(2) is LL, LH, HL, HH."""
    return tuple("".join(letters) for letters in itertools.product("LH", repeat=dimensions))


def forward(x: Tensor, levels: int = 1) -> Tensor:
    """The bands of an image.

    Args:
        x: (B, C, H, W) or (B, C, X, Y, Z), all sides even.
        levels: times that all bands become bands (a wavelet packet).
    Returns:
        (B, 2^d C, H/2, W/2) or (B, 2^d C, X/2, Y/2, Z/2) of each level, with the energy of x: |forward(x)|^2 = |x|^2.
    Raises:
        ValueError: another number of axes, or an odd side.
    """
    dimensions = _dimensions(x)
    if odd := [side for side in x.shape[2:] if side % 2 or not side]:
        raise ValueError(f"a wavelet needs even sides, and {_sides(x)} has {odd[0]}: pad it first")
    y = x[:, None]  # (B, bands, C, *sides)
    for axis in range(3, 3 + dimensions):
        even, odd_half = y.unflatten(axis, (-1, 2)).unbind(axis + 1)
        y = torch.stack([even + odd_half, even - odd_half], dim=2).flatten(1, 2)
    y = (y * 2 ** (-dimensions / 2)).flatten(1, 2)
    return forward(y, levels - 1) if levels > 1 else y


def inverse(z: Tensor, levels: int = 1) -> Tensor:
    """The image of its bands; inverse(forward(x)) is x to rounding.

    Args:
        z: (B, 2^d C, H, W) or (B, 2^d C, X, Y, Z), channels as `forward` has them; levels: as it has them.
    Returns:
        (B, C, 2H, 2W) or (B, C, 2X, 2Y, 2Z), of each level.
    Raises:
        ValueError: another number of axes, or channels that are no multiple of 2^d.
    """
    dimensions = _dimensions(z)
    count = 2**dimensions
    if z.shape[1] % count or not z.shape[1]:
        raise ValueError(f"{dimensions}D wavelet bands have a multiple of {count} channels, not {z.shape[1]}")
    y = z.unflatten(1, (count, -1))  # (B, bands, C, *sides)
    for axis in reversed(range(3, 3 + dimensions)):
        low, high = y.unflatten(1, (-1, 2)).unbind(2)
        y = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
    y = (y * 2 ** (-dimensions / 2)).squeeze(1)
    return inverse(y, levels - 1) if levels > 1 else y


def _dimensions(x: Tensor) -> int:
    if x.ndim not in (4, 5):
        raise ValueError(f"a wavelet is of images (B, C, H, W) or (B, C, X, Y, Z), not {tuple(x.shape)}")
    return x.ndim - 2


def _sides(x: Tensor) -> str:
    return " x ".join(map(str, x.shape[2:]))
