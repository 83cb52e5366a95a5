"""How alike the images of a set are: MS-SSIM over all pairs, where less is more diverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from cftools.errors import InputError
from cftools.score.distribution import INTERVAL, Estimate
from cftools.score.image import Pyramid, ms_ssim

#: Bytes that pyramids may take at a time; a set that needs more is read in blocks, each block more than once.
HELD = 2 << 30
#: A pyramid's bytes for a byte of the image: image, means and variances at scales of 1, 1/8, 1/64, ...
_SIZE = 3 * 8 / 7
_RESAMPLES = 2000

#: Called as progress(done, total).
Progress = Callable[..., None]


def all_pairs(
    load: Callable[[int], np.ndarray],
    count: int,
    data_range: float,
    held: int = HELD,
    report: Progress | None = None,
    threads: int = 1,
) -> np.ndarray:
    """MS-SSIM of every image with every other, (N, N) symmetric, nan on the diagonal.

    Each image's pyramid is made once, or once a block where not all fit. A thread has a pair to itself: the products of
    one are too small to be shared among BLAS's own threads, which then wait for each other most of the time.

    Args:
        load: image by number, (X, Y, Z) float32, all on one grid.
        data_range: the largest intensity in the set.
        held: bytes for pyramids. threads: pairs at a time.
    Raises:
        InputError: fewer than 2 images, or too small.
    """
    if count < 2:
        raise InputError("MS-SSIM over all pairs needs 2 images or more")
    room = max(int(held / (load(0).nbytes * _SIZE)) // 2, 1)  # two blocks at a time
    blocks = [range(start, min(start + room, count)) for start in range(0, count, room)]
    found = np.full((count, count), np.nan)
    done, total = 0, count * (count - 1) // 2
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for number, block in enumerate(blocks):
            rows = {index: Pyramid.of(load(index)) for index in block}
            for other in blocks[number:]:
                columns = rows if other == block else {index: Pyramid.of(load(index)) for index in other}
                pairs = [(i, j) for i in block for j in other if i < j]
                scores = pool.map(partial(_score, rows, columns, data_range), pairs)
                for (i, j), value in zip(pairs, scores, strict=True):
                    found[i, j] = found[j, i] = value
                    done += 1
                    if report:
                        report(done, total)
    return found


def _score(
    rows: Mapping[int, Pyramid], columns: Mapping[int, Pyramid], data_range: float, pair: tuple[int, int]
) -> float:
    return ms_ssim(rows[pair[0]], columns[pair[1]], data_range)


def mean_of_pairs(similarity: np.ndarray, people: Sequence[str], seed: int = 0) -> Estimate:
    """Mean over all pairs of different images with its bootstrap interval over people.

    Someone whom a resample holds twice makes no pairs with herself, which would be more alike than those of two people;
    pairs of her own images count once for each time.

    Args:
        similarity: (N, N), nan on the diagonal; people: whose each image is; one brings all of its images along.
    """
    names, places = np.unique(np.asarray(people), return_inverse=True)
    known = ~np.isnan(similarity)
    membership = np.eye(len(names))[places]  # (N, people)
    sums, counts = (membership.T @ each @ membership for each in (np.where(known, similarity, 0), known.astype(float)))
    mean = float(sums.sum() / counts.sum())
    if len(names) < 3:
        return Estimate(mean)
    random = np.random.default_rng(seed)
    drawn = [np.bincount(random.integers(len(names), size=len(names)), minlength=len(names)) for _ in range(_RESAMPLES)]
    weights = np.array(drawn, float)  # (resamples, people)
    above, below = (_drawn(table, weights) for table in (sums, counts))
    with np.errstate(invalid="ignore"):  # one person alone, with one image
        means = above / below
    low, high = np.nanpercentile(means, INTERVAL)
    return Estimate(mean, float(low), float(high))


def _drawn(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums over the pairs of people in resamples, (resamples,).

    Args:
        table: sum over the pairs of images of each two people, (people, people).
        weights: how often each is drawn, (resamples, people).
    """
    own = np.diag(table)
    between: np.ndarray = np.einsum("rp,pq,rq->r", weights, table - np.diag(own), weights)
    return between + weights @ own
