"""Affine registration of a skull-stripped brain to the MNI152 template, with a check that it fits, and deformable
registration of two images on one grid."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cftools.errors import VolumeError
from cftools.itk import one_thread
from cftools.volume import Volume

#: Least correlation with the template. Seen: T1w 0.47 and more; upside down, back to front or with skull 0.36
#: and less.
LEAST_SIMILARITY = 0.40
#: At this correlation and below it is another contrast, registered well. Seen: T2w -0.23 and less.
REVERSED = -0.2
#: Least brightness of white matter over grey in a T1w scan. Seen: T1w 1.19 and more, with gadolinium 1.155; FLAIR 1.14
#: and less.
LEAST_CONTRAST = 1.15
#: Least Dice overlap with the template's brain. Seen: 0.94 and more, 0.81 for masks 6 mm too wide; half a
#: brain 0.77.
LEAST_OVERLAP = 0.79
#: Stretch from the scan to the template along any direction. Seen: 0.92 to 1.36; wrong voxel sizes give 0.6
#: or 2.
STRETCH = (0.7, 1.7)

_WORKING_MM = 4.0  # registration's resolution
_AROUND_MM = 12.0  # air around the template's brain that registration looks at
_EXTENT_MM = 80.0  # half the size of a head, to scale coordinates
_DEMONS_LEVELS = ((2, 60), (1, 40))  # times coarser, iterations
_DEMONS_SMOOTHING = 1.0  # standard deviation of the Gaussian over the displacement, voxels


@dataclass(frozen=True)
class Registration:
    """An affine registration to MNI152, and how well it fits.

    Attributes:
        matrix: native world mm -> MNI152 world mm (both RAS), (4, 4).
        similarity: correlation with the template inside the brain, smooth brightness differences set aside.
        overlap: Dice overlap of the brain with the template's.
        stretches: singular values of the linear part, largest first, (3,).
        white_to_grey: how bright the template's white matter is in the scan over its grey, at 4 mm; nan where unknown.
    """

    matrix: np.ndarray
    similarity: float
    overlap: float
    stretches: np.ndarray
    white_to_grey: float = math.nan

    @property
    def problem(self) -> str | None:
        """Why the registration is not to be trusted, in a few words; None when it is."""
        low, high = STRETCH
        if self.similarity <= REVERSED:
            return f"dark and bright are the other way round than in a T1w scan: its likeness is {self.similarity:.2f}"
        if not self.similarity >= LEAST_SIMILARITY:
            return f"its likeness to the template is {self.similarity:.2f}, less than {LEAST_SIMILARITY:.2f}"
        if not self.overlap >= LEAST_OVERLAP:
            return f"it covers the template's brain to {self.overlap:.2f}, less than {LEAST_OVERLAP:.2f}"
        if self.stretches[0] > high or self.stretches[2] < low:
            return f"it had to be stretched {self.stretches[2]:.2f} to {self.stretches[0]:.2f} times"
        return None


def template(kind: Literal["t1", "gm", "wm"] = "t1") -> Volume:
    """The MNI152 2009a nonlinear symmetric average, brain only, 0 to 1, 1 mm (Fonov et al. 2011).

    Read from nilearn's packaged file by its path, because importing nilearn is slow.

    Args:
        kind: T1w image, or grey or white matter probability.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise VolumeError("nilearn is not installed, and with it the MNI152 template: pip install nilearn")
    data = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    volume = Volume.load(data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    return volume.with_array(volume.array / volume.array.max())


@dataclass(frozen=True, eq=False)
class _Target:
    """The template as registration sees it, at 4 mm; coordinates are world mm.

    Attributes:
        image, brain: intensities and share of brain, (X, Y, Z).
        affine: of both, (4, 4).
        centre: of mass of the brain, (3,); volume: of the brain, mm^3.
        near: around the brain, where the two images are compared, (X, Y, Z) bool.
        tissues: where grey and white matter are almost alone, (2, X, Y, Z) bool.
        points: (N, 3), of every other voxel in `near`; classes: (N,), their class of intensity, 0 to 10.
    """

    image: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    centre: np.ndarray
    volume: float
    near: np.ndarray
    tissues: np.ndarray
    points: np.ndarray
    classes: np.ndarray


@lru_cache(maxsize=1)
def _target() -> _Target:
    volume = template()
    image, affine = shrink(volume.array, volume.affine)
    brain, _ = shrink((volume.array > 0).astype(np.float32), volume.affine)
    near = ndimage.distance_transform_edt(brain < 0.5) * _WORKING_MM <= _AROUND_MM
    coarse = np.argwhere(near)
    coarse = coarse[(coarse % 2 == 0).all(axis=1)]
    smooth = ndimage.gaussian_filter(image, 0.73)[tuple(coarse.T)]
    tissue = np.quantile(smooth[smooth > 0.05], np.arange(0.1, 1, 0.1))
    return _Target(
        image=image,
        brain=brain,
        affine=affine,
        centre=_apply(affine, np.array([ndimage.center_of_mass(brain)]))[0],
        volume=float(brain.sum() * abs(np.linalg.det(affine[:3, :3]))),
        near=near,
        tissues=np.stack([shrink(template(kind).array, volume.affine)[0] > 0.75 for kind in ("gm", "wm")]),
        points=_apply(affine, coarse),
        classes=np.digitize(smooth, [0.05, *tissue]),
    )


def register(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> Registration:
    """Affine registration of a brain to MNI152 by mutual information, at 4 mm.

    Centres of mass and volumes matched, the best of 175 tilts by correlation ratio, then a similarity
    transform and an affine one by SimpleITK (Mattes et al. 2003), on all points and one thread: the same
    every time.

    Args:
        image: (I, J, K) float32, 0 outside the brain.
        mask: the brain, (I, J, K) bool.
        affine: indices -> native world mm (RAS), (4, 4).
    """
    import SimpleITK as sitk

    target = _target()
    bright = np.percentile(image[mask], 99.5)
    moving, moving_affine = shrink(np.clip(image, 0, 1.5 * bright), affine)
    brain, _ = shrink(mask.astype(np.float32), affine)
    moving /= bright or 1.0
    centre = _apply(moving_affine, np.array([ndimage.center_of_mass(brain)]))[0]
    size = float(brain.sum() * abs(np.linalg.det(moving_affine[:3, :3])) / target.volume) ** (1 / 3)

    start = sitk.Similarity3DTransform()
    start.SetCenter(target.centre.tolist())
    start.SetTranslation((centre - target.centre).tolist())
    start.SetMatrix(_best_tilt(target, moving, moving_affine, centre, size).ravel().tolist())
    start.SetScale(size)
    # SimpleITK is given RAS millimetres for its own LPS, here and in the fixed image: it cannot tell, and
    # nothing is left to convert. The moving image has its indices for millimetres: its affine may hold any
    # flip or shear.
    indices = np.linalg.inv(moving_affine)
    to_indices = sitk.AffineTransform(3)
    to_indices.SetMatrix(indices[:3, :3].ravel().tolist())
    to_indices.SetTranslation(indices[:3, 3].tolist())
    final = sitk.AffineTransform(3)
    try:
        _optimise(start, target, moving, to_indices, shrink=[2], least_step=0.05)
        final.SetCenter(start.GetCenter())
        final.SetMatrix(start.GetMatrix())
        final.SetTranslation(start.GetTranslation())
        _optimise(final, target, moving, to_indices, shrink=[2, 1], least_step=0.002)
    except RuntimeError:  # the two images no longer overlap
        return Registration(np.eye(4), 0.0, 0.0, np.ones(3))
    to_native = np.eye(4)
    to_native[:3, :3] = np.reshape(final.GetMatrix(), (3, 3))
    to_native[:3, 3] = final.TransformPoint((0.0, 0.0, 0.0))
    matrix = np.linalg.inv(to_native)
    similarity, overlap, contrast = _fit(target, moving, brain, indices @ to_native @ target.affine)
    return Registration(matrix, similarity, overlap, np.linalg.svd(matrix[:3, :3], compute_uv=False), contrast)


def deformation(fixed: np.ndarray, moving: np.ndarray, millimetres: float) -> np.ndarray:
    """The displacement u under which moving(y + u(y)) looks like fixed(y).

    Diffeomorphic demons by SimpleITK (Vercauteren et al. 2009), first at half resolution, on one thread: the same every
    time. Two equal images give exactly 0.

    Args:
        fixed, moving: (X, Y, Z) float32 on one grid, in like intensities.
        millimetres: side of a voxel.
    Returns:
        (3, X, Y, Z) float32, millimetres along the grid's axes.
    """
    import SimpleITK as sitk

    affine = np.diag([millimetres, millimetres, millimetres, 1.0])
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfThreads(1)
    demons.SetStandardDeviations(_DEMONS_SMOOTHING)
    found: Any = None
    for shrink, iterations in _DEMONS_LEVELS:
        pair = [_image(image, affine) for image in (fixed, moving)]
        if shrink > 1:
            pair = [sitk.BinShrink(image, [shrink] * 3) for image in pair]
        demons.SetNumberOfIterations(iterations)
        if found is None:
            found = demons.Execute(*pair)
        else:
            found = sitk.Resample(found, pair[0], sitk.Transform(), sitk.sitkLinear, 0.0, found.GetPixelID())
            found = demons.Execute(*pair, found)
    return np.ascontiguousarray(sitk.GetArrayFromImage(found).T, np.float32)


def shrink(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of blocks of about 4 mm, and their affine; zero beyond the edges."""
    factors = np.maximum(1, np.rint(_WORKING_MM / np.linalg.norm(affine[:3, :3], axis=0))).astype(int)
    blocks = np.pad(array, [(0, -n % k) for n, k in zip(array.shape, factors, strict=True)])
    for axis, k in enumerate(factors):
        blocks = np.add.reduceat(blocks, np.arange(0, blocks.shape[axis], k), axis=axis)
    scale = np.diag([*factors, 1.0])
    scale[:3, 3] = (factors - 1) / 2
    return blocks / np.float32(factors.prod()), affine @ scale


def _apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) through an affine (4, 4)."""
    return points @ affine[:3, :3].T + affine[:3, 3]


def _best_tilt(target: _Target, moving: np.ndarray, affine: np.ndarray, centre: np.ndarray, size: float) -> np.ndarray:
    """The rotation about the centre that explains most of the scan, among tilts 20 degrees apart, (3, 3).

    By the correlation ratio: the share of the scan's variance between the template's classes of intensity.
    """
    inverse = np.linalg.inv(affine)
    smooth = ndimage.gaussian_filter(moving, 0.73)
    count = np.maximum(np.bincount(target.classes), 1)
    best, highest = np.eye(3), -1.0
    for pitch in range(-60, 61, 20):
        for roll in range(-40, 41, 20):
            for yaw in range(-40, 41, 20):
                rotation = Rotation.from_euler("xyz", (pitch, roll, yaw), degrees=True).as_matrix()
                points = (target.points - target.centre) @ (rotation * size).T + centre
                values = ndimage.map_coordinates(smooth, _apply(inverse, points).T, order=1)
                means = np.bincount(target.classes, values) / count
                between = float((count * (means - values.mean()) ** 2).sum())
                ratio = between / max(float(((values - values.mean()) ** 2).sum()), 1e-12)
                if ratio > highest:
                    best, highest = rotation, ratio
    return best


def _optimise(
    transform: Any, target: _Target, moving: np.ndarray, to_indices: Any, shrink: list[int], least_step: float
) -> None:
    """Move `transform` (target world -> scan world) to the most mutual information, coarse to fine."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(_image(target.near.astype(np.uint8), target.affine))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, least_step, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([_WORKING_MM if k > 1 else 0 for k in shrink])
    method.SetInitialTransform(transform, True)
    method.SetMovingInitialTransform(to_indices)
    with one_thread():
        method.Execute(_image(target.image, target.affine), _image(moving, np.eye(4)))


def _image(array: np.ndarray, affine: np.ndarray) -> Any:
    """A SimpleITK image of an array whose affine has no rotation."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(np.diag(affine)[:3].tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _fit(target: _Target, moving: np.ndarray, brain: np.ndarray, indices: np.ndarray) -> tuple[float, float, float]:
    """Similarity, overlap and contrast of the scan with the template, as `Registration` has them.

    Args:
        moving, brain: intensities and share of brain at 4 mm.
        indices: target's voxel indices -> indices of `moving`, (4, 4).
    """
    values, share = (
        ndimage.affine_transform(array, indices[:3, :3], indices[:3, 3], target.image.shape, order=1)
        for array in (moving, brain)
    )
    ours, theirs = share > 0.5, target.brain > 0.5
    both = ours & theirs
    overlap = 2 * both.sum() / max(int(ours.sum() + theirs.sum()), 1)
    # A receive coil brightens one side: what a quadratic in x, y, z explains is taken from both first.
    x, y, z = (_apply(target.affine, np.argwhere(both)) - target.centre).T / _EXTENT_MM
    smooth = np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
    pair = np.stack([values[both], target.image[both]], axis=1).astype(np.float64)
    if len(pair) <= smooth.shape[1]:
        return 0.0, float(overlap), math.nan
    pair -= smooth @ np.linalg.lstsq(smooth, pair, rcond=None)[0]
    lengths = np.linalg.norm(pair, axis=0)
    similarity = float(pair[:, 0] @ pair[:, 1] / max(lengths[0] * lengths[1], 1e-9))
    grey, white = (np.median(values[tissue & ours]) if (tissue & ours).any() else math.nan for tissue in target.tissues)
    return similarity, float(overlap), float(white / grey) if grey > 0 else math.nan
