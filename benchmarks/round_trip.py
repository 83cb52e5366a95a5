"""Inversion and back without a change, by every inverter and by MONAI's, on one network in one run.

    python benchmarks/round_trip.py $CFTOOLS_DATA --json docs/results/round-trip.json

PSNR of what comes back against the autoencoder's own reconstruction, at 10, 25 and 50 network evaluations each way;
MONAI's DDIM `reversed_step` and diffusers' DDIM inverse also at 100. OASIS scans, their own age and sex.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoder import real
from torch import Tensor

from cftools.cohort import find_scans
from cftools.condition import Condition
from cftools.diffuse import DiffusionModel
from cftools.diffusion import moves, noise, start
from cftools.diffusion.integrate import integrate
from cftools.diffusion.inversion import Bdia, FixedPoint
from cftools.diffusion.path import VariancePreserving
from cftools.diffusion.solver import Ddim, FireFlow, Heun, Solver
from cftools.errors import CftoolsWarning
from cftools.planning import plan
from cftools.preset import load_preset
from cftools.sampling import Scene
from cftools.score.image import psnr

#: Each with the evaluations that one of its moves takes up, and down.
INVERTERS: dict[str, tuple[Solver, Solver, int, int]] = {
    "ddim, the papers'": (Ddim(), Ddim(), 1, 1),
    "ddim, two fixed-point iterations": (FixedPoint(Ddim(), 2, 0.0), Ddim(), 2, 1),
    "ddim, fixed point to 1e-3": (FixedPoint(Ddim(), 4, 1e-3), Ddim(), 4, 1),
    "heun": (Heun(), Heun(), 2, 2),
    "fireflow": (FireFlow(), FireFlow(), 1, 1),
    "bdia": (Bdia(), Bdia(), 1, 1),
}


def ours(model: DiffusionModel, clean: Tensor, told: Any, inverter: str, evaluations: int) -> Tensor:
    """There and back with as many evaluations each way, or fewer."""
    up, down, cost_up, cost_down = INVERTERS[inverter]
    steps = max(evaluations // max(cost_up, cost_down), 1)
    sampler = model.sampler
    times = moves.times(sampler.path, steps)
    denoise = sampler.denoise(Scene(clean), told, 1.0)
    top, state = start.inverted(up, denoise, sampler.path, clean, moves.up(times))
    state = state if isinstance(up, Bdia) else None
    end, _ = integrate(down, denoise, sampler.path, top, moves.down(times), noise.zero, noise.NO_DRAWS, state=state)
    return end


def _betas(model: DiffusionModel) -> dict[str, float]:
    """Those that the network was trained on."""
    path = model.sampler.path
    assert isinstance(path, VariancePreserving) and path.schedule == "scaled-linear" and path.times == 1000
    return {"beta_start": path.beta_start, "beta_end": path.beta_end}


def monai(model: DiffusionModel, clean: Tensor, told: Any, evaluations: int) -> Tensor:
    """MONAI's DDIM scheduler, as its tutorials invert.

    On the grid that its own steps go by: since 1.6 `set_timesteps` ends on 999, from where `reversed_step` fails.
    """
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(
        1000,
        schedule="scaled_linear_beta",
        **_betas(model),
        clip_sample=False,
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(evaluations)
    x, times = clean, [place * (1000 // evaluations) for place in range(evaluations)]
    for time_ in times[:-1]:
        x, _ = scheduler.reversed_step(model.network(x, torch.full((1,), float(time_)), told.context), time_, x)
    for time_ in times[:0:-1]:
        x, _ = scheduler.step(model.network(x, torch.full((1,), float(time_)), told.context), time_, x)
    return x


def diffusers(model: DiffusionModel, clean: Tensor, told: Any, evaluations: int) -> Tensor:
    """diffusers' DDIMInverseScheduler, then its DDIMScheduler."""
    import diffusers as library

    common = {
        **_betas(model),
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "prediction_type": "v_prediction",
    }
    x = clean
    for scheduler in (library.DDIMInverseScheduler(**common), library.DDIMScheduler(**common)):
        scheduler.set_timesteps(evaluations)
        for time_ in scheduler.timesteps:
            said = model.network(x, torch.full((1,), float(time_)), told.context)
            x = scheduler.step(said, time_, x).prev_sample
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-n", type=int, default=1, help="scans")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore", CftoolsWarning)
    chosen = plan(load_preset("ldm"), [], Condition(), dtype="float32")  # as the others are
    model, _ = DiffusionModel.of(chosen.preset, chosen.weights, torch.device("cpu"))
    halved = replace(model, preset=model.preset.override(dtype="bfloat16"))
    scans = find_scans(options.data / "oasis")[: options.n]
    images = real(options.data / "oasis", [scan.subject for scan in scans])
    ways: dict[tuple[str, int], Callable[[Tensor, Any], Tensor]] = {}
    for count in (10, 25, 50):
        for name in INVERTERS:
            ways[name, count] = lambda x, told, name=name, count=count: ours(model, x, told, name, count)
        ways["bdia, network in bfloat16", count] = lambda x, told, count=count: ours(halved, x, told, "bdia", count)
    for count in (10, 25, 50, 100):
        ways["MONAI's reversed_step", count] = lambda x, told, count=count: monai(model, x, told, count)
        ways["diffusers' DDIM inverse", count] = lambda x, told, count=count: diffusers(model, x, told, count)
    facts = []
    for (name, count), way in ways.items():
        found, began = [], time.monotonic()
        for scan, image in zip(scans, images, strict=True):
            told = model.told(Condition({"age": scan.age, "sex": scan.sex}))
            clean, _ = model.space.encode(image[None])
            kept = model.space.decode(clean)[0, 0].numpy()
            found.append(psnr(model.space.decode(way(clean, told))[0, 0].numpy(), kept, 1.0))
        row = {"inverter": name, "evaluations each way": count, "n": len(found)}
        row |= {"psnr_db": round(float(np.mean(found)), 2), "low": round(min(found), 2), "high": round(max(found), 2)}
        facts.append(row | {"seconds": round((time.monotonic() - began) / len(found), 1)})
        print(facts[-1], flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
