"""Bring an edit made on the model's grid home to the scan's own grid, in one interpolation."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import ndimage

from cftools.prepare import Grid, Prepared, bounding_box

_STILL = 1e-4  # voxels; what moves less is copied
_SLAB = 8  # planes in a piece of work, whatever the number of threads
_SPLINE_REACH = 4  # voxels beyond the mask that the spline's coefficients need, besides the displacement


def carry_field(
    prepared: Prepared,
    displacement: np.ndarray,
    residual: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Deform the scan on its own grid by a field that lives on the model's.

    With A the registration's affine, L its linear part and u the displacement, a voxel of the brain at native world
    position p becomes native(p + L^-1 u(A p)) + scale residual(A p): A, u and the inverse of A are composed, and the
    scan is interpolated once, by a cubic B-spline. Ringing is clipped to the range of the 27 voxels around. What does
    not move, and all outside the brain mask, keeps its very bits.

    Args:
        prepared: the scan and its way to the grid.
        displacement: (3, X, Y, Z) on the prepared grid, MNI152 millimetres, pull-back; 0 outside the grid.
        residual: (X, Y, Z) in normalised intensity, added after; or None.
        threads: default all CPUs this process may use; the result is the same for every number.
    Returns:
        (I, J, K) float32, in the scan's own intensities.
    """
    native = prepared.volume.array
    carried = native.astype(np.float32, order="C")  # a copy
    box = bounding_box(prepared.mask)
    field = _Field(prepared, displacement)
    reach = field.reach + _SPLINE_REACH
    start = np.array([extent.start - reach for extent in box])
    window = _window(native, box, reach)
    low, high = float(window.min()), float(window.max())
    if field.moves:
        coefficients = ndimage.spline_filter(window, order=3, output=np.float32, mode="mirror")
        floor = ndimage.minimum_filter(window, size=3, mode="nearest")
        ceiling = ndimage.maximum_filter(window, size=3, mode="nearest")

    def work(plane: int) -> None:
        slab = slice(plane, min(plane + _SLAB, box[0].stop)), box[1], box[2]
        inside = np.stack(np.nonzero(prepared.mask[slab]))
        inside += np.array([[extent.start] for extent in slab])
        values = carried[tuple(inside)]
        if field.moves:
            shift = field.at(inside)
            moving = np.abs(shift).max(axis=0) > _STILL
            points = inside[:, moving] + shift[:, moving] - start[:, None]
            sampled = ndimage.map_coordinates(coefficients, points, order=3, mode="mirror", prefilter=False)
            nearest = tuple(np.rint(points).astype(np.intp))
            values[moving] = np.clip(sampled, floor[nearest], ceiling[nearest])
        if residual is not None:
            change = prepared.scale * field.sample(residual, inside)
            changed = change != 0
            values[changed] = np.clip(values[changed] + change[changed], low, high)
        carried[tuple(inside)] = values

    _in_parallel(work, range(box[0].start, box[0].stop, _SLAB), threads)
    return carried


def move_labels(
    prepared: Prepared, displacement: np.ndarray, labels: np.ndarray, threads: int | None = None
) -> np.ndarray:
    """Labels on the scan's own grid, moved by the same field as `carry_field` moves the scan, nearest neighbour.

    Args:
        prepared, displacement, threads: as for `carry_field`.
        labels: (I, J, K) integers on the scan's grid, background 0.
    Returns:
        (I, J, K), of the labels' type.
    Raises:
        ValueError: the labels are on another grid.
    """
    if labels.shape != prepared.mask.shape:
        raise ValueError(f"labels are {labels.shape}, the scan is {prepared.mask.shape}")
    moved = labels.copy(order="C")
    field = _Field(prepared, displacement)
    if not field.moves or not labels.any():
        return moved
    box = [
        slice(max(extent.start - field.reach, 0), min(extent.stop + field.reach, size))
        for extent, size in zip(bounding_box(labels != 0), labels.shape, strict=True)
    ]
    last = np.array(labels.shape)[:, None] - 1

    def work(plane: int) -> None:
        slab = slice(plane, min(plane + _SLAB, box[0].stop)), box[1], box[2]
        inside = np.stack(np.nonzero(np.ones([extent.stop - extent.start for extent in slab], bool)))
        inside += np.array([[extent.start] for extent in slab])
        source = np.clip(np.rint(inside + field.at(inside)).astype(np.intp), 0, last)
        moved[tuple(inside)] = labels[tuple(source)]

    _in_parallel(work, range(box[0].start, box[0].stop, _SLAB), threads)
    return moved


class _Field:
    """A displacement on a model's grid, read at the voxels of a scan and in the scan's voxels."""

    def __init__(self, prepared: Prepared, displacement: np.ndarray) -> None:
        shape = prepared.grid.shape
        if displacement.shape != (3, *shape):
            raise ValueError(f"a displacement on this grid is {(3, *shape)}, not {displacement.shape}")
        to_mni = prepared.to_mni @ prepared.volume.affine  # native indices -> MNI152 mm
        self._to_grid = np.linalg.inv(prepared.grid.affine) @ to_mni
        # In native voxels, before it is read: the same by linearity, and one product less a voxel.
        voxels = np.linalg.inv(to_mni[:3, :3]) @ displacement.reshape(3, -1)
        self._displacement = voxels.reshape(3, *shape).astype(np.float32)
        longest = float(np.abs(self._displacement).max())
        self.moves = longest > _STILL
        self.reach = int(np.ceil(longest))

    def sample(self, image: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Values of an image on the model's grid at native voxel indices (3, N), linear, 0 outside the grid."""
        points = self._to_grid[:3, :3] @ indices + self._to_grid[:3, 3:]
        return ndimage.map_coordinates(image, points, output=np.float32, order=1, mode="grid-constant")

    def at(self, indices: np.ndarray) -> np.ndarray:
        """Displacements in native voxels at native voxel indices, both (3, N)."""
        return np.stack([self.sample(component, indices) for component in self._displacement])


def _window(array: np.ndarray, box: tuple[slice, ...], reach: int) -> np.ndarray:
    """The box with `reach` voxels around it; beyond the image its outermost voxels go on."""
    inner, beyond = [], []
    for extent, size in zip(box, array.shape, strict=True):
        start, stop = max(extent.start - reach, 0), min(extent.stop + reach, size)
        inner.append(slice(start, stop))
        beyond.append((start - (extent.start - reach), extent.stop + reach - stop))
    return np.pad(np.ascontiguousarray(array[tuple(inner)]), beyond, mode="edge")


def _in_parallel(work: Callable[[int], None], pieces: range, threads: int | None) -> None:
    """Do all pieces; the cutting does not depend on the threads, so neither does the result."""
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(work, pieces):
            pass
