"""A glioblastoma: dead core, enhancing rim, oedema along the white matter, and the push on everything around.

It grows from a seed: what is drawn in the anatomy is smaller than what is seen, and the velocity that makes it grow
moves the midline, narrows the ventricles and closes the sulci, without a fold.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from cftools.phantom.lesion import Lesion, Zones, coarse, fine, roughness, soft, tensor

#: Radius of the seed, millimetres, and what it gains as it grows, as a multiple of its volume.
RADII, GROWTH = (8.5, 14.0), 1.6
#: Thickness of the enhancing rim in the seed, millimetres, and its log spread from place to place.
RIM, UNEVEN = 3.0, 0.4
#: How far oedema reaches from the core, millimetres, and what it gains, as a share of its volume.
REACH, SWELLING = (12.0, 26.0), 0.35
#: How far off, millimetres, fluid gives way.
NEARBY = 35.0


def tumour(zones: Zones, random: np.random.Generator) -> Lesion:
    """One tumour in the white matter of a hemisphere.

    Args:
        zones: where it can be.
        random: the subject's own stream.
    """
    radius = random.uniform(*RADII)
    x, _, z = zones.points
    place = (zones.white > 0.7) & zones.cerebrum & (z > -12) & (np.abs(x) > 20)
    place &= (zones.depth > radius + 12) & (zones.from_ventricles > 4)
    chances = np.cumsum(place, dtype=np.float64)
    centre = zones.points.reshape(3, -1)[:, int(np.searchsorted(chances, random.random() * chances[-1]))]

    away = zones.points - centre.reshape(3, 1, 1, 1)
    stretch = np.exp(random.normal(0, 0.14, 3)).reshape(3, 1, 1, 1)
    distance = np.sqrt(((away / stretch) ** 2).sum(0))
    # Lobes: the border wanders by a third of the radius.
    depth = radius * (1 - distance / radius + roughness(random, (10.0, 0.18), (5.0, 0.22), (2.5, 0.10)))
    rim = RIM * np.exp(roughness(random, (5.0, UNEVEN)))
    inner = roughness(random, (3.0, 1.7))
    reach = random.uniform(*REACH)
    wander = roughness(random, (7.0, 0.3), (3.5, 0.12))

    core = soft(fine(depth)) * (fine(zones.depth) > 0)
    dead = soft(fine(depth - rim + inner), 0.6) * core
    # Fingers: oedema runs along white matter, spares cortex and deep grey matter, and stays on its side.
    own_side = 1 / (1 + np.exp(-(zones.points[0] * np.sign(centre[0]) - 3) / 1.5))
    spread = np.clip(1 - (-depth) / reach + wander, -1, 1) * 8
    fingers = soft(fine(spread), 1.0) * fine(np.clip(zones.white * 1.6 - 0.6, 0, 1) * own_side)
    oedema = fingers * (1 - core) * fine(zones.cerebrum.astype(np.float32))
    return zones.lesion(
        {"necrosis": tensor(dead), "enhancing": tensor(core - dead), "oedema": tensor(oedema)},
        _mass_effect(zones, core, oedema, centre),
    )


def _mass_effect(zones: Zones, core: np.ndarray, oedema: np.ndarray, centre: np.ndarray) -> Tensor:
    near = np.exp(-0.5 * ((zones.points - centre.reshape(3, 1, 1, 1)) ** 2).sum(0) / NEARBY**2)
    return zones.push(GROWTH * coarse(core) + SWELLING * coarse(oedema), near)
