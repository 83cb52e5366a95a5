"""The smooth brightness that a receive coil lays over a scan: N4, by SimpleITK (Tustison et al. 2010)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cftools.itk import one_thread

#: The resolution at which the bias is estimated.
_WORKING_MM = 4.0
_ITERATIONS = (30, 20, 10)


def bias_field(values: np.ndarray, inside: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """What a scan was multiplied by, 1 on average over the brain.

    Args:
        values: the scan, (I, J, K); inside: its brain, bool.
        affine: indices -> mm, (4, 4).
    Returns:
        (I, J, K) float32, smooth and above 0.
    """
    lowest, brightest = np.percentile(values[inside], [0.5, 99.5])
    # N4 works on logarithms.
    positive = np.maximum((values - min(float(lowest), 0.0)) / max(float(brightest - min(lowest, 0.0)), 1e-6), 0) + 0.01
    factors = np.maximum(1, np.rint(_WORKING_MM / np.linalg.norm(affine[:3, :3], axis=0))).astype(int)
    smallest = np.array(values.shape) // 4  # N4's splines need some voxels along each axis
    bias = n4(positive.astype(np.float32), inside, np.maximum(1, np.minimum(factors, smallest)).tolist())
    return (bias / np.exp(np.log(bias[inside]).mean())).astype(np.float32)


def n4(image: np.ndarray, inside: np.ndarray, shrink: Sequence[int]) -> np.ndarray:
    """N4's bias field of an image above 0, estimated at a coarser resolution; the same bits every time.

    Args:
        image: (I, J, K) float32; inside: where it counts, bool.
        shrink: voxels to one along each axis.
    Returns:
        (I, J, K) float32; divide the image by it.
    """
    import SimpleITK as sitk

    full = sitk.GetImageFromArray(image)
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    correct.SetMaximumNumberOfIterations(_ITERATIONS)
    factors = [int(factor) for factor in reversed(shrink)]  # ITK counts axes the other way
    with one_thread():
        correct.Execute(sitk.Shrink(full, factors), sitk.Shrink(mask, factors))
        logarithm = correct.GetLogBiasFieldAsImage(full)
    return np.asarray(np.exp(sitk.GetArrayFromImage(logarithm)))
