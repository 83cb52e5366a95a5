"""Smooth deformations of a brain on a model's grid, as displacement and stationary velocity fields.

A displacement u is (B, 3, X, Y, Z), in millimetres along the grid's x, y, z, and pulls back: the deformed image is
I'(y) = I(y + u(y)). All fields and images on one box share it whatever their resolution: voxels tile the box, so
a field at 4 mm deforms an image at 2 or 1 mm without change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Extent of every model grid, millimetres along x, y, z (DESIGN.md: 160 x 192 x 176 mm in MNI152).
BOX = (160.0, 192.0, 176.0)


def identity(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Voxel centres in millimetres from the box's centre, (3, X, Y, Z)."""
    axes = [
        (torch.arange(n, dtype=torch.float32, device=device) + 0.5) * (extent / n) - extent / 2
        for n, extent in zip(shape, BOX, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def voxel_ml(image: Tensor) -> float:
    """Volume of a voxel of (B, C, X, Y, Z), ml."""
    x, y, z = (extent / n for extent, n in zip(BOX, image.shape[2:], strict=True))
    return x * y * z / 1000


def sample(image: Tensor, points: Tensor, padding: str = "border", mode: str = "bilinear") -> Tensor:
    """Values of image (B, C, X, Y, Z) at points (B, 3, X', Y', Z'), millimetres from the box's centre; linear."""
    half = torch.tensor(BOX, device=points.device).view(1, 3, 1, 1, 1) / 2
    grid = (points / half).flip(1).movedim(1, -1)  # grid_sample takes (z, y, x) in [-1, 1]
    return F.grid_sample(image, grid, mode=mode, padding_mode=padding, align_corners=False)


def resize(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A field or image (B, C, ...) on a grid of another resolution over the same box, trilinear."""
    if tuple(field.shape[2:]) == tuple(shape):
        return field
    return F.interpolate(field, size=tuple(shape), mode="trilinear", align_corners=False)


def coarsen(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The field on a coarser grid that comes near it when brought back by `resize`, which a mean of voxels does not.

    Three steps of u <- u + resize(field - resize(u)) from the mean.
    """
    coarse = resize(field, shape)
    for _ in range(3):
        coarse = coarse + resize(field - resize(coarse, tuple(field.shape[2:])), shape)
    return coarse


def warp(image: Tensor, displacement: Tensor, mode: str = "bilinear") -> Tensor:
    """I(y + u(y)) for image (B, C, ...) on u's box, sampled on the image's own grid or on u's if that is finer.

    Args:
        image: (B, C, X, Y, Z).
        displacement: (B, 3, X', Y', Z'), millimetres; resized to the image's grid.
    """
    shape = tuple(image.shape[2:])
    u = resize(displacement, shape)
    return sample(image, identity(shape, image.device)[None] + u, mode=mode)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The displacement that pulls back by `then` and after that by `first`.

    w(y) = then(y) + first(y + then(y)), so warp(image, w) = warp(warp(image, first), then).
    """
    shape = tuple(then.shape[2:])
    return then + sample(first, identity(shape, then.device)[None] + then)


def exponential(velocity: Tensor, squarings: int = 6) -> Tensor:
    """Displacement at time 1 of the flow of a stationary velocity field, by scaling and squaring.

    exp(v) = (exp(v / 2^n))^(2^n), Arsigny et al. 2006. A diffeomorphism for smooth v; its inverse is exp(-v).

    Args:
        velocity: (B, 3, X, Y, Z), millimetres per unit time.
        squarings: n; the first step v / 2^n should stay well under a voxel.
    """
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def jacobian(displacement: Tensor) -> Tensor:
    """det D(y + u(y)), (B, X, Y, Z), by central differences; 1 where nothing moves, below 0 where space folds."""
    spacing = [extent / n for extent, n in zip(BOX, displacement.shape[2:], strict=True)]
    rows = []
    for axis in range(3):
        gradients = list(torch.gradient(displacement[:, axis], spacing=spacing, dim=(1, 2, 3)))
        gradients[axis] = gradients[axis] + 1
        rows.append(gradients)
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (B, C, X, Y, Z), sigma in millimetres, zero beyond the box."""
    for axis, extent in enumerate(BOX):
        n = image.shape[2 + axis]
        offsets = torch.arange(n, dtype=image.dtype, device=image.device) * (extent / n / sigma)
        # A matrix product: wide kernels are many times faster so than as a convolution.
        kernel = torch.exp(-0.5 * (offsets[:, None] - offsets) ** 2)
        kernel = kernel / (
            1 + 2 * torch.exp(-0.5 * (offsets[1] * torch.arange(1, 10 * n, device=image.device)) ** 2).sum()
        )
        image = torch.tensordot(image, kernel, dims=([2 + axis], [0])).movedim(-1, 2 + axis)
    return image.contiguous()
