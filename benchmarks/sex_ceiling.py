"""How often the best judge there can be tells a simulated man from a woman, once registration has taken out head size.

    python benchmarks/sex_ceiling.py
    python benchmarks/sex_ceiling.py --reader score-sex-2mm -n 150 --json docs/results/sex-reader.json

The judge knows the law, the age and every volume without error: two Gaussians of one spread, so that its accuracy is
Phi(d / 2), d the distance of their means. No reader of images can be better, on people of those ages. A reader is shown
simulated people on the MNI152 average, each as a woman and as a man who are alike in all else.
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
from scipy.stats import norm

from cftools.nets.convolutional import ConvolutionalArchitecture, ConvolutionalReader
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import AgeingLaw, load_law
from cftools.phantom.twins import TARGETS, Family
from cftools.score.counterfactual import bootstrap_ratio
from cftools.train.people import Simulated
from cftools.train.twin import AGED, AGES
from cftools.weights import load


def ceiling(law: AgeingLaw, ages: np.ndarray) -> np.ndarray:
    """Accuracy of the judge at each age."""
    apart = [[np.log(law.ratio(k, float(age), "M") / law.ratio(k, float(age), "F")) for k in TARGETS] for age in ages]
    distance = np.linalg.norm(np.array(apart) / [law.log_sd(name) for name in TARGETS], axis=1)
    return np.asarray(norm.cdf(distance / 2))


def shown(name: str, law: AgeingLaw, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What a reader says for a man, of each person as a woman and as a man, (N, 2), and their ages, (N,)."""
    network = load(name).network(ConvolutionalReader, ConvolutionalArchitecture)
    family = Family([template_anatomy()], law, registered=True)
    people = Simulated(family, seed, size=count, variables={"age": AGED["age"]}, paired=True)
    scans = [people.scans(number) for number in range(count)]
    logits = torch.stack([network(one["image"].float()) for one in scans])
    told = np.array([float(one["context"][0, 0]) for one in scans])
    return (logits[..., 1] - logits[..., 0]).numpy(), np.interp(told, (-1, 1), AGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--law", default="normative")
    parser.add_argument("--reader", help="weights of preset sex")
    parser.add_argument("-n", type=int, default=150, help="people that it is shown, as women and as men")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    law = load_law(options.law)
    ages = np.arange(5, 101, 5)
    accuracy = ceiling(law, ages)
    for age, value in zip(ages, accuracy, strict=True):
        print(f"{age:3d} years  {value:.3f}")
    print(f"mean       {accuracy.mean():.3f}")
    if not options.reader:
        return
    said, theirs = shown(options.reader, law, options.seed, options.n)
    right = np.stack([said[:, 0] < 0, said[:, 1] > 0], axis=1).mean(1)
    in_order = (said[:, 1] > said[:, 0]).astype(float)
    middle = sum(AGES) / 2
    rows: list[dict[str, Any]] = []
    for what, people in (("all", theirs >= 0), ("younger", theirs < middle), ("older", theirs >= middle)):
        best = float(ceiling(law, theirs[people]).mean())
        for metric, values in (("accuracy", right[people]), ("pairs_in_order", in_order[people])):
            ours, low, high = bootstrap_ratio([str(n) for n in range(len(values))], values, np.ones(len(values)), 0)
            rows.append({"people": what, "n": len(values), "metric": metric, "ours": ours, "low": low, "high": high})
            print(f"{what}, {metric}: {ours:.3f} [{low:.3f}, {high:.3f}]")
        rows.append({"people": what, "n": len(right[people]), "metric": "best_accuracy", "ours": best})
        print(f"{what}, best accuracy there can be: {best:.3f}")
    if options.json:
        command = f"python benchmarks/sex_ceiling.py --law {options.law} --reader {options.reader} -n {options.n}"
        record = {
            "command": f"{command} --seed {options.seed}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": platform.machine(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
