"""Ageing and identity as smooth deformations of an anatomy.

Each structure that ages has a unit velocity field: it swells evenly, what lies around it gives way, and the cranium
holds still. How strongly each is turned is solved for, so that the structures' volumes follow the ageing law as nearly
as a smooth field can, whatever the anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch import Tensor

from cftools import field
from cftools.phantom.anatomy import FIELD_SHAPE, STRUCTURES, Anatomy

SPACING = field.BOX[0] / FIELD_SHAPE[0]
#: What swells: which structures give way to it, and within how many millimetres.
KNOBS: dict[str, tuple[tuple[str, ...], float]] = {
    "lateral_ventricles": (("white_matter", "deep_grey"), 16.0),
    "third_ventricle": (("deep_grey", "white_matter"), 10.0),
    "sylvian_fissure": (("cortex", "white_matter"), 12.0),
    "hippocampus": (("lateral_ventricles", "sulci", "white_matter"), 8.0),
    "sulci": (("cortex",), 12.0),
    "white_matter": (("sulci", "cortex"), 40.0),
}
#: What is held to the law; the remaining fluid is then what is left of a cranium that does not change.
TARGETS = (
    "lateral_ventricles",
    "third_ventricle",
    "sylvian_fissure",
    "hippocampus",
    "cortex",
    "white_matter",
)
#: Smoothing of what swells and what gives way, millimetres.
SOFTNESS = 2.0
#: How much a log volume off the law counts, in the order of TARGETS, and how much a turned knob costs: folds are
#: thinner than the field's voxels, so the law is followed only as far as a smooth field can.
WEIGHTS = (1.0, 0.5, 0.2, 1.0, 1.0, 1.0)
COST = 0.06


@dataclass(frozen=True)
class Knobs:
    """The unit velocity fields of one anatomy and how its volumes answer to them.

    Attributes:
        fields: (6, 3, *FIELD_SHAPE), millimetres for a unit of log volume.
        regions: (6, *FIELD_SHAPE) fractions of TARGETS.
        response: (6, 6), d log volume of target i / d knob j at rest.
    """

    fields: Tensor
    regions: Tensor
    response: Tensor

    @classmethod
    def of(cls, anatomy: Anatomy) -> Knobs:
        """Build the unit fields.

        div v = r / |r| - g / |g| with r the structure and g what gives way, v = grad psi inside the cranium and no
        flow through it: the Poisson equation of an atrophy model (Khanal et al. 2016), on the field grid.
        """
        regions = {name: anatomy.regions[:, [i]] for i, name in enumerate(STRUCTURES)}
        cranium = (anatomy.regions[0].sum(0) > 0.5).numpy()
        solver = _Poisson(cranium)
        inside = torch.from_numpy(cranium.astype(np.float32))[None, None]
        fields = []
        for name, (giving, reach) in KNOBS.items():
            swelling = field.blur(regions[name], SOFTNESS) * inside
            near = field.blur(regions[name], reach)
            yielding = sum((regions[other] for other in giving), torch.zeros_like(near))
            yielding = field.blur(yielding, SOFTNESS) * near * inside
            source = swelling - yielding * (swelling.sum() / yielding.sum())
            fields.append(torch.from_numpy(solver.flow(source[0, 0].numpy())))
        stacked = torch.stack(fields)
        targets = anatomy.regions[0, [STRUCTURES.index(name) for name in TARGETS]]
        knobs = cls(stacked, targets, torch.eye(len(KNOBS)))
        step = 0.05
        columns = [
            (knobs._log_growth(step * row) - knobs._log_growth(-step * row)) / (2 * step)
            for row in torch.eye(len(KNOBS))
        ]
        response = torch.stack(columns, dim=1)
        unit = response.diagonal().abs()  # scaled so that one unit is one unit of log volume
        return cls(stacked / unit.view(-1, 1, 1, 1, 1), targets, response / unit)

    def velocity(self, amounts: Tensor) -> Tensor:
        """The knobs' sum, (1, 3, *FIELD_SHAPE)."""
        return torch.einsum("k,kcxyz->cxyz", amounts, self.fields)[None]

    def _log_growth(self, amounts: Tensor) -> Tensor:
        """log(volume after / volume before) of each target, pulled back as the image will be."""
        after = field.warp(self.regions[None], field.exponential(-self.velocity(amounts)))[0]
        return torch.log(after.sum((1, 2, 3)).clamp_min(1e-6) / self.regions.sum((1, 2, 3)))

    def solve(self, log_ratios: Tensor, iterations: int = 4) -> Tensor:
        """Amounts under which the targets grow by their log ratios, as nearly as a gentle field allows.

        min_s sum_i w_i (L_i - growth_i(s))^2 + cost sum_j s_j^2, by Gauss-Newton with Broyden's update.

        Args:
            log_ratios: L, (6,), in the order of TARGETS.
        Returns:
            s, (6,).
        """
        response, weights = self.response.clone(), torch.tensor(WEIGHTS)
        amounts, growth = torch.zeros(len(KNOBS)), torch.zeros(len(KNOBS))
        for _ in range(iterations):
            weighted = response.T * weights
            gradient = weighted @ (log_ratios - growth) - COST**2 * amounts
            step = torch.linalg.solve(weighted @ response + COST**2 * torch.eye(len(KNOBS)), gradient)
            if step.abs().max() < 0.01:
                break
            amounts = amounts + step
            after = self._log_growth(amounts)
            response += torch.outer(after - growth - response @ step, step) / float(step @ step)
            growth = after
        return amounts


class _Poisson:
    """grad psi with a given divergence inside a region and no flow through its border, by conjugate gradients."""

    def __init__(self, inside: np.ndarray) -> None:
        self.inside = inside
        self.index = np.full(inside.shape, -1)
        self.index[inside] = np.arange(inside.sum())
        self.faces = []
        n = int(inside.sum())
        laplacian = sparse.csr_matrix((n, n))
        for axis in range(3):
            low = self.index.take(range(inside.shape[axis] - 1), axis)
            high = self.index.take(range(1, inside.shape[axis]), axis)
            open_face = (low >= 0) & (high >= 0)
            i, j = low[open_face], high[open_face]
            ones = np.ones(len(i))
            difference = sparse.csr_matrix(
                (np.r_[-ones, ones], (np.tile(np.arange(len(i)), 2), np.r_[i, j])), shape=(len(i), n)
            )
            self.faces.append((i, j, difference / SPACING))
            laplacian = laplacian + difference.T @ difference / SPACING**2
        self.laplacian = laplacian

    def flow(self, divergence: np.ndarray) -> np.ndarray:
        """(3, X, Y, Z) velocity at voxel centres: the mean of its two faces along each axis, 0 next to the wall."""
        right = divergence[self.inside].astype(np.float64)
        psi, _ = linalg.cg(self.laplacian, -(right - right.mean()), rtol=1e-3, maxiter=500)
        out = np.zeros((3, *self.inside.shape), dtype=np.float32)
        for axis, (i, j, gradient) in enumerate(self.faces):
            across = gradient @ psi
            mean = (np.bincount(i, across, len(psi)) + np.bincount(j, across, len(psi))) / 2
            inner = np.bincount(np.r_[i, j], minlength=len(psi)) == 2
            out[axis][self.inside] = mean * inner
        return out


def random_displacement(random: np.random.Generator, scales: tuple[tuple[float, float], ...]) -> tuple[Tensor, Tensor]:
    """A smooth random diffeomorphism and its inverse, (1, 3, *FIELD_SHAPE) each, millimetres.

    Args:
        random: source of the draw.
        scales: pairs of (smoothness, root mean square velocity), both millimetres.
    """
    velocity = torch.zeros(1, 3, *FIELD_SHAPE)
    for smoothness, size in scales:
        noise = torch.from_numpy(random.standard_normal((1, 3, *FIELD_SHAPE), dtype=np.float32))
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
