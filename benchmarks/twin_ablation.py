"""What the twin flow's parts are worth: short trainings that differ in one thing, scored on unseen twins.

    python benchmarks/twin_ablation.py $CFTOOLS_DATA/ixi --json docs/results/twin-ablation.json

Toy scale: every variant gets the same few steps on the same twins. Scored by truth_ratio (error against the
true counterfactual over the error of doing nothing) on twins 20 years or more apart: of IXI brains that were not
trained on, of the same under the altered law, and of the MNI152 average; the interval is a bootstrap over twins.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cftools.cli.bases import base_anatomies
from cftools.methods import changed, integrate
from cftools.nets.twin import TwinArchitecture
from cftools.phantom.anatomy import Anatomy, template_anatomy
from cftools.phantom.deform import TARGETS
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM
from cftools.train.loop import Schedule, train
from cftools.train.twin import TwinObjective, Twins

BASE = {"velocity_mm": 4, "residual": True, "atlas": 8}
VARIANTS: dict[str, dict] = {
    "base: 4 mm, residual, field and volume loss, atlas, IXI + MNI152, no repeats": {},
    "velocity at 8 mm": {"velocity_mm": 8},
    "no residual": {"residual": False},
    "no field loss": {"field_weight": 0.0},
    "no volume loss": {"volume_weight": 0.0},
    "fixed cohort of 30 pairs": {"cohort": 30},
    "anatomy of the MNI152 average alone": {"anatomy": "template"},
    "anatomy of the IXI scans alone": {"anatomy": "ixi"},
    "no atlas": {"atlas": 0},
}


class Cached(Dataset[dict[str, Tensor]]):
    """Twins made once and kept in half precision, so that all variants share them."""

    def __init__(self, twins: Twins, kept: dict[int, dict[str, Tensor]]) -> None:
        self.twins, self.kept = twins, kept

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = index % self.twins.cohort if self.twins.cohort else index
        if number not in self.kept:
            self.kept[number] = {k: v.half() for k, v in self.twins[number].items()}
        return {k: v.float() for k, v in self.kept[number].items()}


def ratio(network: torch.nn.Module, items: list, steps: int) -> dict[str, float]:
    """truth_ratio over both directions of each pair, ratio of sums, with a bootstrap 95 % interval."""
    errors = []
    for item in items:
        image, target = item["image"], item["target"]
        mask = (image > 0).float()
        displacement, residual = integrate(network, image, item["source"], item["goal"], steps)
        moved = changed(image, displacement, residual)
        errors.append([float(((x - target).abs() * mask).sum()) for x in (moved, image)])
    table = np.array(errors)
    random = np.random.default_rng(0)
    draws = [(lambda s: s[0] / s[1])(table[random.integers(len(table), size=len(table))].sum(0)) for _ in range(2000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    sums = table.sum(0)
    return {
        "truth_ratio": round(sums[0] / sums[1], 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
    }


def far_apart(family: Family, seed: int, count: int) -> list[dict[str, Tensor]]:
    """Twins at least 20 years apart."""
    twins, items, index = Twins(family, seed), [], 0
    while len(items) < count:
        item = twins[index]
        index += 1
        if abs(float(item["source"][0, 0] - item["goal"][0, 0])) >= 20 / 47.5:
            items.append(item)
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ixi", type=Path)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("-n", type=int, default=10, help="twins in each test")
    parser.add_argument("--only", type=str, default="", help="numbers of variants, comma-separated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    law, altered = load_law("normative"), load_law("altered")
    template = [template_anatomy(GRID_2MM)]
    middle: list[Anatomy] = base_anatomies(options.ixi, GRID_2MM, ages="40,60")
    # Those who are never trained on, in this table or for the bundled weights: eight young and old of them.
    others = ["IXI012", "IXI014", "IXI033", "IXI051", "IXI174", "IXI335", "IXI383", "IXI443"]
    unseen = base_anatomies(options.ixi, GRID_2MM, labels=others)
    anatomies = {"both": template + middle, "template": template, "ixi": middle}
    tests = {
        "unseen IXI": far_apart(Family(unseen, law, varied=True), 4242, options.n),
        "altered law": far_apart(Family(unseen, altered, varied=True), 4243, options.n),
        "MNI152": far_apart(Family(template, law, varied=True), 4244, options.n),
    }
    kept: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in anatomies}
    spread = tuple(law.log_sd(name) for name in TARGETS)
    rows = []
    chosen = [int(n) for n in options.only.split(",")] if options.only else range(len(VARIANTS))
    for number in chosen:
        name, change = list(VARIANTS.items())[number]
        settings = {**BASE, "field_weight": 1.0, "volume_weight": 0.5, "anatomy": "both", "cohort": 0, **change}
        first = 0.2 if settings["anatomy"] == "both" else None
        family = Family(anatomies[settings["anatomy"]], law, varied=True, first=first)
        architecture = TwinArchitecture(2, (0,), **{key: settings[key] for key in BASE})
        twins = Twins(family, 0, settings["cohort"])
        cached = Cached(twins, kept[settings["anatomy"]])
        objective = TwinObjective(
            architecture,
            cached,
            0,
            field_weight=settings["field_weight"],
            volume_weight=settings["volume_weight"],
            smooth_weight=0.0,
            spread=spread,
            data={"variant": name},
        )
        with tempfile.TemporaryDirectory() as folder:
            schedule = Schedule(options.steps, learning_rate=1.5e-3, workers=0, save_every=options.steps, ema=0.98)
            network, _ = train(objective, schedule, Path(folder))
        network.eval()
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        for steps in (1, 4) if number == 0 else (1,):
            label = f"{name}; ODE in 4 steps" if steps > 1 else name
            with torch.inference_mode():
                for setting, items in tests.items():
                    began = time.monotonic()
                    scores = ratio(network, items, steps)
                    seconds = (time.monotonic() - began) / len(items) / 2
                    rows.append({"variant": label, "setting": setting, "parameters_m": round(millions, 2), **scores})
                    print(label, "|", setting, scores, f"{seconds:.2f} s an edit", flush=True)
    if options.json:
        words = ["$CFTOOLS_DATA/ixi" if word == str(options.ixi) else word for word in sys.argv]
        facts = {"command": " ".join(words), "steps": options.steps, "n": options.n, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
