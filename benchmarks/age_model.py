"""How far off the age model is: mean absolute error, years, on scans it was not trained on.

    python benchmarks/age_model.py $CFTOOLS_DATA --json docs/results/age-model.json

OASIS and the ten IXI scans that no weights were trained on, brains cut out along their labels; and simulated subjects
on the MNI152 average under the altered law.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from cftools import weights
from cftools.cohort import find_scans
from cftools.methods import ScalarReader
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import prepare
from cftools.train.twin import AGES, normalised
from cftools.volume import Volume

#: Those of IXI that gave no anatomy to the bundled weights.
UNSEEN = [f"sub-IXI{number}" for number in ("012", "014", "015", "033", "039", "051", "174", "335", "383", "443")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="age-2mm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    reader = ScalarReader(weights.load(options.weights))
    # True age and what was read, of each scan.
    pairs: dict[str, list[tuple[float, float]]] = {"oasis": [], "ixi": []}
    for name, found in pairs.items():
        for scan in find_scans(options.data / name):
            if scan.age is None or scan.brain is None or (name == "ixi" and scan.subject not in UNSEEN):
                continue
            volume = Volume.load(scan.path)
            brain = Volume.load(scan.brain).array > 0
            found.append((scan.age, reader.read(prepare(volume.with_array(volume.array * brain)))))
            print(scan.subject, scan.age, round(found[-1][1], 1))
    family, random = Family([template_anatomy()], load_law("altered"), varied=True), np.random.default_rng(4242)
    simulated = []
    for index in range(40):
        age = float(random.uniform(*AGES))
        image = normalised(family.draw(4242, index).at(age))
        simulated.append((age, reader.variable.decode(float(reader.network(image)[0]))))
    facts = {}
    for name, values in {**pairs, "simulated, altered law": simulated}.items():
        true, said = np.array(values).T
        error = said - true
        draws = np.abs(np.random.default_rng(0).choice(error, (2000, len(error)))).mean(1)
        low, high = np.percentile(draws, [2.5, 97.5])
        facts[name] = {
            "n": len(error),
            "mean_absolute_error": round(float(np.abs(error).mean()), 1),
            "low": round(float(low), 1),
            "high": round(float(high), 1),
            "bias": round(float(error.mean()), 1),
            "correlation": round(float(np.corrcoef(true, said)[0, 1]), 2),
        }
        print(name, facts[name])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
