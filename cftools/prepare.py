"""From a T1w scan whose brain is known to the model's grid, and what is needed to find the way back.

Reorient, register the brain to MNI152, resample with anti-aliasing, normalise; in a whole head, correct the bias first.
Where the brain is in a head, `cftools.heads` says.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from scipy import ndimage

from cftools.bias import bias_field
from cftools.errors import CftoolsWarning, RegistrationError, VolumeError
from cftools.nifti import printable
from cftools.register import LEAST_CONTRAST, register
from cftools.volume import Volume

#: Litres that a stripped brain can fill. Seen: 0.96 (a small brain, mask eroded by 4 mm) to 2.35 (a large
#: one, mask grown by 6 mm); whole heads from 3.7.
BRAIN_LITRES = (0.6, 2.6)


@dataclass(frozen=True)
class Grid:
    """A model's grid in MNI152 space.

    Attributes:
        name: tells grids apart.
        shape: (X, Y, Z).
        affine: voxel indices -> MNI152 world mm (RAS), (4, 4).
    """

    name: str
    shape: tuple[int, int, int]
    affine: np.ndarray = field(compare=False, repr=False)


def _grid(name: str, millimetres: int) -> Grid:
    """A grid over the box of 160 x 192 x 176 mm that holds the template's brain in its middle."""
    affine = np.diag([millimetres, millimetres, millimetres, 1.0])
    # Outer faces of the box. Left and right are alike, so that a flipped image is a mirrored brain.
    affine[:3, 3] = np.array([-80.0, -112.5, -83.5]) + millimetres / 2
    affine.flags.writeable = False
    return Grid(name, (160 // millimetres, 192 // millimetres, 176 // millimetres), affine)


GRID_2MM = _grid("MNI152 2 mm", 2)
GRID_1MM = _grid("MNI152 1 mm", 1)
GRID_4MM = _grid("MNI152 4 mm", 4)


@dataclass(frozen=True, eq=False)
class Brain:
    """Which voxels of a scan are brain, and how that is known.

    Attributes:
        mask: on the scan's own grid, (I, J, K) bool.
        found_by: weights, or a mask's file, by name; empty where the scan holds nothing else.
    """

    mask: np.ndarray
    found_by: str = ""

    def litres(self, volume: Volume) -> float:
        """How much it is."""
        return float(self.mask.sum()) * volume.voxel_volume / 1e6


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan on a model's grid, with the way back.

    Attributes:
        volume: the scan as it was given.
        image: (X, Y, Z) float32 on `grid`, in [0, 1.5], 0 outside the brain.
        grid: the model's grid.
        to_mni: native world mm -> MNI152 world mm (both RAS), (4, 4).
        mask: the brain on the scan's own grid, bool; outside it no edit changes anything.
        offset, scale: image = (native / bias - offset) / scale.
        similarity: of the registration; see `Registration`.
        region: where alone an edit may show, on the scan's own grid, bool; None for all of the brain.
        bias: what the receive coil multiplied the scan by, (X, Y, Z) on `grid`; None for 1 everywhere.
        found_by: as of `Brain`; empty for a scan that was stripped already.
    """

    volume: Volume
    image: np.ndarray
    grid: Grid
    to_mni: np.ndarray
    mask: np.ndarray
    offset: float
    scale: float
    similarity: float = math.nan
    region: np.ndarray | None = None
    bias: np.ndarray | None = None
    found_by: str = ""


def prepare(
    volume: Volume, grid: Grid = GRID_2MM, to_mni: np.ndarray | None = None, brain: Brain | None = None
) -> Prepared:
    """A T1w scan, in any orientation, on the model's grid.

    Deterministic: the same scan gives the same bits whatever the number of threads.

    Args:
        to_mni: native world mm -> MNI152 world mm where it is known, (4, 4): then nothing is registered, and the scan
            may be of any contrast.
        brain: where the brain is in a whole head; None for a scan that is stripped already.
    Raises:
        VolumeError: nothing in it; a whole head, and no brain was named; a brain of no possible size.
        RegistrationError: it could not be brought onto the template.
    Warns:
        CftoolsWarning: white matter is no brighter than in other contrasts than T1w.
    """
    name = printable(volume.path) if volume.path else "the scan"
    array, affine, orientation = canonical(volume)
    brain = brain or stripped_brain(volume)
    _check_size(name, brain, brain.litres(volume))

    mask = np.ascontiguousarray(nib.orientations.apply_orientation(brain.mask, orientation))
    box = bounding_box(mask)
    inside, values = mask[box], array[box]
    affine = affine @ _shift([extent.start for extent in box])
    bias = None
    if brain.found_by:
        bias = bias_field(values, inside, affine)
        values = values / bias
    offset = _offset(values[inside], _background(array))
    values = np.where(inside, values - np.float32(offset), np.float32(0))
    similarity = math.nan
    if to_mni is None:
        registration = register(values, inside, affine)
        if registration.problem:
            raise RegistrationError(f"{name}: does not fit the MNI152 brain ({registration.problem}): {_advice(brain)}")
        if registration.white_to_grey < LEAST_CONTRAST:
            _warn_of_contrast(name, registration.white_to_grey)
        to_mni, similarity = registration.matrix, registration.similarity
    image = resample(values, to_mni @ affine, grid)
    scale = intensity_scale(image)
    return Prepared(
        volume=volume,
        image=np.clip(image / np.float32(scale), 0, 1.5),
        grid=grid,
        to_mni=to_mni,
        mask=to_native(mask, orientation),
        offset=offset,
        scale=scale,
        similarity=similarity,
        bias=None if bias is None else _smooth_on_grid(bias, to_mni @ affine, grid),
        found_by=brain.found_by,
    )


def canonical(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A scan's voxels in RAS order, (I, J, K); their affine, (4, 4); and the scan's orientation, for `to_native`.

    One storage order for all orientations: then the same brain gives the same bits.
    """
    orientation = nib.orientations.io_orientation(volume.affine)
    array = np.ascontiguousarray(nib.orientations.apply_orientation(volume.array, orientation))
    return array, volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.array.shape), orientation


def to_native(array: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """From RAS order back to the scan's own."""
    ras = np.array([[0, 1], [1, 1], [2, 1]])
    return nib.orientations.apply_orientation(array, nib.orientations.ornt_transform(ras, orientation))


def stripped_brain(volume: Volume) -> Brain:
    """The brain of a scan that holds nothing else; all that is no background."""
    array, _, orientation = canonical(volume)
    return Brain(to_native(brain_mask(array)[0], orientation))


def itk_transform(to_mni: np.ndarray) -> str:
    """An affine as the text of an ITK transform file, for ANTs, SimpleITK and 3D Slicer.

    It takes points of MNI152 to points of the scan, as ITK resamples (fixed to moving), in its LPS millimetres.

    Args:
        to_mni: native world mm -> MNI152 world mm, both RAS, (4, 4).
    """
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = flip @ np.linalg.inv(to_mni) @ flip
    parameters = " ".join(repr(float(value)) for value in (*matrix[:3, :3].ravel(), *matrix[:3, 3]))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {parameters}\nFixedParameters: 0 0 0\n"
    )


def _check_size(name: str, brain: Brain, litres: float) -> None:
    low, high = BRAIN_LITRES
    if not brain.mask.any() and not brain.found_by:
        raise VolumeError(f"{name}: holds nothing but background: check the file")
    if brain.found_by and not low <= litres <= high:
        raise VolumeError(
            f"{name}: {litres:.2f} litres of it are brain by {brain.found_by}, and a whole brain has {low} to {high}: "
            "check that it shows a whole head, and the voxel sizes in its header; or give a mask of its brain (--mask)"
        )
    if litres > high:
        raise VolumeError(
            f"{name}: looks like a whole head ({litres:.1f} litres are not background; a brain has at "
            f"most {high}): strip the skull first (SynthStrip, HD-BET)"
        )
    if litres < low:
        raise RegistrationError(
            f"{name}: {litres:.2f} litres are not background, and a whole brain has {low} at least: "
            "check the voxel sizes in its header and what was cut away"
        )


def _warn_of_contrast(name: str, white_to_grey: float) -> None:
    text = (
        f"{name}: its white matter is {white_to_grey:.2f} times as bright as its grey, and in a T1w scan it is "
        f"{LEAST_CONTRAST} at least: is it a FLAIR or another contrast? The weights were made for T1w"
    )
    warnings.warn(text, CftoolsWarning, stacklevel=3)


def _advice(brain: Brain) -> str:
    if brain.found_by:
        return "check that it is a T1w scan of a whole head with a header that is right, and its brain mask"
    return (
        "check that it is a T1w scan of a whole brain, skull-stripped (SynthStrip, HD-BET), with a header that is right"
    )


def _shift(start: list[int]) -> np.ndarray:
    """Indices of a crop -> indices of the whole."""
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix


def brain_mask(array: np.ndarray) -> tuple[np.ndarray, float]:
    """What stands out from the background of a stripped scan, holes filled, and the background's value.

    Background is the most frequent value on the faces of the image. Voxels within 1 % of the bright tissue
    count as background: interpolation leaves a halo. Pieces below 2 % of the largest (eyes, specks) are
    left out.

    Args:
        array: (X, Y, Z).
    Returns:
        (X, Y, Z) bool, and the background.
    """
    background = _background(array)
    distance = np.abs(array - np.float32(background))
    foreground = distance[distance > 0]
    if not foreground.size:
        return np.zeros(array.shape, bool), background
    mask = distance > 0.01 * np.percentile(foreground, 99)
    box = bounding_box(mask)
    pieces, _ = ndimage.label(mask[box])
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    # All that is not joined to the padded corner is brain: holes are filled.
    outside, _ = ndimage.label(~np.pad((sizes >= 0.02 * sizes.max())[pieces], 1))
    mask[:] = False
    mask[box] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return mask, background


def _background(array: np.ndarray) -> float:
    """The most frequent value on the faces of an image."""
    faces = [np.take(array, end, axis=axis).ravel() for axis in range(3) for end in (0, -1)]
    found, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(found[counts.argmax()])


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box of indices that holds all of a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _offset(values: np.ndarray, background: float) -> float:
    """What becomes 0: the background; the darkest tissue where brain lies on both sides of it (z-scores)."""
    return background if np.mean(values < background) < 0.05 else float(np.percentile(values, 0.5))


def intensity_scale(image: np.ndarray) -> float:
    """What becomes 1: the 99.5th percentile of the brain, on a grid where the background is 0."""
    return float(np.percentile(image[image > 0], 99.5))


def resample(values: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """An image on a model's grid, linear, after smoothing away what the grid cannot hold.

    Along each axis whose voxels are r times finer than the grid's, a Gaussian of 0.42 sqrt(r^2 - 1) voxels
    goes first: with the voxel itself, a full width at half maximum of one grid voxel.

    Args:
        values: (I, J, K), 0 outside.
        affine: indices of `values` -> MNI152 world mm, (4, 4).
        grid: where to.
    Returns:
        (X, Y, Z) float32.
    """
    ratios = np.linalg.norm(grid.affine[:3, 0]) / np.linalg.norm(affine[:3, :3], axis=0)
    sigmas = 0.42 * np.sqrt(np.maximum(ratios**2 - 1, 0))
    margin = [math.ceil(4 * sigma) for sigma in sigmas]
    smooth = np.pad(values, [(n, n) for n in margin])
    smooth = ndimage.gaussian_filter(smooth, sigmas, mode="constant")
    index_of = np.linalg.inv(affine @ _shift([-n for n in margin])) @ grid.affine
    return ndimage.affine_transform(smooth, index_of[:3, :3], index_of[:3, 3], grid.shape, order=1)


def _smooth_on_grid(values: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
    """As `resample`, for what is smooth already and goes on beyond its edges."""
    index_of = np.linalg.inv(affine) @ grid.affine
    return ndimage.affine_transform(
        values, index_of[:3, :3], index_of[:3, 3], grid.shape, order=1, mode="nearest", output=np.float32
    )
