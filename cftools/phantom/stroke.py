"""An old infarct: a cavity within an arterial territory, a scar around it, and the ventricle that widens towards it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from torch import Tensor

from cftools.errors import InputError
from cftools.phantom.lesion import Lesion, Zones, coarse, fine, roughness, soft, tensor
from cftools.prepare import GRID_1MM, resample
from cftools.volume import Volume

#: Territories: how often, and an ellipsoid that roughly covers each on the right, centre and half axes in MNI152
#: millimetres. Places after Tatu et al. 1998 (Neurology 50:1699), recalled; extents and shares judged.
TERRITORIES = {
    "middle cerebral, whole": (0.15, (45, -14, 20), (25, 46, 34)),
    "middle cerebral, superior": (0.25, (46, 6, 26), (21, 27, 26)),
    "middle cerebral, inferior": (0.22, (48, -44, 16), (21, 27, 25)),
    "lenticulostriate": (0.18, (24, 2, 8), (9, 20, 13)),
    "posterior cerebral": (0.12, (16, -78, 4), (17, 24, 19)),
    "anterior cerebral": (0.08, (10, 24, 42), (10, 36, 26)),
}
#: Where the arteries of a hemisphere spread from, on the right.
HUB = (20, -14, 8)
#: Drawn size of a lesion relative to its territory, along each axis.
SIZES = (0.6, 1.0)
#: Of masks, those of this many ml are taken: smaller ones are hard to see at 2 mm, larger ones leave no hemisphere.
MASK_ML = (2.0, 180.0)
#: Thickness of the scar, millimetres: of what becomes no cavity.
SCAR = 3.5
#: Log volume an infarct gains as it scars, how far off, millimetres, fluid fills the room, and how much more readily
#: the ventricle does so than the sulci (judged).
SHRINKAGE, NEARBY, VENTRICLE_FIRST = -0.35, 35.0, 5.0


def stroke(zones: Zones, random: np.random.Generator, masks: Sequence[Path] = ()) -> Lesion:
    """One chronic infarct.

    Args:
        zones: where it can be.
        random: the subject's own stream.
        masks: binary masks in MNI152 space to take a shape from, in order; without any it is made up.
    Raises:
        InputError: none of the masks has a usable size.
    """
    depth, source = _from_masks(zones, random, masks) if masks else (_made_up(zones, random), "")
    tissue = fine(1 - zones.fraction("lateral_ventricles", "third_ventricle")) * (fine(zones.depth) > 0)
    depth = np.where(tissue > 0.02, depth, -50.0)
    whole = soft(depth) * tissue
    # Scars are uneven, and islands of tissue stay in large cavities.
    islands = fine(roughness(random, (2.5, 1.6), (7.0, 2.4)))
    cavity = soft(depth - SCAR + islands, 0.8) * whole
    return zones.lesion({"cavity": tensor(cavity), "gliosis": tensor(whole - cavity)}, _ex_vacuo(zones, whole), source)


def _made_up(zones: Zones, random: np.random.Generator) -> np.ndarray:
    """Depth below the lesion's border, millimetres, (X, Y, Z) at 1 mm."""
    shares = [share for share, _, _ in TERRITORIES.values()]
    _, centre, axes = list(TERRITORIES.values())[random.choice(len(shares), p=shares)]
    side = random.choice([-1, 1])
    middle = np.array(centre) * [side, 1, 1] + random.normal(0, 3, 3) * [0.5, 1, 1]
    half = np.array(axes) * random.uniform(*SIZES) * np.exp(random.normal(0, 0.12, 3))
    offset = (zones.points - middle.reshape(3, 1, 1, 1)) / half.reshape(3, 1, 1, 1)
    mean = float(np.prod(half)) ** (1 / 3)
    # A wedge: arteries branch towards the cortex.
    outward = (middle - np.array(HUB) * [side, 1, 1]) / half
    outward /= np.linalg.norm(outward)
    along = np.tensordot(outward, offset, 1)
    across = np.sqrt(np.maximum((offset**2).sum(0) - along**2, 0)) / np.clip(0.85 + 0.5 * along, 0.3, 1.4)
    radius = np.hypot(along, across) + roughness(random, (13.0, 0.24), (5.0, 0.16))
    depth = (1 - radius) * mean
    # Arteries keep to their hemisphere, and the ones named here to the cerebrum.
    beyond = np.minimum(zones.points[0] * side - 2.0, np.where(zones.cerebrum, 50.0, -50.0))
    return fine(np.minimum(depth, beyond))


def _from_masks(zones: Zones, random: np.random.Generator, masks: Sequence[Path]) -> tuple[np.ndarray, str]:
    low, high = MASK_ML

    def usable(ml: float) -> bool:
        return bool(low <= ml <= high)

    for number in random.permutation(len(masks)):
        volume = Volume.load(masks[number])
        if not usable(np.count_nonzero(volume.array) * volume.voxel_volume / 1000):
            continue
        share = resample((volume.array > 0).astype(np.float32), volume.affine, GRID_1MM)
        inside = (share > 0.5) & (fine(zones.depth) > 0)
        if usable(inside.sum() / 1000):
            depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
            # Slices are thick in many acute scans: the steps between them are rounded off.
            return np.asarray(ndimage.gaussian_filter(depth, 1.2), dtype=np.float32), masks[number].name
    raise InputError(f"{masks[0].parent}: none of {len(masks)} masks has {low:g} to {high:g} ml of brain")


def _ex_vacuo(zones: Zones, whole: np.ndarray) -> Tensor:
    """The lesion shrinks, and ventricle and sulci on its side fill the room."""
    share = coarse(whole)
    centre = (zones.points * share).sum((1, 2, 3)) / max(float(share.sum()), 1e-6)
    near = np.exp(-0.5 * ((zones.points - centre.reshape(3, 1, 1, 1)) ** 2).sum(0) / NEARBY**2)
    near *= 1 / (1 + np.exp(-zones.points[0] * np.sign(centre[0]) / 2.0))
    near *= 1 + (VENTRICLE_FIRST - 1) * zones.fraction("lateral_ventricles")
    return zones.push(SHRINKAGE * share, near)
