"""Distances between two sets of images by their features: the Fréchet distance (FID) and the kernel distance (KID).

Features are (N, D), a row an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cftools.errors import InputError

#: Percentiles between which an interval lies.
INTERVAL = (2.5, 97.5)
#: Draws of as many people; and random halves for KID.
RESAMPLES, HALVES = 300, 200


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval, nan where there is none."""

    ours: float
    low: float = float("nan")
    high: float = float("nan")


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians of the means and covariances of two sets (Heusel et al. 2017).

    |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2). With S = A'A for centred A, the last trace is the nuclear
    norm of A_1 A_2': exact also where there are fewer images than features, and the covariances have no full rank.
    Else it agrees with torchmetrics' to rounding.

    Raises:
        InputError: a set has fewer than 2 images.
    """
    if min(len(first), len(second)) < 2:
        raise InputError("FID needs 2 images or more in each set, for their covariance")
    roots = [_root(each) for each in (first, second)]
    shared = np.linalg.norm(roots[0] @ roots[1].T, ord="nuc")
    shift = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    return float(shift @ shift + sum((root**2).sum() for root in roots) - 2 * shared)


def fid(first: np.ndarray, second: np.ndarray, people: Sequence[Sequence[str]], seed: int = 0) -> Estimate:
    """Fréchet distance with a bootstrap interval over the people of both sets.

    A resample repeats images, which adds to the distance what a smaller set would add; the percentiles are moved so
    that their median is the distance itself.

    Args:
        people: whose each image is, for the two sets; a person brings all of its images along.
    Raises:
        InputError: as above.
    """
    distance = frechet_distance(first, second)
    groups = [_groups(names) for names in people]
    if min(map(len, groups)) < 2:
        return Estimate(distance)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        one, other = (
            each[np.concatenate([group[k] for k in random.integers(len(group), size=len(group))])]
            for each, group in zip((first, second), groups, strict=True)
        )
        if min(len(one), len(other)) > 1:
            found.append(frechet_distance(one, other))
    low, middle, high = np.percentile(found, [INTERVAL[0], 50, INTERVAL[1]])
    return Estimate(distance, max(distance + float(low - middle), 0.0), distance + float(high - middle))


def kid(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Estimate:
    """Squared maximum mean discrepancy under the kernel (x'y / D + 1)^3, unbiased (Binkowski et al. 2018).

    The mean over random halves of the smaller set's size, without replacement; their percentiles are the interval:
    halves vary about the whole as the whole varies about the truth. The arithmetic is torchmetrics'.

    Raises:
        InputError: a set has fewer than 4 images.
    """
    import torch
    from torchmetrics.image.kid import poly_mmd

    size = min(len(first), len(second)) // 2
    if size < 2:
        raise InputError("KID needs 4 images or more in each set, for two in each half")
    random = np.random.default_rng(seed)
    tensors = [torch.from_numpy(each.astype(np.float64)) for each in (first, second)]
    found = []
    for _ in range(HALVES):
        one, other = (each[torch.from_numpy(random.permutation(len(each))[:size])] for each in tensors)
        found.append(float(poly_mmd(one, other)))
    low, high = np.percentile(found, INTERVAL)
    return Estimate(float(np.mean(found)), float(low), float(high))


def _root(features: np.ndarray) -> np.ndarray:
    """R with R'R the covariance, (min(N, D), D) float64."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    centred /= np.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    root: np.ndarray = np.linalg.qr(centred, mode="r")  # type: ignore[assignment]
    return root


def _groups(people: Sequence[str]) -> list[np.ndarray]:
    """Places of each person's images."""
    names, places = np.unique(np.asarray(people), return_inverse=True)
    return [np.flatnonzero(places == number) for number in range(len(names))]
