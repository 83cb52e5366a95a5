"""What CDM's terms are worth: short fine-tunings of one latent diffusion model that differ in one setting of the cycle.

    python benchmarks/cycle_ablation.py --device cuda --cache cache --json docs/results/cycle-ablation.json

Every variant gets the same steps, data and seed. Scored on simulated twins that nobody saw, thirty years apart, edited
both ways by inversion and resampling: truth_ratio, the error that is left over that of doing nothing, of scan +
decoded edit - decoded resample; way_share, how far along the true change the latent went; age_share, how much
of the change that the age model reads off the truth it reads off the edit. Intervals are a bootstrap over subjects.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cftools import weights
from cftools.cli.bases import base_anatomies
from cftools.condition import Condition, encoded
from cftools.diffuse import DiffusionModel
from cftools.diffusion import noise
from cftools.diffusion.denoiser import Inputs
from cftools.errors import CftoolsError, CftoolsWarning
from cftools.methods import ScalarReader
from cftools.nets.standard import given_by, taken_by
from cftools.phantom.anatomy import Anatomy, template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM
from cftools.preset import Preset, load_preset
from cftools.recipe import Network, Recipe
from cftools.sampling import Scene
from cftools.schema import FrozenMapping
from cftools.score.counterfactual import bootstrap_ratio
from cftools.train.recipes import run
from cftools.train.twin import normalised

#: What each variant changes of the preset's own losses and data.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "the preset's own": {},
    "no cycle: denoising alone": {"losses": {"cycle": 0.0}},
    "lambda 10": {"losses": {"cycle": 10.0}},
    "eq. 1 as printed: clean on the way back": {"data": {"cycle_start": "clean"}},
    "fresh noise on the way back": {"data": {"cycle_noise": "fresh"}},
    "gradient of the way back alone": {"data": {"cycle_gradient": "back"}},
    "3 steps each way": {"data": {"cycle_steps": 3}},
    "eq. 2's second term, told c'": {"losses": {"counterfactual": 1.0}},
    "eq. 2 as printed": {"losses": {"counterfactual": 1.0}, "data": {"cycle_terms": "printed"}},
}
UNTRAINED = "before fine-tuning"
YEARS = 30.0
#: Ages of the younger twin.
YOUNG = (15.0, 65.0)


@dataclass(frozen=True)
class Twins:
    """Pairs of scans, the younger and the older of each one after the other.

    Attributes:
        images: (B, 1, X, Y, Z); latents: (B, C, *sides); context: (B, V), of each scan.
        subjects: whose each is.
    """

    images: Tensor
    latents: Tensor
    context: Tensor
    subjects: list[str]

    def swapped(self, values: Tensor) -> Tensor:
        """Of each scan's twin."""
        return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def twins_of(model: DiffusionModel, family: Family, seed: int, count: int) -> Twins:
    """Subjects at an age and thirty years later, in the model's space."""
    images, rows, subjects = [], [], []
    for number in range(count):
        subject = family.draw(seed, number)
        young = float(np.random.default_rng([seed, number]).uniform(*YOUNG))
        for age in (young, young + YEARS):
            images.append(normalised(subject.at(age)))
            rows.append(encoded(Condition({"age": age, "sex": subject.sex}), model.facts.variables))
            subjects.append(str(number))
    pictures = torch.cat(images)
    latents = torch.cat([model.space.encode(image[None].to(model.device))[0] for image in pictures])
    return Twins(pictures, latents, torch.tensor(rows, device=model.device), subjects)


def edits_of(model: DiffusionModel, twins: Twins) -> tuple[Tensor, Tensor]:
    """The latents under their twins' conditions, and under their own, (B, C, *sides) each, in one batch."""
    null = torch.full_like(twins.context, torch.nan)
    own, other = Inputs(context=twins.context, null=null), Inputs(context=twins.swapped(twins.context), null=null)
    draws = noise.Draws(0, tuple(range(len(twins.latents))))
    scene = Scene(taken_by(model.network, twins.latents))
    begun = model.sampler.up(scene, own, draws)
    down = (model.sampler.down(begun, scene, each, draws) for each in (other, own))
    edited, resampled = (given_by(model.network, x) for x in down)
    return edited, resampled


def scores(model: DiffusionModel, twins: Twins, reader: ScalarReader) -> dict[str, tuple[float, float, float]]:
    """Each metric with its interval."""
    edited, own = edits_of(model, twins)
    change = twins.swapped(twins.latents) - twins.latents
    along = ((edited - own) * change).flatten(1).sum(1).tolist()
    square = change.square().flatten(1).sum(1).tolist()
    left, nothing, read, true = [], [], [], []
    for image, truth, *latents in zip(twins.images, twins.swapped(twins.images), edited, own, strict=True):
        after, before = (model.space.decode(latent[None])[0].cpu() for latent in latents)
        brain = (image > 0) | (truth > 0)
        left.append(float((image + after - before - truth)[brain].abs().sum()))
        nothing.append(float((image - truth)[brain].abs().sum()))
        ages = [float(reader.network(one[None].to(reader.device))[0]) for one in (after, before, truth, image)]
        sign = float(np.sign(ages[2] - ages[3]))
        read.append(sign * (ages[0] - ages[1]))
        true.append(sign * (ages[2] - ages[3]))
    pairs = {"truth_ratio": (left, nothing), "way_share": (along, square), "age_share": (read, true)}
    return {
        metric: bootstrap_ratio(twins.subjects, np.array(above), np.array(below), 0)
        for metric, (above, below) in pairs.items()
    }


def recipe_of(preset: Preset, facts: weights.Facts, options: argparse.Namespace) -> Recipe:
    """The preset's recipe, of the network that is fine-tuned and on its path."""
    assert facts.diffusion is not None
    recipe = preset.recipe_for()
    given = ("inputs", "outputs", "variables", "sides")
    arguments = {name: value for name, value in facts.architecture_arguments.items() if name not in given}
    data = {"path": facts.diffusion.path, "prediction": facts.diffusion.prediction, "cohort": options.cohort}
    return replace(
        recipe,
        initial=options.init,
        network=Network(recipe.network.architecture, FrozenMapping(arguments)),
        training=replace(recipe.training, steps=options.steps),
        data=FrozenMapping({**recipe.data, **data, "space": preset.weights["space"][0]}),
    )


def fine_tuned(
    recipe: Recipe, change: Mapping[str, Mapping[str, Any]], anatomies: list[Anatomy], out: Path, options: Any
) -> Path:
    """The weights of a variant."""
    changed = {
        table: FrozenMapping({**getattr(recipe, table), **change.get(table, {})}) for table in ("losses", "data")
    }
    return run(
        recipe=replace(recipe, **changed),  # type: ignore[arg-type]
        conditions=("age", "sex"),
        anatomies=anatomies,
        real=[],
        law=load_law("normative"),
        seed=0,
        out=out,
        command="benchmark",
        source="MNI152 average",
        licence="Apache-2.0",
        date=datetime.now(UTC).date().isoformat(),
        device=options.device,
        workers=options.workers,
        cache=options.cache,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", default="age-ldm-2mm", help="weights of the ldm that is fine-tuned, a name or a file")
    parser.add_argument("--space", help="weights of its autoencoder, else the preset's")
    parser.add_argument("--base", type=Path, help="BIDS folder of brains to simulate on beside the average")
    parser.add_argument("--participant-label", type=lambda text: text.split(","), help="of those, else all")
    parser.add_argument("--cache", type=Path, help="folder in which simulated subjects stay, as cf-train --cache")
    parser.add_argument("--cohort", type=int, default=800, help="subjects to train on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("-n", type=int, default=12, help="twins to score on")
    parser.add_argument("--seed", type=int, default=4242, help="of the twins")
    parser.add_argument("--evaluations", type=int, default=20, help="steps of the solver, each way")
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--only", default="", help="numbers of variants, comma-separated")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measured(
    name: str, path: str, preset: Preset, twins: Twins | None, family: Family, options: Any
) -> tuple[list[dict[str, Any]], Twins]:
    """The rows of one variant, and the twins, made when they are not there yet."""
    device = torch.device(options.device)
    reader = ScalarReader(weights.load("age-2mm"), device)
    rows = []
    with torch.inference_mode():
        for guidance in options.guidance:
            chosen = preset.override(guidance=guidance, steps=options.evaluations)
            model, _ = DiffusionModel.of(chosen, path, device)
            twins = twins or twins_of(model, family, options.seed, options.n)
            for metric, (ours, low, high) in scores(model, twins, reader).items():
                row = {"table": f"cycle, guidance {guidance:g}", "method": preset.name, "setting": name}
                values = {"ours": round(ours, 4), "low": round(low, 4), "high": round(high, 4), "paper": None}
                rows.append({**row, "metric": metric, **values})
                print(f"{name} | guidance {guidance:g} | {metric} {ours:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    assert twins is not None
    return rows, twins


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", CftoolsWarning)
    preset = load_preset("cdm")
    if options.space:
        preset = replace(preset, weights=FrozenMapping({**preset.weights, "space": (options.space,)}))
    recipe = recipe_of(preset, weights.facts_of(options.init), options)
    anatomies = [template_anatomy(GRID_2MM)]
    if options.base:
        anatomies += base_anatomies(options.base, GRID_2MM, options.participant_label, cache=options.cache)
    registered = recipe.data.get("people") == "registered"
    family = Family(anatomies, load_law("normative"), varied=not registered, registered=registered)
    rows, twins = measured(UNTRAINED, options.init, preset, None, family, options)
    numbers = [int(number) for number in options.only.split(",")] if options.only else range(len(VARIANTS))
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            name, change = list(VARIANTS.items())[number]
            try:
                path = fine_tuned(recipe, change, anatomies, Path(folder, str(number)), options)
            except CftoolsError as error:  # a variant may well diverge: the others go on
                print(f"{name}: {error}", flush=True)
                continue
            rows += measured(name, str(path), preset, twins, family, options)[0]
            if options.json:  # after every variant: a stopped run keeps what it found
                write(options, rows)


def write(options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """The file of the results so far."""
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
        "steps": options.steps,
        "cohort": {"seed": options.seed, "n": options.n},
        "rows": list(rows),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
