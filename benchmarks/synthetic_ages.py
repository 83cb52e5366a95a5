"""What the age model reads off scans that cf-synth made, beside what it reads off simulated subjects of those ages.

    python benchmarks/synthetic_ages.py --json docs/results/synthetic-ages.json

The age model draws ages towards its middle, so that simulated subjects (the average brain, fresh ones) are its measure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from cftools import weights
from cftools.condition import Condition
from cftools.methods import ScalarReader
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.piping import Synthesiser, people, pipe_plan
from cftools.planning import parse_sweep
from cftools.preset import load_preset
from cftools.train.twin import normalised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ages", nargs="+", type=int, default=[10, 30, 50, 70, 90])
    parser.add_argument("-n", type=int, default=1, help="samples of each age")
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    reader = ScalarReader(weights.load("age-2mm"))

    def read(image: torch.Tensor) -> float:
        return float(reader.variable.decode(float(reader.network(image)[0])))

    said: dict[str, dict[int, list[float]]] = {}
    for guidance in options.guidance:
        name = f"cf-synth, guidance {guidance:g}"
        chosen = {"steps": options.steps, "guidance": guidance}
        plan = pipe_plan(load_preset("ldm"), None, Condition(), task="synth", **chosen)
        sweep = parse_sweep([str(age) for age in options.ages], ["sex=F"])
        cohort = people(plan, sweep, options.n)
        synthesiser = Synthesiser(plan, lambda: torch.device("cpu"), options.seed, "benchmark")
        for person in cohort:
            volume, _ = synthesiser.make(person)
            image = torch.from_numpy(volume.array)[None, None]
            age = int(float(str(person.target.condition["age"])))
            said.setdefault(name, {}).setdefault(age, []).append(read(image))
            print(name, age, round(said[name][age][-1], 1), flush=True)
    family = Family([template_anatomy()], load_law("normative"))
    for number in range(options.n):
        subject = family.draw(options.seed + 10_000, number, "F")
        for age in options.ages:
            found = read(normalised(subject.at(float(age))))
            said.setdefault("simulated subjects", {}).setdefault(age, []).append(found)
    facts = [
        {
            "scans": name,
            "age": age,
            "n": len(values),
            "mean": round(float(np.mean(values)), 1),
            "low": round(min(values), 1),
            "high": round(max(values), 1),
        }
        for name, by in said.items()
        for age, values in by.items()
    ]
    for row in facts:
        print(row)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
