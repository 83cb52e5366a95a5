"""How much faster MS-SSIM over all pairs is with one pyramid an image than torchmetrics pair by pair.

    python benchmarks/ms_ssim_pairs.py --json docs/results/ms-ssim-pairs.json

Volumes of the 2 mm grid, smooth and random: the time hangs on their size alone. torchmetrics is timed on some of the
pairs, and its time for all is taken from those; on the same pairs the values are compared.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from cftools.prepare import GRID_2MM
from cftools.score.diversity import all_pairs
from cftools.score.image import ms_ssim_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=50, help="volumes")
    parser.add_argument("--pairs", type=int, default=5, help="pairs that torchmetrics is timed on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    random = np.random.default_rng(0)
    shared = random.normal(size=GRID_2MM.shape)
    images = [
        ndimage.gaussian_filter(shared + 0.5 * random.normal(size=GRID_2MM.shape), 1.5).astype(np.float32)
        for _ in range(options.n)
    ]
    low, high = min(image.min() for image in images), max(image.max() for image in images)
    images = [(image - low) / (high - low) for image in images]

    began = time.perf_counter()
    found = all_pairs(lambda index: images[index], len(images), 1.0, threads=options.threads)
    ours = time.perf_counter() - began

    betas = ms_ssim_weights(GRID_2MM.shape)
    some = list(islice(combinations(range(options.n), 2), options.pairs))
    tensors = [torch.from_numpy(image)[None, None] for image in images]
    began = time.perf_counter()
    theirs = [
        float(multiscale_structural_similarity_index_measure(tensors[i], tensors[j], data_range=1.0, betas=betas))
        for i, j in some
    ]
    each = (time.perf_counter() - began) / len(some)
    pairs = options.n * (options.n - 1) // 2
    facts = {
        "volumes": options.n,
        "shape": list(GRID_2MM.shape),
        "pairs": pairs,
        "threads": options.threads,
        "seconds": round(ours, 1),
        "torchmetrics_pairs_timed": len(some),
        "torchmetrics_seconds_a_pair": round(each, 3),
        "ratio": round(each * pairs / ours, 1),
        "largest_difference": max(abs(found[i, j] - value) for (i, j), value in zip(some, theirs, strict=True)),
    }
    print(json.dumps(facts, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
