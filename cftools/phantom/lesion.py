"""Lesions of a simulated brain: what they are made of, where, and how they move what is around them.

A lesion is drawn in the anatomy it grows in, before age and identity deform it, and is carried along with that anatomy:
the same lesion in the same person at any age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as functional
from scipy import ndimage
from torch import Tensor

from cftools import field
from cftools.phantom.anatomy import STRUCTURES, Anatomy
from cftools.phantom.contrast import LESION_TISSUES
from cftools.phantom.deform import flow, skull_window
from cftools.prepare import GRID_1MM, GRID_2MM

#: Lesion tissues that leave nothing of the structure they lie in.
DESTROYED = ("cavity", "necrosis", "enhancing")
#: Width of a lesion's border, millimetres: from 12 to 88 % of it within twice this.
EDGE = 0.7
#: Rate at which the fluid beside a lesion can give or take volume at most.
MOST_FLUID = 0.9


@dataclass(frozen=True)
class Lesion:
    """Lesions in the anatomy they grow in.

    Attributes:
        tissues: (1, 8, X, Y, Z) fractions of LESION_TISSUES, on the anatomy's grid.
        velocity: (1, 3, *FIELD_SHAPE), what they do to the tissue around, or None.
        source: the file its shape comes from, empty if it was made up.
    """

    tissues: Tensor
    velocity: Tensor | None = None
    source: str = ""

    def under(self, other: Lesion) -> Lesion:
        """Both; where they overlap it is the other that is seen."""
        free = 1 - other.tissues.sum(1, keepdim=True)
        moves = [one.velocity for one in (self, other) if one.velocity is not None]
        velocity = torch.stack(moves).sum(0) if moves else None
        return Lesion(self.tissues * free + other.tissues, velocity, other.source or self.source)


@dataclass(frozen=True)
class Zones:
    """Where in an anatomy lesions can grow. All maps are (X, Y, Z) at 2 mm unless they say otherwise."""

    anatomy: Anatomy

    @cached_property
    def points(self) -> np.ndarray:
        """MNI152 millimetres, (3, X, Y, Z)."""
        return mni(GRID_2MM.shape)

    def fraction(self, *names: str) -> np.ndarray:
        """Share of each voxel that is one of these structures."""
        return np.asarray(self.anatomy.regions[0, [STRUCTURES.index(name) for name in names]].sum(0))

    @cached_property
    def white(self) -> np.ndarray:
        return self.fraction("white_matter")

    @cached_property
    def cerebrum(self) -> np.ndarray:
        """True above the tentorium, roughly."""
        x, y, z = self.points
        side = np.abs(x)
        tent = np.interp(y[0, :, 0], [-100, -85, -60, -48, -38], [-22, -16, -8, -2, -8])[None, :, None] - 0.25 * side
        stem = (side < 17) & (y > -45) & (y < -8) & (z < -8)
        return np.asarray(~((y < -38) & (z < tent) | stem))

    @cached_property
    def from_ventricles(self) -> np.ndarray:
        """Distance to the lateral ventricles, millimetres; 0 in them."""
        return np.asarray(ndimage.distance_transform_edt(self.fraction("lateral_ventricles") < 0.5)) * 2

    @cached_property
    def depth(self) -> np.ndarray:
        """Distance to the skull, millimetres; 0 outside."""
        return np.asarray(ndimage.distance_transform_edt(self.anatomy.regions[0].sum(0).numpy() > 0.5)) * 2

    def push(self, gains: np.ndarray, near: np.ndarray) -> Tensor:
        """What volume gained or lost in one place does around it: fluid nearby makes room, or fills it.

        The skull holds, so what tissue gains, fluid gives (the Monro-Kellie doctrine); what fluid cannot give is
        taken off everything alike.

        Args:
            gains: rate at which each place gains volume, as `flow` takes it, (X, Y, Z).
            near: weight of the fluid there, (X, Y, Z).
        Returns:
            Velocity, (1, 3, *FIELD_SHAPE).
        """
        fluid = self.fraction("lateral_ventricles", "third_ventricle", "sylvian_fissure", "sulci", "cisterns") * near
        share = np.clip(gains.sum() / max(float(fluid.sum()), 1.0), -MOST_FLUID, MOST_FLUID)
        rate = tensor(gains - share * fluid)
        _, window = skull_window(self.anatomy)
        return flow(functional.avg_pool3d(field.blur(rate, 3.0), 2), window)

    def lesion(self, tissues: Mapping[str, Tensor], velocity: Tensor | None = None, source: str = "") -> Lesion:
        """A lesion from maps of some LESION_TISSUES at 1 mm, (1, 1, X, Y, Z) each."""
        shape = tuple(self.anatomy.tissues.shape[2:])
        empty = torch.zeros(1, 1, *shape)
        maps = [field.resize(tissues[name], shape) if name in tissues else empty for name in LESION_TISSUES]
        return Lesion(torch.cat(maps, dim=1), velocity, source)


def mni(shape: tuple[int, ...]) -> np.ndarray:
    """MNI152 millimetres of the voxels of a grid over the models' box, (3, X, Y, Z)."""
    centre = GRID_1MM.affine[:3, 3] - 0.5 + np.array(field.BOX) / 2
    return field.identity(shape).numpy() + centre.astype(np.float32).reshape(3, 1, 1, 1)


def fine(values: np.ndarray) -> np.ndarray:
    """A map at 2 mm brought to 1 mm, (X, Y, Z)."""
    given = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    return np.asarray(field.resize(given, GRID_1MM.shape)[0, 0])


def roughness(random: np.random.Generator, *scales: tuple[float, float]) -> np.ndarray:
    """Smooth noise at 2 mm, (X, Y, Z): a sum over pairs of (smoothness in millimetres, standard deviation)."""
    total = np.zeros(GRID_2MM.shape, np.float32)
    for smoothness, size in scales:
        noise = torch.from_numpy(random.standard_normal((1, 1, *GRID_2MM.shape), dtype=np.float32))
        smooth = field.blur(noise, smoothness)[0, 0].numpy()
        total += smooth * (size / smooth.std())
    return total


def coarse(values: np.ndarray) -> np.ndarray:
    """A map at 1 mm brought to 2 mm, (X, Y, Z)."""
    x, y, z = GRID_2MM.shape
    return np.asarray(values.reshape(x, 2, y, 2, z, 2).mean((1, 3, 5)))


def soft(depth: np.ndarray, edge: float = EDGE) -> np.ndarray:
    """Share of a voxel inside a border `depth` millimetres away, positive within: 1 / (1 + exp(-depth / edge))."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * depth / edge)), dtype=np.float32)


def tensor(values: np.ndarray) -> Tensor:
    """(X, Y, Z) as (1, 1, X, Y, Z)."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
