"""What the bundled features see: distances of damaged, averaged and old sets, over that of two sets of people.

    python benchmarks/features.py --json docs/results/features.json

Simulated people that no weights saw. One set is the reference; another, as it is, is what 1 means.
Distances are given for all levels, which is what cf-score takes, and for the last alone.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cftools.nets.convolutional import ConvolutionalArchitecture, ConvolutionalReader
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.score.distribution import frechet_distance
from cftools.train.looks import blurred
from cftools.train.twin import AGES, normalised
from cftools.weights import load


def brains(family: Family, seed: int, count: int, ages: tuple[float, float]) -> Tensor:
    """People at ages spread evenly, (B, 1, X, Y, Z)."""
    spread = enumerate(np.linspace(*ages, count))
    return torch.cat([normalised(family.draw(seed, number).at(float(age))) for number, age in spread])


def seen(network: ConvolutionalReader, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features of all levels, and of the last."""
    with torch.inference_mode():
        levels = [network.levels(image[None]) for image in images]
    everything = torch.stack([torch.cat(each, dim=1)[0] for each in levels])
    return everything.numpy(), torch.stack([each[-1][0] for each in levels]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="features-2mm")
    parser.add_argument("-n", type=int, default=24, help="people in each set")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = load(options.weights)
    network = checkpoint.network(ConvolutionalReader, ConvolutionalArchitecture)
    family = Family([template_anatomy()], load_law("normative"))
    reference = brains(family, options.seed, options.n, AGES)
    others = brains(family, options.seed + 1, options.n, AGES)
    generator = torch.Generator().manual_seed(options.seed)
    brain = (others > 0).float()

    def noisy(sigma: float) -> Tensor:
        return (others + sigma * torch.randn(others.shape, generator=generator)).clamp_min(0) * brain

    sets = {
        "as it is": others,
        "blurred, 0.5 voxels": blurred(others, torch.full((len(others),), 0.5)),
        "blurred, 1 voxel": blurred(others, torch.full((len(others),), 1.0)),
        "noise, 0.03 of the brightness": noisy(0.03),
        "noise, 0.1": noisy(0.1),
        "half way to the mean image": 0.5 * others + 0.5 * others.mean(0, keepdim=True),
        "all of 75 to 100 years": brains(family, options.seed + 2, options.n, (75.0, 100.0)),
    }
    near = seen(network, reference)
    rows: list[dict[str, Any]] = []
    for name, images in sets.items():
        distances = [frechet_distance(*pair) for pair in zip(near, seen(network, images), strict=True)]
        rows.append({"set": name, "all_levels": distances[0], "last_level": distances[1]})
        print(f"{name:32} {distances[0] / rows[0]['all_levels']:6.2f} {distances[1] / rows[0]['last_level']:6.2f}")
    if options.json:
        facts = {
            "command": f"python benchmarks/features.py -n {options.n} --seed {options.seed}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": platform.machine(),
            "weights": f"{checkpoint.name} ({checkpoint.sha256[:8]})",
            "rows": rows,
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
