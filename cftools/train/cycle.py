"""Fine-tuning a denoiser to come back: to another condition and home again (Huang et al. 2025, the CDM paper).

What the terms are, where the paper's equations cannot be meant as printed, and why this is what we train:
docs/cdm.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils.data import Dataset

from cftools.condition import Variable
from cftools.diffusion.denoiser import solved, target
from cftools.errors import PresetError
from cftools.schema import read
from cftools.train.diffusion import DiffusionObjective, Draw, Levels, levels, trained_times
from cftools.train.loop import Objective, Product


@dataclass(frozen=True)
class Cycle:
    """How a latent goes to another condition and comes back, and what the denoising terms are told.

    Attributes:
        start: what the way back begins from: the counterfactual "noised" again to t, as in eq. 2 of the paper; or
            "clean", as eq. 1 has it, which shows the network at time t what has no noise.
        noise: of the way back: the "same" as of the way there, or "fresh".
        steps: evaluations each way; 1 is the estimate of x_0 at once, more are DDIM's steps from t to 0.
        gradient: through both ways, "through", or through the way "back" alone.
        terms: what the denoising terms are told: the condition that their latents have, "own"; or "printed", as eq. 2
            has them: c' of the scan, c of its counterfactual.
    """

    start: Literal["noised", "clean"] = "noised"
    noise: Literal["same", "fresh"] = "same"
    steps: int = 1
    gradient: Literal["through", "back"] = "through"
    terms: Literal["own", "printed"] = "own"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be 1 or more")

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Cycle:
        """What the keys cycle_start, cycle_noise and so on of a recipe's data say.

        Raises:
            PresetError: one of them is none of the above.
        """
        ways = {name.removeprefix("cycle_"): value for name, value in data.items() if name.startswith("cycle_")}
        return read(cls, ways, "data, cycle", PresetError)


@dataclass(frozen=True)
class CycleObjective:
    """denoising + cycle |z_0 - back|_1 + counterfactual denoising of the counterfactual; the paper's eq. 2 set right.

    The way there starts from the z_t of the denoising term, and is told c'; the way back is told c. Ages of a
    subject, which share time and noise, go each to a condition of its own.

    Attributes:
        denoising: what is fine-tuned, with its data: the first term.
        cycle: weight of the L1 term, the paper's lambda; counterfactual: of eq. 2's second term.
        categories: of each variable, in the order of the context: how many values it has, 0 for a number.
        spans: of each, its least and greatest value on [-1, 1] among those it learns from: c' lies between.
    """

    denoising: DiffusionObjective
    way: Cycle
    cycle: float
    counterfactual: float
    categories: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]

    @classmethod
    def of(
        cls,
        denoising: Objective,
        losses: Mapping[str, float],
        data: Mapping[str, Any],
        told: Sequence[Variable],
        spans: tuple[tuple[float, float], ...],
    ) -> CycleObjective:
        """As a recipe's losses and data say, of what it fine-tunes.

        Args:
            told: the variables, in order; spans: of each, within which another condition is drawn, on [-1, 1].
        """
        assert isinstance(denoising, DiffusionObjective)
        categories = tuple(len(variable.values) for variable in told)
        return cls(denoising, Cycle.of(data), losses["cycle"], losses["counterfactual"], categories, spans)

    def network(self) -> nn.Module:
        return self.denoising.network()

    def prepare(self, device: torch.device) -> None:
        """As for denoising."""
        self.denoising.prepare(device)

    def settle(self, network: nn.Module) -> None:
        """As for denoising."""
        self.denoising.settle(network)

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return self.denoising.dataset()

    def description(self) -> dict[str, Any]:
        own = {"way": asdict(self.way), "cycle": self.cycle, "counterfactual": self.counterfactual}
        return {**self.denoising.description(), **own}

    def product(self, network: nn.Module) -> Product:
        return self.denoising.product(network)

    def preview(self, network: nn.Module, item: dict[str, Tensor]) -> Tensor | None:
        return self.denoising.preview(network, item)

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        draw = self.denoising.drawn(network, item)
        other = elsewhere(draw.context, self.categories, self.spans)
        printed = self.way.terms == "printed"
        found = self.denoising.judged(network, draw, draw.told(other if printed else draw.context))
        if not (self.cycle or self.counterfactual):
            return found
        there = self.estimated(network, draw.noisy, draw.times, other)
        if self.way.gradient == "back":
            there = there.detach()
        eps = draw.eps if self.way.noise == "same" else torch.randn_like(draw.eps)
        noisy = draw.levels.alpha * there + draw.levels.sigma * eps
        start = noisy if self.way.start == "noised" else there
        cycle = (self.estimated(network, start, draw.times, draw.context) - draw.clean).abs().mean()
        loss = found["loss"] + self.cycle * cycle
        found = {**found, "denoising": found["loss"], "cycle": cycle}
        if self.counterfactual:
            known = there if printed else there.detach()  # what is told its own condition is taken for data
            told = draw.told(draw.context if printed else other)
            second = self._denoised(network, known, eps, draw, told)
            loss, found = loss + self.counterfactual * second, {**found, "counterfactual": second}
        return {**found, "loss": loss}

    def estimated(self, network: nn.Module, x: Tensor, times: Tensor, context: Tensor) -> Tensor:
        """x_0 of x_t under a condition, by DDIM's steps (Song et al. 2021, eq. 12); of one step the estimate itself.

        Args:
            x: (B, C, *sides); times: (B,), on the CPU; context: (B, V).
        """
        path, steps = self.denoising.path, self.way.steps
        here = levels(path, times, x)
        for step in range(1, steps + 1):
            said = network(x, here.network_time, context).float()
            estimate = solved(self.denoising.prediction, said, x, here.alpha, here.sigma)
            if step == steps:
                break
            with unset_fake_temporarily():
                later = trained_times(path, times * (1 - step / steps))
            here = levels(path, later, x)
            x = here.alpha * estimate.x0 + here.sigma * estimate.eps
        return estimate.x0

    def _denoised(self, network: nn.Module, clean: Tensor, eps: Tensor, draw: Draw, told: Tensor) -> Tensor:
        at: Levels = draw.levels
        said = network(at.alpha * clean + at.sigma * eps, at.network_time, told).float()
        return (said - target(self.denoising.prediction, clean, eps, at.alpha, at.sigma)).square().mean()


def elsewhere(context: Tensor, categories: tuple[int, ...], spans: tuple[tuple[float, float], ...]) -> Tensor:
    """Another condition for each, evenly over what people have, (B, V) on [-1, 1]; nan stays nan.

    Args:
        categories: number of values of each variable, 0 for a number; spans: of each, its least and greatest, of which
            those of categories are not asked.
    """
    columns = []
    for known, values, (low, high) in zip(context.unbind(1), categories, spans, strict=True):
        share = torch.rand_like(known)
        if values:
            share, (low, high) = (share * values).floor() / max(values - 1, 1), (-1.0, 1.0)
        columns.append(low + (high - low) * share)
    return torch.where(context.isnan(), torch.nan, torch.stack(columns, dim=1))
