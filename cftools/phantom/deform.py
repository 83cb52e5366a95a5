"""Ageing and identity as smooth deformations of an anatomy.

Each structure that ages has a velocity field that moves its border outward while the skull holds still. How strongly
each is turned is solved for, so that the structures' volumes follow the ageing law with as little motion as possible,
whatever the anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg
from torch import Tensor

from cftools import field
from cftools.phantom.anatomy import STRUCTURES, Anatomy

#: Grid of the velocity fields: 4 mm, over the same box as every model grid.
FIELD_SHAPE = (40, 48, 44)
SPACING = field.BOX[0] / FIELD_SHAPE[0]
#: What is held to the law, and how smoothly its border moves, millimetres: fluid pushes on what lies far from it, the
#: cortex thins where it is. The fluid of the sulci is then what is left of a cranium that does not change.
SMOOTHNESS = {
    "lateral_ventricles": 7.0,
    "third_ventricle": 5.0,
    "sylvian_fissure": 4.0,
    "hippocampus": 4.0,
    "cortex": 3.0,
    "white_matter": 3.0,
    "deep_grey": 4.0,
    "cisterns": 4.0,
}
TARGETS = tuple(SMOOTHNESS)
#: How much a squared log volume off the law counts, in the order of TARGETS, and what a mean square velocity of 1 mm2
#: costs.
WEIGHTS = (1.0, 0.5, 0.5, 1.0, 2.0, 2.0, 1.0, 0.5)
COST = 1e-3
#: Distance from the skull, millimetres, within which motion fades.
RIM = 8.0


@dataclass(frozen=True)
class Knobs:
    """The velocity fields of one anatomy and how its volumes answer to them.

    The first-order change of volume i under a velocity v is -<grad r_i, v>, r_i its fraction of each voxel. Through a
    smoothing kernel, the field that changes one volume with the least motion is therefore the smoothed gradient of
    that fraction: the representer of the functional, as in the LDDMM of Beg et al. (2005).

    Attributes:
        fields: (8, 3, *FIELD_SHAPE), millimetres for a unit of log volume.
        divergence: (8, *FIELD_SHAPE), theirs.
        regions: (8, X, Y, Z) fractions of TARGETS at 2 mm.
        cranium: (X, Y, Z) bool, where there is anything.
        energy: (8, 8), mean product of the fields i and j in the cranium, mm2; on the CPU, wherever the others are.
    """

    fields: Tensor
    divergence: Tensor
    regions: Tensor
    cranium: Tensor
    energy: Tensor

    @classmethod
    def of(cls, anatomy: Anatomy) -> Knobs:
        """Build the fields of an anatomy."""
        regions = anatomy.regions[0, [STRUCTURES.index(name) for name in TARGETS]]
        inside, window = skull_window(anatomy)
        gradients = torch.stack(torch.gradient(regions, spacing=SPACING / 2, dim=(1, 2, 3)), dim=1)
        outward = -functional.avg_pool3d(gradients, 2)
        fields = torch.cat(
            [
                window * field.blur(window * one[None], smoothness)
                for one, smoothness in zip(outward, SMOOTHNESS.values(), strict=True)
            ]
        )
        # Scaled so that one unit is one unit of log volume.
        fields = fields / _response(regions, _divergence(fields)).diagonal().view(-1, 1, 1, 1, 1)
        energy = torch.einsum("icxyz,jcxyz->ij", fields, fields) / inside.sum()
        return cls(fields, _divergence(fields), regions, anatomy.regions[0].sum(0) > 0, energy)

    def to(self, device: torch.device | str) -> Knobs:
        """The same on another device."""
        fields, divergence, regions = (one.to(device) for one in (self.fields, self.divergence, self.regions))
        return Knobs(fields, divergence, regions, self.cranium.to(device), self.energy)

    def velocity(self, amounts: Tensor) -> Tensor:
        """The knobs' sum, (1, 3, *FIELD_SHAPE)."""
        return torch.einsum("k,kcxyz->cxyz", amounts.to(self.fields.device), self.fields)[None]

    def grown(self, amounts: Tensor) -> Tensor:
        """The regions after the knobs were turned, pulled back as the image will be; (8, X, Y, Z)."""
        shape = tuple(self.regions.shape[1:])
        points = (
            field.identity(shape, self.regions.device)
            + field.resize(field.exponential(-self.velocity(amounts)), shape)[0]
        )
        after = torch.zeros_like(self.regions)
        # Nothing passes the skull, and two thirds of the box lie outside.
        after[:, self.cranium] = field.sample(self.regions[None], points[None, :, self.cranium, None, None])[
            0, ..., 0, 0
        ]
        return after

    def solve(self, log_ratios: Tensor, iterations: int = 4) -> Tensor:
        """Amounts under which the targets grow by their log ratios, as nearly as a gentle field allows.

        min_s sum_i w_i (L_i - growth_i(s))^2 + cost s' E s, E the energy, by Gauss-Newton.

        Args:
            log_ratios: L, (8,), in the order of TARGETS.
        Returns:
            s, (8,).
        """
        weights, before = torch.tensor(WEIGHTS), self.regions.sum((1, 2, 3)).cpu()
        amounts, growth, after = torch.zeros(len(TARGETS)), torch.zeros(len(TARGETS)), self.regions
        for _ in range(iterations):
            response = _response(after, self.divergence).cpu()
            weighted = response.T * weights
            gradient = weighted @ (log_ratios - growth) - COST * self.energy @ amounts
            step = torch.linalg.solve(weighted @ response + COST * self.energy, gradient)
            expected = growth + response @ step
            amounts = amounts + step
            after = self.grown(amounts)
            growth = torch.log(after.sum((1, 2, 3)).cpu().clamp_min(1e-6) / before)
            if (growth - expected).abs().max() < 0.01:
                break
        return amounts


def skull_window(anatomy: Anatomy) -> tuple[Tensor, Tensor]:
    """The inside of the skull, (1, 1, *FIELD_SHAPE) bool, and 0 at it to 1 from RIM inwards, likewise."""
    inside = functional.avg_pool3d(anatomy.regions.sum(1, keepdim=True), 2) > 0.5
    depth = ndimage.distance_transform_edt(inside[0, 0].numpy()) * SPACING
    return inside, torch.from_numpy((depth / RIM).clip(0, 1).astype(np.float32))[None, None]


def flow(rate: Tensor, window: Tensor) -> Tensor:
    """The gentlest velocity under which every place gains volume at a given rate and nothing passes the skull.

    v = w grad p with div v = rate, by conjugate gradients on the fluxes between voxels: where no volume is gained or
    lost nothing is compressed, as tissue is not.

    Args:
        rate: (1, 1, *FIELD_SHAPE), per unit time. What starts in a place of rate g grows to 1 + g times its volume, as
            it grows out of that place; in one of rate -g it shrinks to exp(-g). The mean inside is taken off, as the
            skull holds.
        window: likewise, 0 at the skull to 1 inside.
    Returns:
        (1, 3, *FIELD_SHAPE), millimetres.
    """
    weight = window[0, 0].numpy().astype(np.float64)
    inside = weight > 0
    number = np.cumsum(inside).reshape(inside.shape) - 1
    sides, steps, carried = [], [], []
    for axis in range(3):
        low, high = (tuple(cut if a == axis else slice(None) for a in range(3)) for cut in (slice(-1), slice(1, None)))
        joined = inside[low] & inside[high]
        ends = number[low][joined], number[high][joined]
        count = len(ends[0])
        entries = np.repeat([-1.0, 1.0], count), (np.tile(np.arange(count), 2), np.concatenate(ends))
        sides.append((low, high, joined))
        steps.append(sparse.csr_matrix(entries, shape=(count, int(inside.sum()))))
        carried.append(np.minimum(weight[low], weight[high])[joined])
    laplacian = sum(step.T @ sparse.diags(share) @ step for step, share in zip(steps, carried, strict=True))
    wanted = rate[0, 0].numpy()[inside].astype(np.float64)
    wanted = (wanted.mean() - wanted) * SPACING**2
    pressure, _ = cg(laplacian, wanted, rtol=1e-4, M=sparse.diags(1 / laplacian.diagonal()))
    velocity = np.zeros((3, *inside.shape), np.float32)
    for axis, (low, high, joined) in enumerate(sides):
        flux = np.zeros(joined.shape, np.float32)
        flux[joined] = carried[axis] * (steps[axis] @ pressure) / SPACING
        velocity[(axis, *low)] += flux / 2
        velocity[(axis, *high)] += flux / 2
    return torch.from_numpy(velocity)[None]


def _divergence(fields: Tensor) -> Tensor:
    """(K, 3, *FIELD_SHAPE) -> (K, *FIELD_SHAPE), per unit time."""
    parts = [torch.gradient(fields[:, axis], spacing=SPACING, dim=1 + axis)[0] for axis in range(3)]
    return parts[0] + parts[1] + parts[2]


def _response(regions: Tensor, divergence: Tensor) -> Tensor:
    """d log volume of region i / d amount of field j = sum r_i div v_j / sum r_i, to first order; (K, K)."""
    coarse = functional.avg_pool3d(regions, 2)
    return torch.einsum("ixyz,jxyz->ij", coarse, divergence) / coarse.sum((1, 2, 3)).clamp_min(1e-6)[:, None]


def random_displacement(
    random: np.random.Generator, scales: tuple[tuple[float, float], ...], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A smooth random diffeomorphism and its inverse, (1, 3, *FIELD_SHAPE) each, millimetres.

    Args:
        random: source of the draw.
        scales: pairs of (smoothness, root mean square velocity), both millimetres.
    """
    velocity = torch.zeros(1, 3, *FIELD_SHAPE, device=device)
    for smoothness, size in scales:
        noise = torch.from_numpy(random.standard_normal((1, 3, *FIELD_SHAPE), dtype=np.float32)).to(device)
        smooth = field.blur(noise, smoothness)
        velocity = velocity + smooth * (size / smooth.std())
    return field.exponential(velocity), field.exponential(-velocity)


def affine_displacement(matrix: np.ndarray) -> Tensor:
    """A (3, 4) affine of points in millimetres from the box's centre, as a displacement on the field grid."""
    points = field.identity(FIELD_SHAPE)
    linear = torch.from_numpy(matrix[:, :3].astype(np.float32))
    shift = torch.from_numpy(matrix[:, 3].astype(np.float32))
    return (torch.einsum("ij,jxyz->ixyz", linear, points) + shift.view(3, 1, 1, 1) - points)[None]


def random_affine(random: np.random.Generator, scale: float, degrees: float, shift: float) -> np.ndarray:
    """A (4, 4) affine near the identity: log-scale per axis, rotations and shifts with these standard deviations."""
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    rotation = Rotation.from_euler("xyz", random.normal(0, degrees, 3), degrees=True).as_matrix()
    matrix[:3, :3] = rotation * np.exp(random.normal(0, scale, 3))
    matrix[:3, 3] = random.normal(0, shift, 3)
    return matrix
