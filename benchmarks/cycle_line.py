"""What CDM's terms make of a denoiser in a case known in closed form.

    python benchmarks/cycle_line.py --json docs/results/cycle-line.json

z_0 = c + 0.6 u, u ~ N(0, 1), and a denoiser that can say slope z_t + pull c alone, at one time. Trained on each
variant's losses, as cf-train has them, its pull is given over that of the exact posterior mean: 1 hears the condition
as the data have it, 0 ignores it.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from cycle_ablation import VARIANTS
from torch import Tensor, nn

from cftools.diffusion.path import make_path
from cftools.preset import load_preset
from cftools.train.cycle import Cycle, CycleObjective
from cftools.train.diffusion import DiffusionObjective, Draw, levels

SPREAD, PEOPLE, STEPS = 0.6, 512, 250
#: Times of little, of some and of much noise.
TIMES = (0.15, 0.4, 0.7)
PATH = make_path("scaled-linear")


class Line(nn.Module):
    """x_0 = slope x_t + pull c, said as eps."""

    def __init__(self, alpha: float, sigma: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.alpha, self.sigma = alpha, sigma

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x0 = self.weights[0] * x + self.weights[1] * context[:, :, None, None, None]
        return (x - self.alpha * x0) / self.sigma


class AtOneTime(DiffusionObjective):
    """Denoises at the time that its data name."""

    def drawn(self, item: dict[str, Tensor]) -> Draw:
        clean, context = item["latent"].flatten(0, 1), item["context"].flatten(0, 1)
        times = torch.full((len(clean),), float(self.data["time"]))
        withheld = torch.zeros_like(context, dtype=torch.bool)
        return Draw(clean, context, torch.randn_like(clean), times, levels(self.path, times, clean), withheld, 1)


def pull(time: float, losses: dict[str, float], way: Cycle) -> float:
    """The trained weight of the condition over the posterior's."""
    alpha, sigma = PATH.at(time)
    none: Any = None
    plain = AtOneTime(none, none, PATH, "eps", 0.0, 0, {"time": time}, none)
    objective = CycleObjective(plain, way, losses["cycle"], losses["counterfactual"], (0,), ((-1.0, 1.0),))
    network = Line(alpha, sigma)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    torch.manual_seed(0)
    for _ in range(STEPS):
        context = 2 * torch.rand(PEOPLE, 1, 1) - 1
        latent = context[..., None, None, None] + SPREAD * torch.randn(PEOPLE, 1, 1, 8, 1, 1)
        optimiser.zero_grad()
        objective.losses(network, {"latent": latent, "context": context})["loss"].backward()
        optimiser.step()
        schedule.step()
    known = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
    return float(network.weights[1].detach()) / (1 - known * alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe, rows = load_preset("cdm").recipe_for(), []
    for name, change in VARIANTS.items():
        losses = {"counterfactual": 0.0, **recipe.losses, **change.get("losses", {})}
        way = Cycle.of({**recipe.data, **change.get("data", {})})
        for time in TIMES:
            row = {"variant": name, "time": time, "pull": round(pull(time, losses, way), 2)}
            rows.append(row)
            print(row, flush=True)
    if options.json:
        command, date = " ".join(["python", *sys.argv]), datetime.now(UTC).date().isoformat()
        options.json.write_text(json.dumps({"command": command, "date": date, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
