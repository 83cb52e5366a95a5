"""How much an autoencoder keeps: PSNR of its reconstructions, brain scaled to 0..1, beside plain resampling to 4 mm and
what its recipe starts from. The trained one is measured where its weights are installed.

    python benchmarks/autoencoder.py $CFTOOLS_DATA --json docs/results/autoencoder.json

Fresh simulated subjects (seed 4242) in every contrast, the OASIS scans, and the IXI scans that no weights were trained
on. Over all voxels of the model's grid, the data range being 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from age_model import UNSEEN
from torch import Tensor

from cftools.diffuse import load_space
from cftools.nets.autoencoder import Autoencoder
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.contrast import CONTRASTS
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.preset import load_preset
from cftools.score.image import psnr
from cftools.train.people import Simulated
from cftools.train.recipes import check
from cftools.volume import Volume
from cftools.weights import installed


def real(folder: Path, labels: list[str] | None = None) -> list[Tensor]:
    """Brain-only T1w scans on the model's grid."""
    from cftools.cohort import find_scans
    from cftools.prepare import prepare

    found = []
    for scan in find_scans(folder, "T1w", labels or []):
        volume = Volume.load(scan.path)
        if scan.brain is not None:
            volume = volume.with_array(volume.array * (Volume.load(scan.brain).array > 0))
        found.append(torch.from_numpy(prepare(volume).image)[None])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="ae-2mm")
    parser.add_argument("-n", type=int, default=6, help="simulated subjects a contrast")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    architecture = check(load_preset("ae").recipe_for("bundled"), ())
    untrained = Autoencoder(architecture).eval()
    family = Family([template_anatomy()], load_law("normative"))
    sets = {
        f"fresh twins, {contrast}": [
            Simulated(family, 4242, contrasts=(contrast,)).scans(number)["image"][0].float()
            for number in range(options.n)
        ]
        for contrast in CONTRASTS
    }
    sets["OASIS"] = real(options.data / "oasis")
    sets["IXI, unseen"] = real(options.data / "ixi", UNSEEN)

    def coarse(x: Tensor) -> Tensor:
        small = functional.interpolate(x, scale_factor=0.5, mode="trilinear")
        return functional.interpolate(small, size=x.shape[2:], mode="trilinear")

    def begun(x: Tensor) -> Tensor:
        sides = x.shape[2:]
        padded = functional.pad(x, [n for side in reversed(sides) for n in (0, -side % architecture.factor)])
        return untrained.decode(untrained.encode(padded)[0])[..., : sides[0], : sides[1], : sides[2]]

    ways: dict[str, Callable[[Tensor], Tensor]] = {"before training": begun, "trilinear, 4 mm": coarse}
    if installed(options.weights):
        space, _ = load_space(options.weights)
        ways = {options.weights: lambda x: space.decode(space.encode(x)[0])} | ways
    facts = {}
    for name, images in sets.items():
        for way, make in ways.items():
            found = [psnr(make(x[None])[0, 0].clamp(min=0).numpy(), x[0].numpy(), 1.0) for x in images]
            draws = np.random.default_rng(0).choice(found, (2000, len(found))).mean(1)
            low, high = np.percentile(draws, [2.5, 97.5])
            row = {"n": len(found), "psnr_db": float(np.mean(found)), "low": float(low), "high": float(high)}
            facts[f"{name}; {way}"] = {key: round(value, 2) for key, value in row.items()}
            print(f"{name}; {way}: {facts[f'{name}; {way}']}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
