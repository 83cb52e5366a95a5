"""A cohort of twins edited by latent diffusion, once for every carry, guidance and start strength, inverted once.

    cf-phantom twins -n 8 --seed 4242 --twin age=+30,-30
    python benchmarks/latent_edits.py twins edited --change +30 --change=-30
    for way in edited/*; do cf-score --truth twins $way; done

Each way is a folder of BIDS derivatives, named by what was chosen, such as residual-g4-s1.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from cftools.cohort import described, find_scans
from cftools.condition import Condition
from cftools.editing import Editor
from cftools.errors import CftoolsWarning
from cftools.piping import decode, encode, model_of, pipe_plan, targets_of
from cftools.planning import parse_sweep
from cftools.preset import load_preset
from cftools.volume import Volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("twins", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--change", action="append", required=True, help="of age: +30")
    parser.add_argument("--carry", nargs="+", default=["replace", "residual", "warp"])
    parser.add_argument("--guidance", nargs="+", type=float, default=[1.0, 1.5])
    parser.add_argument("--start", nargs="+", type=float, default=[1.0])
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("-n", type=int, default=0, help="subjects; 0 for all")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore", CftoolsWarning)

    def device() -> torch.device:
        return torch.device("cpu")

    sweep = parse_sweep(options.change, [])
    for scan in find_scans(options.twins)[: options.n or None]:
        volume = Volume.load(scan.path)
        known = Condition({"age": scan.age, "sex": scan.sex})
        for strength in options.start:
            plan = pipe_plan(load_preset("ldm"), None, Condition(), steps=options.steps, start_time=strength)
            editor = Editor(plan, device)
            latent = encode(editor, editor.ready(volume, known))
            state = model_of(plan, device).invert(latent)
            for guidance in options.guidance:
                guided = replace(plan, preset=plan.preset.override(guidance=guidance))
                edits = model_of(guided, device).resample(state, targets_of(guided, state, sweep))
                for carry in options.carry:
                    folder = options.out / f"{carry}-g{guidance:g}-s{strength:g}" / scan.subject / "anat"
                    folder.mkdir(parents=True, exist_ok=True)
                    for target, image in decode(edits, device, volume, carry):
                        image.save(folder / described(scan.path, target.entity), force=True)
                print(scan.subject, strength, guidance, flush=True)


if __name__ == "__main__":
    main()
