"""Where to cut scans for a picture, and in which greys: shared by figures and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from cftools.errors import UsageError
from cftools.volume import Volume

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Each plane with the axis (of x, y, z) that it is cut across."""

WINDOW = (0.5, 99.5)  # percentiles of the foreground
MARGIN = 6.0  # mm around the head


@dataclass(frozen=True)
class Scene:
    """All that the panels of one picture share; arrays are in RAS order.

    `corner` and `size` frame the foreground, in mm along each voxel axis from the edge of voxel 0.
    """

    affine: np.ndarray  # (4, 4), voxel indices in RAS order -> world mm
    voxel_sizes: np.ndarray  # (3,) mm
    position: np.ndarray  # (3,) voxel through which all planes pass
    world: np.ndarray  # (3,) the same in world mm
    corner: np.ndarray
    size: np.ndarray
    window: tuple[float, float]
    limit: float  # colours of a difference reach from -limit to limit
    radiological: bool


def scene_of(
    before: Volume,
    arrays: Sequence[np.ndarray],
    at: tuple[float, float, float] | None = None,
    radiological: bool = False,
    limit: float | None = None,
    brain: np.ndarray | None = None,
) -> Scene:
    """Where and how to show scans.

    Args:
        before: whose grid it is.
        arrays: it and the others in RAS order, as `to_ras` gives them.
        at: world mm (RAS) through which the planes pass; by default the brain's centre.
        radiological: show the subject's left on the right.
        limit: largest difference on the colour scale; by default its 99.5th percentile in the brain.
        brain: in RAS order, bool; by default all that is not background.
    Raises:
        UsageError: a position outside the scan.
    """
    affine = to_ras(before.array, before.affine)[1]
    shape = np.array(arrays[0].shape)
    voxel_sizes = np.linalg.norm(affine[:3, :3], axis=0)
    shown = foreground = _foreground(arrays[0])
    window = np.percentile(arrays[0][foreground], WINDOW)
    if at is None:
        centre = foreground if brain is None else brain
        position = np.rint([occupied.mean() for occupied in np.nonzero(centre)]).astype(int)
    else:
        position = np.rint(np.linalg.solve(affine, [*at, 1.0])[:3]).astype(int)
        if (position < 0).any() or (position >= shape).any():
            raise UsageError(f"{','.join(f'{x:g}' for x in at)} mm lies outside {before.path or '-'}")
    for array in arrays[1:]:
        shown = shown | _foreground(array)
    if limit is None:
        where = shown if brain is None else brain
        changes = [np.percentile(np.abs(array - arrays[0])[where], 99.5) for array in arrays[1:]]
        # Where nothing changed any scale will do: the window's own width shows that as blank.
        limit = float(max(changes, default=0.0)) or float(np.ptp(window)) or 1.0
    first, last = (np.array([edge(occupied) for occupied in np.nonzero(shown)]) for edge in (np.min, np.max))
    return Scene(
        affine=affine,
        voxel_sizes=voxel_sizes,
        position=position,
        world=(affine @ [*position, 1.0])[:3],
        corner=first * voxel_sizes - MARGIN,
        size=(last + 1 - first) * voxel_sizes + 2 * MARGIN,
        window=(float(window[0]), float(window[1])),
        limit=limit,
        radiological=radiological,
    )


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An array and its affine with the axes flipped and permuted to run to right, anterior, superior."""
    orientation = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(array, orientation)
    return turned, affine @ nib.orientations.inv_ornt_aff(orientation, array.shape)


def cut(scene: Scene, plane: str, array: np.ndarray) -> np.ndarray:
    """One slice, (across, up), of an array in RAS order."""
    axis = PLANES[plane]
    return np.take(array, scene.position[axis], axis=axis)


def axes_of(plane: str) -> tuple[int, int]:
    """The axes (of x, y, z) that run across and up a plane."""
    across, up = (axis for axis in range(3) if axis != PLANES[plane])
    return across, up


def place(scene: Scene, plane: str, to_mni: np.ndarray | None = None) -> str:
    """Where a plane is cut: `z = 12 mm`, in the scan's world or, by its matrix from there, in MNI152's."""
    axis = PLANES[plane]
    world = scene.world if to_mni is None else to_mni[:3, :3] @ scene.world + to_mni[:3, 3]
    where = "" if to_mni is None else " in MNI152"
    return f"{'xyz'[axis]} = {world[axis].round() + 0.0:.0f} mm{where}"


def _foreground(array: np.ndarray) -> np.ndarray:
    """What differs from the corner voxel, by more than interpolation leaves behind; all, if nothing does."""
    differs = np.abs(array - array[0, 0, 0]) > 1e-3 * np.ptp(array)
    return differs if differs.any() else np.ones_like(differs)
