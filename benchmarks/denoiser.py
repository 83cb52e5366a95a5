"""What a denoiser knows at each time: the error of its estimate of x_0, decoded, over that of the average latent.

    python benchmarks/denoiser.py --json docs/results/denoiser.json

On simulated people, registered, that no weights saw, at two ages each, under their own condition. At time 1 all is
noise, and the best estimate there is is the average of those of that age and sex, here of people who grow from the
MNI152 average.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cftools.diffuse import load_space
from cftools.diffusion.denoiser import solved
from cftools.diffusion.path import make_path
from cftools.nets.standard import given_by, taken_by
from cftools.nets.unet import UNet, UNetArchitecture
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.train.diffusion import levels, trained_times
from cftools.train.people import Simulated
from cftools.weights import load


def people(space: Any, variables: Any, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Latents (B, C, *sides) of people and their conditions (B, V)."""
    family = Family([template_anatomy()], load_law("normative"), registered=True)
    cohort = Simulated(family, seed, 2, count, variables=variables)
    scans = [cohort.scans(number) for number in range(count)]
    images = torch.cat([one["image"] for one in scans]).float()
    return torch.cat([space.encode(image[None])[0] for image in images]), torch.cat([one["context"] for one in scans])


def decoded(space: Any, latents: Tensor) -> Tensor:
    """Their images, (B, 1, X, Y, Z)."""
    return torch.cat([space.decode(one[None]) for one in latents])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["age-ldm-2mm", "age-cdm-2mm"])
    parser.add_argument("--space", default="ae-2mm")
    parser.add_argument("--times", nargs="+", type=float, default=[1.0, 0.9, 0.7, 0.4, 0.2])
    parser.add_argument("-n", type=int, default=12)
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    space, _ = load_space(options.space)
    rows: list[dict[str, Any]] = []
    for name in options.weights:
        checkpoint = load(name)
        facts = checkpoint.facts.diffusion
        assert facts is not None
        network, path = checkpoint.network(UNet, UNetArchitecture), make_path(facts.path, **facts.settings)
        latents, told = people(space, checkpoint.facts.variables, options.seed, options.n)
        images = decoded(space, latents)
        average = (images - decoded(space, latents.mean(0, keepdim=True))).square().mean()
        clean = taken_by(network, latents)
        for time in options.times:
            at = levels(path, trained_times(path, torch.full((len(clean),), time)), clean)
            noisy = at.alpha * clean + at.sigma * torch.randn(
                clean.shape, generator=torch.Generator().manual_seed(options.seed)
            )
            said = torch.cat(
                [network(*(x[None] for x in one)) for one in zip(noisy, at.network_time, told, strict=True)]
            )
            estimate = solved(facts.prediction, said.float(), noisy, at.alpha, at.sigma).x0
            ratio = float((decoded(space, given_by(network, estimate)) - images).square().mean() / average)
            rows.append({"weights": checkpoint.name, "time": time, "error_over_average": ratio})
            print(f"{checkpoint.name:20} t = {time:<4} {ratio:.3f}", flush=True)
    if options.json:
        record = {
            "command": "python benchmarks/denoiser.py "
            f"-n {options.n} --seed {options.seed} --weights {' '.join(Path(name).name for name in options.weights)}",
            "date": datetime.now(UTC).date().isoformat(),
            "machine": platform.machine(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
