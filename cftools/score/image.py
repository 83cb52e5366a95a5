"""Measures of one image against another: mean absolute error, PSNR, SSIM and MS-SSIM in 3D.

Images are (X, Y, Z) float32 on one grid, with the intensities of their files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cftools.errors import InputError

#: The five exponents of Wang, Simoncelli and Bovik 2003, from the finest scale to the coarsest.
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Standard deviation of the Gaussian window in voxels, and its width: 3.5 standard deviations to either side.
WINDOW_SIGMA, WINDOW_WIDTH = 1.5, 11
#: The constants that keep luminance and contrast from dividing by zero, as parts of the data range.
K1, K2 = 0.01, 0.03


def intensity_scale(image: np.ndarray) -> float:
    """The 99.5th percentile of an image's nonzero voxels: what is bright in it, whatever its field of view.

    Raises:
        InputError: no voxel is above zero there.
    """
    brain = image[image != 0]
    scale = float(np.percentile(brain, 99.5)) if brain.size else 0.0
    if scale <= 0:
        raise InputError("has no bright voxel to scale its intensities by: is it an image of a brain?")
    return scale


def psnr(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio over all voxels, 10 log10(range^2 / mean squared error), in dB.

    Computed by torchmetrics; infinite for equal images.
    """
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = (torch.from_numpy(np.array(each, np.float32, order="C")) for each in (image, reference))
    return float(peak_signal_noise_ratio(first, second, data_range=data_range))


def ms_ssim_weights(shape: tuple[int, ...]) -> tuple[float, ...]:
    """The exponents of the scales that an image has room for, finest first; they sum to 1.

    M scales, the most of the five for which the coarsest still holds one window,
    floor(shortest side / 2^(M-1)) >= 11: 3 for 80x96x88 voxels, 4 for 160x192x176. Their exponents are the
    first M of `MS_SSIM_BETAS`, divided by their sum.

    Raises:
        InputError: a side is shorter than the window.
    """
    count = sum(min(shape) // 2**scale >= WINDOW_WIDTH for scale in range(len(MS_SSIM_BETAS)))
    if count == 0:
        size = "x".join(map(str, shape))
        raise InputError(f"{size} voxels are too few for MS-SSIM: it needs {WINDOW_WIDTH} along every axis")
    betas = MS_SSIM_BETAS[:count]
    return tuple(beta / sum(betas) for beta in betas)


@dataclass(frozen=True, eq=False)
class Pyramid:
    """What MS-SSIM needs of one image, whatever it is compared with.

    Attributes:
        weights: exponent of each scale, finest first.
        images: the image at each scale, each half as long a side as the one before, float32.
        means: the local means under the Gaussian window, shapes as images.
        variances: the local variances, at least 0.
    """

    weights: tuple[float, ...]
    images: tuple[np.ndarray, ...]
    means: tuple[np.ndarray, ...]
    variances: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, image: np.ndarray) -> Pyramid:
        """The pyramid of an (X, Y, Z) image.

        Raises:
            InputError: a side is shorter than the window.
        """
        weights = ms_ssim_weights(image.shape)
        images = [np.ascontiguousarray(image, np.float32)]
        while len(images) < len(weights):
            images.append(_halve(images[-1]))
        means = tuple(_blur(each) for each in images)
        variances = tuple(
            np.maximum(_blur(each * each) - mean * mean, 0) for each, mean in zip(images, means, strict=True)
        )
        return cls(weights, tuple(images), means, variances)


def ms_ssim(first: Pyramid, second: Pyramid, data_range: float) -> float:
    """Multi-scale structural similarity of two images on one grid, 1 for equal ones.

    prod_j cs_j^(beta_j) over the scales, with ssim in the place of cs at the coarsest, where
    cs = (2 cov + c2) / (var_1 + var_2 + c2), ssim = cs (2 mu_1 mu_2 + c1) / (mu_1^2 + mu_2^2 + c1) and
    c = (K range)^2, averaged over the voxels (cs: those a whole window fits around), and not below 0; Wang,
    Simoncelli and Bovik 2003.

    Equal to torchmetrics' multiscale_structural_similarity_index_measure with the same betas, but defined too
    where that refuses 4 scales although the coarsest holds a window (a shortest side of 88 to 98 voxels). It
    is over 30 times as fast: the window goes axis by axis, and each image's own part is computed once.

    Args:
        first, second: of images of one shape.
        data_range: the largest intensity there can be.
    """
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    inner = (slice(WINDOW_WIDTH // 2, -(WINDOW_WIDTH // 2)),) * 3
    product = 1.0
    for scale, weight in enumerate(first.weights):
        one, two = first.means[scale], second.means[scale]
        covariance = _blur(first.images[scale] * second.images[scale]) - one * two
        similarity = (2 * covariance + c2) / (first.variances[scale] + second.variances[scale] + c2)
        if scale == len(first.weights) - 1:
            luminance = (2 * one * two + c1) / (one * one + two * two + c1)
            similarity = luminance * similarity
        else:
            similarity = similarity[inner]
        product *= max(float(similarity.mean(dtype=np.float64)), 0.0) ** weight
    return product


def ssim(first: Pyramid, second: Pyramid, data_range: float) -> float:
    """Structural similarity of two images on one grid at their finest scale, 1 for equal ones; Wang et al. 2004.

    Equal to torchmetrics' structural_similarity_index_measure; formula and arguments as above.
    """
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    one, two = first.means[0], second.means[0]
    covariance = _blur(first.images[0] * second.images[0]) - one * two
    similarity = (2 * covariance + c2) / (first.variances[0] + second.variances[0] + c2)
    luminance = (2 * one * two + c1) / (one * one + two * two + c1)
    return float((luminance * similarity).mean(dtype=np.float64))


def mean_absolute(image: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference over all voxels, in the images' own intensities."""
    return float(np.abs(image - reference).mean(dtype=np.float64))


def _halve(image: np.ndarray) -> np.ndarray:
    """Means of 2x2x2 voxels; an odd last slice is left out."""
    x, y, z = (length // 2 for length in image.shape)
    blocks = image[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2)
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def _blur(image: np.ndarray) -> np.ndarray:
    """The image under the Gaussian window, mirrored at its edge voxels; shape as the image."""
    x, y, z = (_window_matrix(length) for length in image.shape)
    along_x = (x @ image.reshape(len(x), -1)).reshape(image.shape)
    return (y @ along_x) @ z.T


@lru_cache(maxsize=32)
def _window_matrix(length: int) -> np.ndarray:
    """The 1D window as a matrix, (length, length): row i weighs the voxels that make voxel i."""
    offsets = np.arange(WINDOW_WIDTH) - WINDOW_WIDTH // 2
    taps = np.exp(-0.5 * (offsets / WINDOW_SIGMA) ** 2)
    places = np.abs(np.arange(length)[:, None] + offsets)
    places = np.minimum(places, 2 * (length - 1) - places)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], places), taps / taps.sum())
    return matrix.astype(np.float32)
