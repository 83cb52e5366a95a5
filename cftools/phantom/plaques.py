"""Lesions of multiple sclerosis: ovoid plaques, most of them around the ventricles and at right angles to them.

Each subject has one endless list of plaques, and a load is how far down that list the disease has come: a subject's
high load holds the very plaques of its low load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cftools.phantom.lesion import Lesion, Zones, fine, roughness, soft, tensor
from cftools.prepare import GRID_1MM

#: Lesion volume by load, ml, in the anatomy; a subject's own is this times exp(0.25 u). Median loads in published
#: cohorts lie between a few and about 15 ml, and a third of the patients or fewer have over 20 (recalled; judged).
LOADS = {"none": 0.0, "low": 2.0, "medium": 9.0, "high": 28.0}
SPREAD = 0.25
#: Share of plaques by where they begin (judged; 2017 McDonald criteria name these places).
PLACES = {"periventricular": 0.68, "juxtacortical": 0.14, "deep": 0.14, "infratentorial": 0.04}
#: Share of plaques that have lost their axons, and that take up gadolinium (judged).
BLACK_HOLES, ACTIVE = 0.25, 0.07
#: Half the length of a plaque in millimetres: median and log standard deviation of the first; those around the
#: ventricles grow longer as more come, and run together.
HALF_LENGTH, LENGTH_SPREAD, LATER = 3.3, 0.40, 45.0


@dataclass(frozen=True)
class Plaque:
    """One plaque: an ellipsoid of revolution with a wavy border.

    Attributes:
        centre: MNI152 millimetres, (3,); axis: unit vector along its length, (3,).
        length, width: half axes, millimetres.
        kind: one of LESION_TISSUES.
    """

    centre: np.ndarray
    axis: np.ndarray
    length: float
    width: float
    kind: str


def plaques(zones: Zones, random: np.random.Generator, load: str) -> Lesion:
    """The first plaques of a subject's list, up to the volume of a load.

    Args:
        zones: where they can grow.
        random: at the start of the subject's own stream, whatever the load.
        load: one of LOADS, not none.
    """
    wanted = LOADS[load] * float(np.exp(SPREAD * np.clip(random.standard_normal(), -2, 2))) * 1000
    wavy = fine(roughness(random, (2.0, 0.22), (6.0, 0.12)))
    # They stay in white matter, nearly.
    room = fine(np.clip(zones.white + 0.35 * zones.fraction("cortex") + 0.2 * zones.fraction("deep_grey"), 0, 1))
    total = np.zeros(GRID_1MM.shape, np.float32)
    tissues: dict[str, np.ndarray] = {}
    volume, number = 0.0, 0
    draw = _Places(zones)
    while volume < wanted and number < 1000:
        plaque = draw.plaque(random, number)
        box, shape = _shape(plaque, wavy)
        # Only what no earlier plaque has taken: then a later one changes nothing that was there.
        added = np.maximum(shape * room[box] - total[box], 0)
        tissues.setdefault(plaque.kind, np.zeros_like(total))[box] += added
        total[box] += added
        volume += float(added.sum())
        number += 1
    return zones.lesion({name: tensor(values) for name, values in tissues.items()})


def _shape(plaque: Plaque, wavy: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """Where a plaque is on the 1 mm grid, and its share of each voxel there."""
    corner = GRID_1MM.affine[:3, 3]
    middle = np.round(plaque.centre - corner).astype(int)
    reach = int(np.ceil(1.6 * plaque.length)) + 3
    box = tuple(slice(max(m - reach, 0), min(m + reach + 1, n)) for m, n in zip(middle, wavy.shape, strict=True))
    axes = [np.arange(one.start, one.stop) + corner[a] - plaque.centre[a] for a, one in enumerate(box)]
    offset = np.stack(np.meshgrid(*axes, indexing="ij"))
    along = np.tensordot(plaque.axis, offset, 1)
    across = np.sqrt(np.maximum((offset**2).sum(0) - along**2, 0))
    radius = np.sqrt((along / plaque.length) ** 2 + (across / plaque.width) ** 2) + wavy[box]
    return box, soft((1 - radius) * plaque.width, 0.5)


class _Places:
    """Draws plaques by the places where they begin."""

    def __init__(self, zones: Zones) -> None:
        self.zones = zones
        distance, white = zones.from_ventricles, zones.white
        x, _, z = zones.points
        cerebrum = zones.cerebrum & (white > 0.5)
        # Rarer at the temporal horns and in the middle of the corpus callosum than around bodies and trigones.
        around = cerebrum * np.exp(-distance / 3.0) * (distance < 10) * np.where(z < 2, 0.3, 1.0)
        cortex = zones.fraction("cortex")
        edge = cerebrum & (white < 0.9) & (cortex > 0.1) & (distance > 12)
        weights = {
            "periventricular": around * np.where(np.abs(x) < 7, 0.3, 1.0),
            "juxtacortical": edge * (zones.depth > 6) * 1.0,
            "deep": cerebrum * (white > 0.9) * (distance > 8) * (z > -8) * np.exp(-distance / 15.0),
            "infratentorial": ~zones.cerebrum * (white > 0.8) * (zones.depth > 10) * 1.0,
        }
        self.chances = {name: np.cumsum(weight, dtype=np.float64) for name, weight in weights.items()}
        self.gradient = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.5))).reshape(3, -1)

    def plaque(self, random: np.random.Generator, number: int) -> Plaque:
        """The next plaque; `number` is how many came before."""
        place = str(random.choice(list(PLACES), p=list(PLACES.values())))
        chances = self.chances[place]
        voxel = min(int(np.searchsorted(chances, random.random() * chances[-1])), chances.size - 1)
        centre = self.zones.points.reshape(3, -1)[:, voxel] + random.uniform(-1, 1, 3)
        growth = 1 + number / LATER if place == "periventricular" else 1.0
        length = HALF_LENGTH * growth * float(np.exp(LENGTH_SPREAD * np.clip(random.standard_normal(), -2, 2)))
        length = min(length, 14.0)
        slender = random.uniform(0.35, 0.62) if place == "periventricular" else random.uniform(0.6, 0.95)
        # Along the veins, which leave the ventricles at right angles (Dawson's fingers).
        axis = self.gradient[:, voxel] + random.normal(0, 0.15, 3)
        kind = random.random()
        name = "active_plaque" if kind < ACTIVE else "black_hole" if kind < ACTIVE + BLACK_HOLES else "plaque"
        return Plaque(centre, axis / np.linalg.norm(axis), length, slender * length, name)
