"""What truth_ratio the simulator's own field reaches: about the best to hope for of a learned one.

    python benchmarks/truth_floor.py --json docs/results/truth-floor.json

Subjects as `cf-phantom twins/ -n 20 --seed 4242 --twin age=+30,-30` makes them, moved by the true field with the cubic
interpolation of cf-edit and scored as cf-score does. What is left is noise that stays where the scanner is, one
interpolation more, and contrast, which no field changes; "with intensities fitted" also fits an offset and a gain to
each image. With `--known normative --law altered` the field is the one that a method that knows the normative law
through and through would apply to subjects who age by the altered one, whom nothing in a scan gives away.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from cftools.carry import carry_field
from cftools.condition import Change
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.cohort import simulate
from cftools.phantom.deform import TARGETS
from cftools.phantom.law import AgeingLaw, load_law
from cftools.phantom.twins import Aged, Family
from cftools.prepare import GRID_2MM, Prepared
from cftools.score.counterfactual import bootstrap_ratio, truth_errors
from cftools.volume import Volume


def _guess(before: Aged, after: Aged, law: AgeingLaw) -> torch.Tensor:
    """The displacement of someone who looks as `before` does and ages by another law, (1, 3, *GRID_2MM.shape)."""
    subject, now = before.subject, before.subject.log_ratios(before.age)
    change = [
        np.log(law.ratio(name, after.age, subject.sex) / law.ratio(name, before.age, subject.sex)) for name in TARGETS
    ]
    amounts = subject.knobs.solve(now + torch.tensor(change, dtype=torch.float32))
    return before.to(Aged(subject, after.age, subject.knobs.velocity(amounts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--law", default="normative", help="how the subjects age")
    parser.add_argument("--known", help="law that the field follows; by default the subjects' own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    family = Family([template_anatomy()], load_law(options.law))
    known = load_law(options.known) if options.known else None
    twins = [Change.parse("age", text) for text in ("+30", "-30")]
    errors: dict[str, list[tuple[str, float, float, float]]] = {}
    for _, name, images in simulate(family, options.n, options.seed, (5.0, 100.0), twins):
        first, *others = [(desc, aged, (aged.image() * aged.strip())[0, 0].numpy()) for desc, aged in images]
        _, before, scan = first
        inside = scan > 0
        volume = Volume.from_array(scan, GRID_2MM.affine)
        prepared = Prepared(volume, scan, GRID_2MM, np.eye(4), inside, 0.0, 1.0)
        for desc, after, truth in others:
            displacement = (before.to(after) if known is None else _guess(before, after, known))[0].numpy()
            moved = carry_field(prepared, displacement)
            gain, offset = np.polyfit(moved[inside], truth[inside], 1)
            fitted = np.where(inside, gain * moved + offset, 0)
            bare, full = (truth_errors(scan, truth, image) for image in (moved, fitted))
            scores = (bare.scores["inside_error"], full.scores["inside_error"], bare.nothing["inside_error"])
            errors.setdefault(desc, []).append((name, *scores))
    facts = {}
    for desc, rows in errors.items():
        names, moved, fitted, nothing = zip(*rows, strict=True)
        for label, left in (("field", moved), ("field, with intensities fitted", fitted)):
            ratio, low, high = bootstrap_ratio(names, np.array(left), np.array(nothing), 0)
            facts[f"{desc}: {label}"] = {"truth_ratio": round(ratio, 3), "low": round(low, 3), "high": round(high, 3)}
            print(desc, label, facts[f"{desc}: {label}"])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps(
                {
                    "n": options.n,
                    "seed": options.seed,
                    "law": options.law,
                    "known": options.known or options.law,
                    **facts,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
