"""The age that is read off scans cf-synth made, beside what is read off simulated subjects of those ages.

    python benchmarks/synthetic_ages.py --picture docs/figures/synthetic-ages.png [--json FILE]

As the preset makes them, or under guidance of one's own. Readers draw ages towards their middle, so that simulated
subjects (of the average brain, fresh ones) are their measure. The picture has the first sample at every age, and the
first subject under it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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

Images = dict[int, list[np.ndarray]]


def synthetic(preset: str, ages: list[int], count: int, seed: int, guidance: float | None) -> Images:
    """New scans by age, (X, Y, Z) each; a sample keeps its noise at every age."""
    plan = pipe_plan(load_preset(preset), None, Condition(), task="synth", guidance=guidance)
    synthesiser = Synthesiser(plan, lambda: torch.device("cpu"), seed, "benchmark")
    made: Images = {}
    for person in people(plan, parse_sweep([str(age) for age in ages], ["sex=F"]), count):
        volume, _ = synthesiser.make(person)
        made.setdefault(int(float(str(person.target.condition["age"]))), []).append(volume.array)
    return made


def simulated(ages: list[int], count: int, seed: int) -> Images:
    """Simulated subjects, each at every age, as networks see them."""
    family = Family([template_anatomy()], load_law("normative"))
    subjects = [family.draw(seed + 10_000, number, "F") for number in range(count)]
    return {age: [normalised(one.at(float(age)))[0, 0].numpy() for one in subjects] for age in ages}


def drawn(sets: dict[str, Images], path: Path) -> None:
    """The first image of every set at every age: an axial and a coronal slice."""
    ages = list(next(iter(sets.values())))
    figure = Figure(figsize=(1.5 * len(ages), 3.4 * len(sets)), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * len(sets), len(ages), squeeze=False)
    for row, (name, images) in enumerate(sets.items()):
        for column, age in enumerate(ages):
            image = images[age][0]
            for below, cut in enumerate((image[:, :, 44], image[:, 52, :])):
                place = axes[2 * row + below, column]
                place.imshow(np.rot90(cut), cmap="gray", vmin=0, vmax=np.percentile(image, 99.5))
                place.axis("off")
            axes[2 * row, column].set_title(f"{name}, {age}", color="white", fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ldm")
    parser.add_argument("--ages", nargs="+", type=int, default=[5, 20, 40, 60, 80, 100])
    parser.add_argument("-n", type=int, default=6, help="samples of each age")
    parser.add_argument("--guidance", nargs="+", type=float, help="instead of the preset's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", default="score-age-2mm")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    reader = ScalarReader(weights.load(options.reader))
    sets = {
        f"cf-synth, guidance {guidance:g}" if guidance is not None else "cf-synth": synthetic(
            options.preset, options.ages, options.n, options.seed, guidance
        )
        for guidance in options.guidance or [None]
    }
    sets["simulated"] = simulated(options.ages, options.n, options.seed)
    facts = []
    for name, images in sets.items():
        for age, shown in images.items():
            read = [float(reader.value(image)) for image in shown]  # type: ignore[arg-type]  # a number is read
            row = {"scans": name, "age": age, "n": len(read), "mean": round(float(np.mean(read)), 1)}
            facts.append(row | {"low": round(min(read), 1), "high": round(max(read), 1)})
            print(facts[-1], flush=True)
    if options.picture:
        drawn(sets, options.picture)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
