"""A head around a simulated brain: what a network that finds the brain must learn to leave out.

Shells of bone, marrow, fat and skin follow the skull; below are face, eyes, neck and spinal cord, in plain solids.
Nothing of it is anatomy to measure: it is a background as varied as real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from scipy import ndimage
from torch import Tensor

from cftools import field
from cftools.phantom.contrast import Scanner
from cftools.prepare import Grid

#: Room around the models' box, millimetres: left, right, back, front, below, above.
MARGIN = (16, 16, 20, 32, 64, 16)
#: What a head is made of beside the brain.
MATERIALS = ("air", "bone", "marrow", "fat", "muscle", "skin", "fluid", "cord", "vessel")
#: Their intensity, white matter being 1: order as radiology has it, amounts judged.
SIGNALS = {
    "T1w": (0.01, 0.10, 0.90, 1.30, 0.60, 0.70, 0.22, 0.95, 0.25),
    "T2w": (0.01, 0.12, 0.90, 1.30, 0.70, 0.80, 2.60, 1.00, 0.20),
    "FLAIR": (0.01, 0.12, 0.90, 1.20, 0.70, 0.80, 0.35, 1.00, 0.30),
    "T1ce": (0.01, 0.10, 0.95, 1.30, 0.75, 0.90, 0.25, 0.95, 1.80),
}
#: Relative spread of an intensity, and of a thickness, between varied subjects; plain ones have a quarter of it.
SPREAD = 0.35


@dataclass(frozen=True)
class Head:
    """Everything outside one subject's skull.

    Attributes:
        materials: (X, Y, Z) uint8 index in MATERIALS on the grid with its margin; air within the skull.
        gains: (9,) factors on the intensity of each material.
        texture: (X, Y, Z) relative variation.
        seed: of the noise.
    """

    materials: np.ndarray
    gains: np.ndarray
    texture: np.ndarray
    seed: int

    def around(self, image: Tensor, cranium: Tensor, scanner: Scanner) -> Tensor:
        """A brain's image within its head, (1, 1, X, Y, Z) on the grid with its margin.

        Args:
            image: (1, 1, X', Y', Z') on the models' box.
            cranium: likewise, above 0.5 where the image is kept.
            scanner: how the image was taken; its bias, resolution and noise go on.
        """
        shape = tuple(image.shape[2:])
        means = torch.from_numpy((self.gains * np.array(SIGNALS[scanner.contrast])).astype(np.float32))
        outside = means[torch.from_numpy(self.materials.astype(np.int64))] * (1 + torch.from_numpy(self.texture))
        bias = functional.pad(field.resize(scanner.bias, shape), _padding(shape), mode="replicate")
        outside = outside[None, None] * torch.exp(bias)
        spacing = field.BOX[0] / shape[0]
        sigmas = [0.0, 0.0, *(max(width, 0.5) / spacing for width in scanner.resolution)]
        outside = torch.from_numpy(ndimage.gaussian_filter(outside.numpy(), sigmas))
        generator = torch.Generator().manual_seed(self.seed + scanner.seed)
        noise = scanner.noise * torch.randn((2, *outside.shape), generator=generator)
        outside = torch.sqrt((outside + noise[0]) ** 2 + noise[1] ** 2)
        kept = functional.pad((cranium > 0.5).float(), _padding(shape))
        return outside * (1 - kept) + functional.pad(image, _padding(shape)) * kept


def random_head(cranium: Tensor, random: np.random.Generator, varied: bool) -> Head:
    """A head around the inside of a skull.

    Args:
        cranium: (1, 1, X, Y, Z) on the models' box, above 0.5 inside.
        random: the subject's own stream.
        varied: with intensities and thicknesses that differ widely.
    """
    spread = SPREAD if varied else SPREAD / 4
    shape = tuple(cranium.shape[2:])
    spacing = field.BOX[0] / shape[0]
    inside = functional.pad(cranium, _padding(shape))[0, 0].numpy() > 0.5
    distance = np.asarray(ndimage.distance_transform_edt(~inside) * spacing, dtype=np.float32)
    x, y, z = points = _points(inside.shape, spacing)
    vary = [float(np.exp(spread * random.uniform(-1, 1))) for _ in range(6)]

    def wavy(smoothness: float, size: float) -> np.ndarray:
        coarse = random.standard_normal(tuple(-(-n // 4) for n in inside.shape))
        coarse = ndimage.gaussian_filter(coarse, smoothness / (4 * spacing))
        zoomed = ndimage.zoom(coarse * (size / coarse.std()), 4, order=1)
        return zoomed[tuple(slice(n) for n in inside.shape)].astype(np.float32)

    # Depth of each layer's outer border; the skull is thicker behind than at the temples.
    dura = 1.0 * vary[0] + 0 * distance
    skull = dura + np.maximum(6.0 * vary[1] - 1.5 * (np.abs(x) > 45) + wavy(12, 1.0), 3.0)
    fat = skull + np.maximum(4.5 * vary[2] + wavy(15, 1.2), 1.0)
    skin = fat + 1.6 * vary[3]
    face = _ellipsoid(points, (0, 44, -58), (56, 42, 62))
    neck = np.where(z < -60, 1 - np.hypot(x / 52, (y + 24) / 54), -1.0)
    base = _ellipsoid(points, (0, -12, -48), (62, 66, 38))
    solid = np.maximum.reduce([face, neck, base]) * 45 + wavy(10, 1.5)
    outline = np.maximum(skin - distance, solid)
    layers = [
        (outline > 0, "skin"),
        (outline > 2.0 * vary[3], "fat"),
        ((solid > 6.0 * vary[4] + 2) & (distance > skull), "muscle"),
        ((solid > 10) & (distance > skull) & (wavy(4, 1.0) > 1.1), "fat"),
        (distance < skull, "bone"),
        ((distance > dura + 1.6) & (distance < skull - 1.6) & (wavy(5, 1.0) > -0.6), "marrow"),
        (distance < dura, "fluid"),
        (_ellipsoid(points, (0, 58, -52), (13, 26, 26)) + wavy(4, 0.15) > 0, "air"),
        (_ellipsoid(points, (0, 20, -88), (11, 11, 50)) + wavy(6, 0.1) > 0, "air"),
        (_ellipsoid(points, (0, 70, -20), (20, 7, 10)) + wavy(4, 0.2) > 0, "air"),
    ]
    for side in (-1, 1):
        layers += [
            (_ellipsoid(points, (side * 31, 52, -38), (19, 24, 17)) > 0, "fat"),
            (_ellipsoid(points, (side * 31, 59, -38), (12, 12, 12)) > 0, "fluid"),
            (_ellipsoid(points, (side * 31, 68, -38), (5, 2, 5)) > 0, "muscle"),
            (np.hypot(x - side * 26, y + 2) < 3.0 * (z < -55), "vessel"),
        ]
    # The canal goes on where the brain stem was cut.
    bottom = np.nonzero(inside.any((0, 1)))[0][0]
    stem = np.argwhere(inside[:, :, bottom]).mean(0)
    centre = [float(axis.ravel()[round(at)]) for axis, at in zip((x, y), stem, strict=True)]
    below = z < z.ravel()[bottom] + 2
    across = np.hypot(x - centre[0], y - centre[1])
    layers += [(below & (across < r), name) for r, name in ((15, "bone"), (10, "fluid"), (6, "cord"))]

    materials = np.zeros(inside.shape, np.uint8)
    for where, name in layers:
        materials[np.broadcast_to(where, inside.shape) & (outline > 0)] = MATERIALS.index(name)
    materials[inside] = 0
    gains = np.exp(spread * np.clip(random.standard_normal(len(MATERIALS)), -2, 2))
    texture = wavy(3, 0.06) + random.standard_normal(inside.shape, dtype=np.float32) * 0.04
    return Head(materials, gains, texture, int(random.integers(2**31)))


def with_margin(grid: Grid) -> Grid:
    """A model's grid grown by MARGIN."""
    spacing = float(grid.affine[0, 0])
    affine = grid.affine.copy()
    affine[:3, 3] -= MARGIN[::2]
    extra = (MARGIN[0] + MARGIN[1], MARGIN[2] + MARGIN[3], MARGIN[4] + MARGIN[5])
    x, y, z = (n + round(room / spacing) for n, room in zip(grid.shape, extra, strict=True))
    return Grid(f"{grid.name} with margin", (x, y, z), affine)


def grown(values: Tensor) -> Tensor:
    """An image on the models' box, (..., X, Y, Z), with zeros in the margin."""
    return functional.pad(values, _padding(tuple(values.shape[-3:])))


def _padding(shape: tuple[int, ...]) -> tuple[int, ...]:
    """MARGIN in voxels, last axis first, as torch pads."""
    voxels = [round(room * shape[0] / field.BOX[0]) for room in MARGIN]
    return (*voxels[4:], *voxels[2:4], *voxels[:2])


def _points(shape: tuple[int, ...], spacing: float) -> tuple[np.ndarray, ...]:
    """MNI152 millimetres along x, y, z, each broadcastable to the grid with its margin."""
    from cftools.prepare import GRID_1MM

    start = GRID_1MM.affine[:3, 3] - 0.5 - np.array(MARGIN[::2]) + spacing / 2
    return tuple(
        (np.arange(n, dtype=np.float32) * spacing + start[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(shape)
    )


def _ellipsoid(points: tuple[np.ndarray, ...], centre: tuple[float, ...], half: tuple[float, ...]) -> np.ndarray:
    """1 - radius: above 0 inside, (X, Y, Z)."""
    squares = [((p - c) / h) ** 2 for p, c, h in zip(points, centre, half, strict=True)]
    return np.asarray(1 - np.sqrt(squares[0] + squares[1] + squares[2]))
