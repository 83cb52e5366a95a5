"""The anatomy a simulated subject is made from: tissue fractions and regions of a real brain in MNI152 space.

The default is the MNI152 average that nilearn ships; any skull-stripped T1w scan can take its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cftools import field
from cftools.bias import n4
from cftools.errors import InputError
from cftools.prepare import GRID_1MM, GRID_2MM, Grid, prepare, resample
from cftools.register import template
from cftools.volume import Volume

#: Name of the anatomy that is the MNI152 average.
TEMPLATE = "MNI152"
#: Volume of a voxel of `Anatomy.regions`, 2 mm wide.
VOXEL_ML = 0.008
#: Tissue channels of an anatomy, in order.
TISSUES = ("csf", "grey", "white")
#: Structures with a label and a volume; the order gives the label value, from 1.
STRUCTURES = (
    "cortex",
    "white_matter",
    "deep_grey",
    "hippocampus",
    "lateral_ventricles",
    "third_ventricle",
    "sylvian_fissure",
    "sulci",
    "cisterns",
)


@dataclass(frozen=True)
class Anatomy:
    """One real brain, ready to be deformed and rendered.

    Attributes:
        name: where it comes from.
        age: years, of the brain as it is here; sex: "F", "M" or None for an average of both.
        tissues: (1, 3, X, Y, Z) fractions of TISSUES, summing to 1 inside the intracranial mask and 0 outside.
        strip: (1, 1, X, Y, Z) in 0..1, the brain as a tight skull-stripping leaves it, without the outer rim.
        regions: (1, 9, 80, 96, 88) fractions of STRUCTURES at 2 mm.
        labels: (X, Y, Z) uint8, index in STRUCTURES + 1, 0 outside.
    """

    name: str
    age: float
    sex: str | None
    tissues: Tensor
    strip: Tensor
    regions: Tensor
    labels: np.ndarray

    def to(self, device: torch.device | str) -> Anatomy:
        """The same on another device, but the labels."""
        moved = {name: getattr(self, name).to(device) for name in ("tissues", "strip", "regions")}
        return replace(self, **moved)


def template_anatomy(grid: Grid = GRID_2MM) -> Anatomy:
    """The MNI152 2009a nonlinear symmetric average with its grey and white matter maps (Fonov et al. 2011).

    Its 152 volunteers were 18 to 43 years old, 25 on average. Made once in a process, as it takes seconds.
    """
    return _template_anatomy(grid)


@cache
def _template_anatomy(grid: Grid) -> Anatomy:
    brain, tissues = _template_tissues()
    grey, white = tissues[1:]
    deep = _deep_zones() * grey / np.maximum(grey + white, 1e-3)
    return _finish(TEMPLATE, 25.0, None, tissues, brain, deep, grid, rim=2.0)


def _template_tissues() -> tuple[np.ndarray, np.ndarray]:
    """The template's brain, (X, Y, Z) bool at 1 mm, and its tissues, (3, X, Y, Z)."""
    maps = [template("t1"), template("gm"), template("wm")]
    t1, grey, white = (resample(volume.array, volume.affine, GRID_1MM) for volume in maps)
    brain = ndimage.binary_fill_holes(t1 > 0.15)
    total = np.maximum(grey + white, 1.0)
    grey, white = grey / total * brain, white / total * brain
    return brain, np.stack([brain - grey - white, grey, white]).astype(np.float32)


def scan_anatomy(volume: Volume, age: float, sex: str | None, name: str, grid: Grid = GRID_2MM) -> Anatomy:
    """The anatomy of one skull-stripped T1w scan: registered, bias corrected and split into tissues.

    Tissue fractions come from intensity alone: a voxel between the mean of two neighbouring classes of a
    three-class mixture is a linear mix of them, so the scan's own folds and texture survive.
    """
    prepared = prepare(volume, GRID_1MM)
    image = prepared.image
    brain = ndimage.binary_fill_holes(ndimage.binary_opening(image > 0.02, iterations=1))
    image = image / n4(image + np.float32(0.01), brain, (4, 4, 4))
    means = _class_means(image[brain])
    if not np.all(np.diff(means) > 0.05):
        raise InputError(f"{name}: fluid, grey and white matter do not differ in brightness: is it a T1w scan?")
    white = np.clip((image - means[1]) / (means[2] - means[1]), 0, 1) * brain
    fluid = np.clip((means[1] - image) / (means[1] - means[0]), 0, 1) * brain
    # White matter lines most of the ventricles: what is between the two there is no grey matter.
    lining = _lateral_ventricles(fluid, brain) & brain
    half = np.clip((means[2] - image) / (means[2] - means[0]), 0, 1)
    fluid, white = np.where(lining, half, fluid), np.where(lining, 1 - half, white)
    tissues = np.stack([fluid, brain - fluid - white, white]).astype(np.float32)
    return _finish(name, age, sex, tissues, brain, _deep_share(), grid, rim=1.0)


def _class_means(values: np.ndarray, iterations: int = 60) -> np.ndarray:
    """Means of fluid, grey and white matter: a three-class Gaussian mixture fitted by EM to a histogram."""
    counts, edges = np.histogram(values, bins=256, range=(0, float(np.percentile(values, 99.8))))
    centres = (edges[1:] + edges[:-1]) / 2
    means = np.quantile(values, [0.06, 0.40, 0.80])
    widths = np.full(3, np.diff(means).min() / 2)
    shares = np.array([0.15, 0.45, 0.40])
    for _ in range(iterations):
        density = shares * np.exp(-0.5 * ((centres[:, None] - means) / widths) ** 2) / widths
        weight = counts[:, None] * density / np.maximum(density.sum(1, keepdims=True), 1e-12)
        mass = weight.sum(0) + 1e-9
        means = (weight * centres[:, None]).sum(0) / mass
        widths = np.sqrt((weight * (centres[:, None] - means) ** 2).sum(0) / mass) + 1e-3
        shares = mass / mass.sum()
    return means


def _finish(
    name: str,
    age: float,
    sex: str | None,
    tissues: np.ndarray,
    brain: np.ndarray,
    deep: np.ndarray,
    grid: Grid,
    rim: float,
) -> Anatomy:
    """Add a rim of fluid, room for a tightly cut brain to shrink into; find the structures; change the grid."""
    closed = ndimage.binary_closing(np.pad(brain, 8), iterations=4)[8:-8, 8:-8, 8:-8]
    cranium = ndimage.distance_transform_edt(~closed) <= rim
    tissues[0] += cranium & ~brain
    fractions = structures(tissues, cranium, deep)
    coarse = field.resize(torch.from_numpy(tissues)[None], grid.shape) if grid != GRID_1MM else None
    stack = torch.from_numpy(fractions)[None]
    regions = torch.nn.functional.avg_pool3d(stack, 2)
    shares = stack[0].numpy() if grid == GRID_1MM else regions[0].numpy()
    labels = np.where(shares.sum(0) > 0.5, shares.argmax(0) + 1, 0).astype(np.uint8)
    strip = torch.from_numpy(brain.astype(np.float32))[None, None]
    return Anatomy(
        name,
        age,
        sex,
        torch.from_numpy(tissues)[None] if coarse is None else coarse,
        strip if coarse is None else field.resize(strip, grid.shape),
        regions,
        labels,
    )


def structures(tissues: np.ndarray, cranium: np.ndarray, deep: np.ndarray) -> np.ndarray:
    """Split tissue fractions at 1 mm into STRUCTURES by where they lie in MNI152 space.

    The regions are generous boxes and tubes in MNI millimetres; the fluid inside them is the scan's own, so that they
    need fit only roughly.

    Args:
        tissues: (3, X, Y, Z) fractions at 1 mm.
        cranium: (X, Y, Z) bool.
        deep: (2, X, Y, Z) share of the tissue that is deep grey matter and that is hippocampus.
    Returns:
        (9, X, Y, Z) float32 fractions, summing to 1 inside the cranium.
    """
    x, y, z = _coordinates()
    fluid, grey, white = tissues
    side = np.abs(x)
    ventricle = _lateral_ventricles(fluid, cranium)
    third = (side < 5) & _third_ventricle(y, z)
    sylvian = (side > 27) & (side < 62) & (y > -46) & (y < 30) & (z > -16) & (z < 24)

    # Fluid around the brain stem and cerebellum, and in the middle of the base, ages little.
    below = (z < -8 - 0.35 * (y + 20)) & (y < -20) | (z < -18) & (y < 0) & (side < 26)
    below |= (side < 24) & (y > -50) & (y < 16) & (z < 10)

    deep_grey, hippocampus = deep * (grey + white)
    cortex = grey * ~_deep_zones().any(axis=0)
    lateral = fluid * ventricle
    middle = fluid * third
    fissure = fluid * (sylvian & ~ventricle)
    cisterns = (fluid - lateral - middle - fissure) * below
    return np.stack(
        [
            cortex,
            grey + white - cortex - deep_grey - hippocampus,
            deep_grey,
            hippocampus,
            lateral,
            middle,
            fissure,
            fluid - lateral - middle - fissure - cisterns,
            cisterns,
        ]
    ).astype(np.float32)


@cache
def _deep_zones() -> np.ndarray:
    """Where deep grey matter and hippocampus lie, with no cortex between; (2, X, Y, Z) bool."""
    x, y, z = _coordinates()
    side = np.abs(x)
    centre = np.interp(y.ravel(), [-40, -34, -24, -14, -6], [24, 27, 29, 27, 23]).reshape(y.shape)
    height = np.interp(y.ravel(), [-40, -34, -24, -14, -6], [0, -4, -11, -19, -22]).reshape(y.shape)
    tube = (y > -42) & (y < -5) & (((side - centre) / 9) ** 2 + ((z - height) / 7) ** 2 < 1)
    deep = (side < 36) & (y > -34) & (y < 24) & (z > -14) & (z < 20)
    deep &= (side / 36) ** 2 + ((y + 5) / 30) ** 2 + ((z - 4) / 18) ** 2 < 1
    return np.stack([deep & ~tube, tube])


@cache
def _deep_share() -> np.ndarray:
    """Share of the template's tissue that is deep grey matter and hippocampus, (2, X, Y, Z), softened by 1.5 mm.

    In a T1w scan these are as bright as something between grey and white matter, so brightness cannot tell them.
    """
    _, (_, grey, white) = _template_tissues()
    sharp = _deep_zones() * grey / np.maximum(grey + white, 1e-3)
    return np.stack([ndimage.gaussian_filter(one, 1.5) for one in sharp]) * _deep_zones()


def _coordinates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MNI152 millimetres of the 1 mm grid along x, y and z, each broadcastable to it."""
    x, y, z = (
        (np.arange(n, dtype=np.float32) + start).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (n, start) in enumerate(zip(GRID_1MM.shape, GRID_1MM.affine[:3, 3], strict=True))
    )
    return x, y, z


def _third_ventricle(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Where the third ventricle lies in the midsagittal plane, between its roof and its sloping floor."""
    floor = np.interp(y.ravel(), [-28, -22, -15, -9, -4, 4], [-4, -6, -7.5, -11, -16, -16]).reshape(y.shape)
    roof = np.interp(y.ravel(), [-28, -16, 4], [7, 8, 5]).reshape(y.shape)
    return (y > -28) & (y < 5) & (z > floor) & (z < roof)


def _lateral_ventricles(fluid: np.ndarray, cranium: np.ndarray) -> np.ndarray:
    """The lateral ventricles and their lining: pieces of fluid above 150 mm3 in a generous zone, grown by 2 mm.

    Args:
        fluid: (X, Y, Z) fraction at 1 mm.
        cranium: (X, Y, Z) bool.
    """
    x, y, z = _coordinates()
    side = np.abs(x)
    depth = ndimage.distance_transform_edt(cranium).astype(np.float32)
    body = (side < 27) & (y > -52) & (y < 44) & (z > -3) & (z < 34)
    trigone = (side > 11) & (side < 42) & (y > -78) & (y < -20) & (z > -6) & (z < 26)
    temporal = (side > 22) & (side < 44) & (y > -46) & (y < -2) & (z > -26) & (z < -2)
    third = (side < 6) & (y > -34) & (y < 12) & (z > -16) & (z < 9)
    cistern = (side < 16) & (y < -30) & (z < 9) | (side < 5) & (z > 22) | (side < 12) & (y < -28) & (z < 12)
    zone = (body | trigone | temporal) & ~third & ~cistern & (depth > 15)
    pieces, count = ndimage.label(zone & (fluid > 0.4))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    return ndimage.binary_dilation((sizes >= 150)[pieces], iterations=2) & zone
