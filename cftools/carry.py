"""Bring an edit made on the model's grid home to the scan's own grid, in one interpolation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import ndimage

from cftools.errors import PresetError
from cftools.prepare import Prepared, bounding_box
from cftools.register import deformation

#: A T1w intensity that only fluid has, as part of the median of the brain.
FLUID = 0.4
_STILL = 1e-4  # voxels; what moves less is copied
_PLANES = 16  # in a piece of work, to bound the memory
_SPLINE_REACH = 4  # voxels beyond the brain that its cubic B-spline needs, besides the displacement


#: How what a model made comes home, and which ways compare it with what the model makes of the scan as it is.
CARRIES = ("replace", "residual", "warp", "region")
NEED_FACTUAL = ("residual", "warp")


def carry_image(
    prepared: Prepared, edited: np.ndarray, factual: np.ndarray | None, carry: str | None, threads: int = 1
) -> np.ndarray:
    """What a model made of a scan, on the scan's own grid.

    Args:
        edited: on the model's grid, (X, Y, Z), normalised; factual: what the model makes of the scan as it is, for
            NEED_FACTUAL alone.
        carry: "replace"; "region", inside prepared.region; "residual", the difference of the two; "warp", the
            deformation from one to the other.
    Raises:
        PresetError: there is no such carry here.
    """
    if carry not in CARRIES:
        raise PresetError(f"carry {carry}: an image is carried by {', '.join(CARRIES)}")
    if carry not in NEED_FACTUAL:
        return carry_replacement(prepared, edited, prepared.region)
    assert factual is not None
    if carry == "residual":
        return carry_difference(prepared, factual, edited)
    millimetres = float(prepared.grid.affine[0, 0])
    return carry_field(prepared, deformation(edited, factual, millimetres), threads=threads)


def carry_field(
    prepared: Prepared, displacement: np.ndarray, residual: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Deform the scan on its own grid by a field that lives on the model's.

    With A the registration's affine, L its linear part, u the displacement and b the bias at A p, a voxel of the brain
    at native world position p becomes n + g(A p) (n - b offset) + b scale r(A p), n = native(p + L^-1 u(A p)): affine,
    field and inverse affine are composed, and the scan is interpolated once, by a cubic B-spline. Ringing is clipped to
    the range of the 27 voxels around. What does not move, and all outside the brain mask, keeps its very bits. What a
    shrinking brain uncovers at its surface is fluid where the scan shows fluid there, else background; in a head what
    lies around the brain, where that is brighter.

    Args:
        prepared: the scan and its way to the grid.
        displacement: (3, X, Y, Z) on the prepared grid, MNI152 millimetres, pull-back; 0 outside the grid.
        residual: (2, X, Y, Z), the offset r in normalised intensity and the gain g; or None.
        threads: pieces worked on at once; they change no bit of the result.
    Returns:
        (I, J, K) float32, in the scan's own intensities.
    Raises:
        ValueError: the displacement or the residual is on another grid.
    """
    if residual is not None and residual.shape != (2, *prepared.grid.shape):
        raise ValueError(f"a residual on this grid is {(2, *prepared.grid.shape)}, not {residual.shape}")
    native = prepared.volume.array
    carried = np.array(native, order="C")
    field = _Field(prepared, displacement)
    box = bounding_box(prepared.mask)
    reach = field.reach + _SPLINE_REACH
    start = np.array([[extent.start - reach] for extent in box])
    window = _window(native, box, reach)
    low, high = float(window.min()), float(window.max())

    def move(slab: tuple[slice, ...]) -> None:
        mask = prepared.mask[slab]
        values = carried[slab][mask]
        inside = _indices(slab)[:, mask]
        places = field.places(inside)
        if field.moves:
            shift = field.at(places)
            moving = np.abs(shift).max(axis=0) > _STILL
            points = (inside + shift - start)[:, moving]
            sampled = ndimage.map_coordinates(spline, points, order=3, mode="mirror", prefilter=False)
            nearest = tuple(np.rint(points).astype(np.intp))
            values[moving] = np.clip(sampled, floor[nearest], ceiling[nearest])
        if residual is not None:
            added, gain = (_read(one, places) for one in residual)
            bias = _bias(prepared, places)
            change = bias * np.float32(prepared.scale) * added + gain * (values - bias * np.float32(prepared.offset))
            changed = change != 0
            values[changed] = np.clip(values[changed] + change[changed], low, high)
        carried[slab][mask] = values

    with ThreadPoolExecutor(threads) as pool:  # scipy works without the interpreter's lock
        if field.moves:
            uncovered = surface(native[box], prepared.mask[box], prepared.offset)
            outside = ~_window(prepared.mask, box, reach)
            # In a head the brainstem goes on, and fluid is around the brain: what is there moves in.
            window[outside] = np.maximum(window[outside], uncovered) if prepared.found_by else uncovered
            lowest = pool.submit(ndimage.minimum_filter, window, size=3)
            highest = pool.submit(ndimage.maximum_filter, window, size=3)
            spline = ndimage.spline_filter(window, order=3, output=np.float32, mode="mirror")
            floor, ceiling = lowest.result(), highest.result()
        list(pool.map(move, _slabs(box)))
    return carried


def carry_difference(prepared: Prepared, factual: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """Carry by residual: n + b scale (edited - factual)(A p) inside the brain mask, clipped to the scan's range there.

    b is the bias at A p. Where the two do not differ the scan keeps its very bits.

    Args:
        factual, edited: (X, Y, Z) on the prepared grid, in its normalised intensity.
    Returns:
        (I, J, K) float32, in the scan's own intensities.
    """
    difference = np.float32(prepared.scale) * (edited - factual)
    return _repainted(prepared, lambda values, places: values + _bias(prepared, places) * _read(difference, places))


def carry_replacement(prepared: Prepared, edited: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """Carry by replace: b (offset + scale edited(A p)) inside the brain mask, or by region: only inside the region.

    b is the bias at A p.

    Args:
        edited: (X, Y, Z) on the prepared grid, in its normalised intensity.
        region: (I, J, K) bool on the scan's own grid; None for all of the brain.
    Returns:
        (I, J, K) float32, in the scan's own intensities.
    """
    offset, scale = np.float32(prepared.offset), np.float32(prepared.scale)
    return _repainted(
        prepared,
        lambda values, places: _bias(prepared, places) * (offset + scale * _read(edited, places)),
        region,
    )


def _repainted(
    prepared: Prepared,
    paint: Callable[[np.ndarray, np.ndarray], np.ndarray],
    region: np.ndarray | None = None,
) -> np.ndarray:
    """The scan with other values inside its brain mask (and a region): paint(values, places on the grid)."""
    native = prepared.volume.array
    carried = np.array(native, order="C")
    where = prepared.mask if region is None else prepared.mask & region
    if not where.any():
        return carried
    place, box = _Place(prepared), bounding_box(prepared.mask)
    low, high = float(native[box].min()), float(native[box].max())
    for slab in _slabs(bounding_box(where)):
        mask = where[slab]
        values = carried[slab][mask]
        painted = paint(values, place.places(_indices(slab)[:, mask]))
        changed = painted != values
        values[changed] = np.clip(painted[changed], low, high)
        carried[slab][mask] = values
    return carried


def move_fractions(prepared: Prepared, displacement: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """What share of each voxel a structure fills, moved as `carry_field` moves the scan, linear.

    Unlike moved labels, moved fractions also show shifts of less than a voxel, so volumes are measured with them.

    Args:
        prepared, displacement: as for `carry_field`.
        fractions: (I, J, K) in 0..1 on the scan's grid.
    Returns:
        (I, J, K) float32.
    """
    moved = np.array(fractions, dtype=np.float32, order="C")
    field = _Field(prepared, displacement)
    if not field.moves or not moved.any():
        return moved
    source = moved.copy()
    reached = tuple(
        slice(max(extent.start - field.reach - 1, 0), min(extent.stop + field.reach + 1, size))
        for extent, size in zip(bounding_box(source != 0), source.shape, strict=True)
    )
    for slab in _slabs(reached):
        indices = _indices(slab)
        shift = field.at(field.places(indices))
        moved[slab] = ndimage.map_coordinates(source, indices + shift, order=1, mode="nearest")
    return moved


class _Place:
    """Where the voxels of a scan lie on a model's grid."""

    def __init__(self, prepared: Prepared) -> None:
        self.to_mni = prepared.to_mni @ prepared.volume.affine  # native indices -> MNI152 mm
        self._to_grid = np.linalg.inv(prepared.grid.affine) @ self.to_mni

    def places(self, indices: np.ndarray) -> np.ndarray:
        """Where native voxel indices (3, ...) lie on the model's grid, in its voxels, (3, ...)."""
        # Not by BLAS, whose bits may depend on its threads.
        points = np.einsum("ij,j...->i...", self._to_grid[:3, :3], indices)
        points += self._to_grid[:3, 3].reshape(3, *[1] * (indices.ndim - 1))
        return points


class _Field(_Place):
    """A displacement on a model's grid, read at the voxels of a scan and in the scan's voxels.

    Attributes:
        moves: whether anything does.
        reach: the largest displacement, rounded up to voxels.
    """

    def __init__(self, prepared: Prepared, displacement: np.ndarray) -> None:
        shape = prepared.grid.shape
        if displacement.shape != (3, *shape):
            raise ValueError(f"a displacement on this grid is {(3, *shape)}, not {displacement.shape}")
        super().__init__(prepared)
        # To native voxels before it is read, which is the same, on fewer voxels.
        inverse = np.linalg.inv(self.to_mni[:3, :3])
        self._displacement = np.einsum("ij,jxyz->ixyz", inverse, displacement).astype(np.float32)
        longest = float(np.abs(self._displacement).max())
        self.moves = longest > _STILL
        self.reach = int(np.ceil(longest))

    def at(self, places: np.ndarray) -> np.ndarray:
        """Displacements in native voxels at places of the model's grid, both (3, ...)."""
        return np.stack([_read(component, places) for component in self._displacement])


def _read(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """An image on the model's grid at places of it, linear, 0 outside."""
    return ndimage.map_coordinates(image, places, output=np.float32, order=1, mode="grid-constant")


def _bias(prepared: Prepared, places: np.ndarray) -> np.ndarray | np.float32:
    """What the receive coil multiplies the scan by at places of the model's grid."""
    return np.float32(1) if prepared.bias is None else _read(prepared.bias, places)


def _window(array: np.ndarray, box: tuple[slice, ...], reach: int) -> np.ndarray:
    """The box with `reach` voxels around it; beyond the image its outermost voxels go on."""
    inner, beyond = [], []
    for extent, size in zip(box, array.shape, strict=True):
        start, stop = max(extent.start - reach, 0), min(extent.stop + reach, size)
        inner.append(slice(start, stop))
        beyond.append((start - (extent.start - reach), extent.stop + reach - stop))
    return np.pad(np.ascontiguousarray(array[tuple(inner)]), beyond, mode="edge")


def surface(native: np.ndarray, mask: np.ndarray, background: float = 0.0) -> float:
    """Intensity of the brain's outermost voxels if they are fluid, else the background's.

    A scan that was cut out along the inside of the skull has a rim of fluid; one cut along the cortex has none.

    Args:
        native: intensities; mask: the brain, bool; both (I, J, K).
        background: intensity outside the brain.
    """
    outermost = mask & ~ndimage.binary_erosion(mask)
    surface, middle = (float(np.median(native[where])) - background for where in (outermost, mask))
    return background + (surface if surface < FLUID * middle else 0.0)


def _slabs(box: tuple[slice, ...]) -> Iterator[tuple[slice, ...]]:
    """A box in pieces along its first axis."""
    for start in range(box[0].start, box[0].stop, _PLANES):
        yield slice(start, min(start + _PLANES, box[0].stop)), *box[1:]


def _indices(slab: tuple[slice, ...]) -> np.ndarray:
    """Voxel indices of a block, (3, I, J, K)."""
    return np.mgrid[slab]
