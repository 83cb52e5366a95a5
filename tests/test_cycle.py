"""The cycle of CDM: what each of its terms rewards, where gradients go, and a training of two steps; on toys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cftools.diffusion.denoiser import Inputs, NetworkDenoiser, bind
from cftools.diffusion.moves import Move
from cftools.diffusion.path import make_path
from cftools.diffusion.solver import SOLVERS
from cftools.errors import PresetError
from cftools.facts import SpaceFacts
from cftools.nets.unet import UNetArchitecture
from cftools.preset import load_preset
from cftools.schema import FrozenMapping
from cftools.train import recipes
from cftools.train.cycle import Cycle, CycleObjective, elsewhere
from cftools.train.diffusion import DiffusionObjective
from cftools.train.loop import Schedule, train

SPACE = SpaceFacts("vae", (16, 16, 16), 2, 2, 2)
UNET = UNetArchitecture(2, 2, (8, 16), (False, True), 2, heads=8, timed=True)
PATH = make_path("scaled-linear")
#: How far the condition moves the mean of a latent, and how far people differ beside it.
SHIFT, SPREAD = 1.0, 0.6


class Latents(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Gaussian latents whose mean is SHIFT times the first variable, 8-cubed; the second is a sex."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        age = 2 * torch.rand(4, 1, 1, generator=generator) - 1
        sex = (torch.rand(4, 1, 1, generator=generator) < 0.5).float() * 2 - 1
        own = SPREAD * torch.randn(4, 1, 2, 8, 8, 8, generator=generator)
        return {"latent": SHIFT * age[..., None, None, None] + own, "context": torch.cat([age, sex], dim=2)}


def objective(cycle: float = 1.0, counterfactual: float = 0.0, dropout: float = 0.0, **way: Any) -> CycleObjective:
    denoising = DiffusionObjective(UNET, Latents(), PATH, "v", dropout, 0, {}, SPACE)
    return CycleObjective(denoising, Cycle(**way), cycle, counterfactual, (0, 2), ((-1.0, 1.0),) * 2)


class Linear(nn.Module):
    """x_0 = slope x_t + pull c at any time, said as v; what it was asked is kept."""

    def __init__(self, slope: float = 0.0, pull: float = 0.0) -> None:
        super().__init__()
        self.slope, self.pull = nn.Parameter(torch.tensor(slope)), nn.Parameter(torch.tensor(pull))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def estimate(self, x: Tensor, alpha: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        return self.slope * x + self.pull * context[:, :1, None, None, None]

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        self.asked.append((x, context))
        alpha, sigma = torch.tensor([PATH.at(float(one + 1) / 1000) for one in time]).view(-1, 2, 1, 1, 1, 1).unbind(1)
        return (alpha * x - self.estimate(x, alpha, sigma, context)) / sigma


class Gaussian(Linear):
    """Knows that z_0 ~ N(SHIFT c, spread^2)."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def estimate(self, x: Tensor, alpha: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        mean = SHIFT * context[:, :1, None, None, None]
        return mean + alpha * self.spread**2 / ((alpha * self.spread) ** 2 + sigma**2) * (x - alpha * mean)


def found(made: CycleObjective, network: nn.Module, item: dict[str, Tensor] | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    losses = made.losses(network, item or Latents()[0])
    return {name: float(value.detach()) for name, value in losses.items()}


def best_pull(loss: Callable[[Linear], Tensor], steps: int = 150) -> float:
    """The weight that a linear denoiser gives its condition where a loss is least, at the slope that goes with it."""
    network = Linear(0.5, 0.5)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    for step in range(steps):
        torch.manual_seed(step)
        optimiser.zero_grad()
        loss(network).backward()
        optimiser.step()
        network.asked.clear()
    return float(network.pull.detach())


def fixed(made: CycleObjective, time: float, step: int) -> Any:
    """What one step draws, at a time that is given."""
    draw = made.denoising.drawn(nn.Identity(), Latents()[step])
    from cftools.train.diffusion import levels

    times = torch.full_like(draw.times, time)
    return replace(draw, times=times, levels=levels(PATH, times, draw.clean))


def test_the_printed_first_term_is_least_where_the_condition_is_ignored() -> None:
    """E (a z_t + b c' - z_0)^2, c' drawn apart from z_0, is least at b = 0; with c it is least at the posterior's b."""
    time = 0.4
    alpha, sigma = PATH.at(time)
    known = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
    pulls = {}
    for terms in ("printed", "own"):
        made = objective(terms=terms)
        step = iter(range(1000))

        def loss(network: Linear, made: CycleObjective = made, terms: str = terms, step: Any = step) -> Tensor:
            draw = fixed(made, time, next(step))
            other = elsewhere(draw.context, made.categories, made.spans)
            return made.denoising.judged(network, draw, other if terms == "printed" else draw.context)["loss"]

        pulls[terms] = best_pull(loss)
    assert pulls["own"] == pytest.approx(SHIFT * (1 - known * alpha), abs=0.12)
    assert abs(pulls["printed"]) < 0.12


def test_what_the_settings_tell_the_network() -> None:
    """Denoising, there, back, and the second denoising: whose conditions, and noised or clean."""
    torch.manual_seed(0)
    item = Latents()[0]
    own = item["context"].flatten(0, 1)
    asked = {}
    for terms in ("own", "printed"):
        network = Linear(0.5, 0.5)
        objective(counterfactual=1.0, terms=terms).losses(network, item)
        asked[terms] = [torch.equal(context, own) for _, context in network.asked]
        assert torch.equal(network.asked[3][0], network.asked[2][0]), "the second term denoises the counterfactual"
    assert asked == {"own": [True, False, True, False], "printed": [False, False, True, True]}
    inputs = {}
    ways: list[dict[str, Any]] = [{}, {"start": "clean"}, {"noise": "fresh"}]
    for settings in ways:
        network = Linear(0.5, 0.5)
        torch.manual_seed(0)
        objective(**settings).losses(network, item)
        inputs[str(settings)] = [x for x, _ in network.asked]
    plain, clean, fresh = inputs.values()
    assert torch.equal(plain[1], plain[0]) and torch.equal(plain[1], clean[1]), "the way there starts from z_t"
    there = 0.5 * plain[1] + 0.5 * network.asked[1][1][:, :1, None, None, None]
    assert torch.allclose(clean[2], there, atol=1e-4), "eq. 1: the way back starts from the counterfactual itself"
    assert not torch.allclose(plain[2], there, atol=0.1) and not torch.allclose(plain[2], fresh[2], atol=0.1)


def test_several_steps_are_those_of_ddim() -> None:
    made, network, time = objective(steps=3), Gaussian(SPREAD), 0.6
    draw = fixed(made, time, 0)
    there = made.estimated(network, draw.noisy, draw.times, draw.context)
    x, denoiser = draw.noisy, NetworkDenoiser(network, PATH, "v")
    for t, s in ((0.6, 0.4), (0.4, 0.2), (0.2, 0.0)):
        move = Move(t, s, "solve", 0)
        x = SOLVERS["ddim"].step(bind(denoiser, Inputs(context=draw.context)), PATH, x, move, None).mean
    assert len(network.asked) == 6
    assert torch.allclose(there, x, atol=0.01), "up to the next of a thousand training times"


def test_the_same_noise_is_that_of_the_way_there() -> None:
    """z_t - alpha z_0 = z~_t - alpha z~_0: the latents differ, the noise does not."""
    network = Linear(0.0, 0.5)
    item = Latents()[0]
    torch.manual_seed(3)
    made = objective()
    draw = made.denoising.drawn(network, item)
    torch.manual_seed(3)
    made.losses(network, item)
    _, (x, context), (renoised, _) = network.asked
    there = 0.5 * context[:, :1, None, None, None]
    assert torch.allclose(x - draw.levels.alpha * draw.clean, renoised - draw.levels.alpha * there, atol=1e-4)


def test_the_cycle_of_a_perfect_denoiser_is_zero_where_the_condition_says_all() -> None:
    """Where people differ by their condition alone, there and back is exact, at every time, in any number of steps."""
    item = Latents()[0]
    item["latent"] = (SHIFT * item["context"][..., :1, None, None, None]).expand_as(item["latent"]).contiguous()
    for settings in ({}, {"steps": 3}, {"noise": "fresh"}):
        losses = found(objective(**settings), Gaussian(1e-4), item)
        assert losses["cycle"] < 1e-3 and losses["denoising"] < 1e-3
    assert found(objective(), Linear(0.0, 0.0), item)["cycle"] > 0.1, "a network that says nothing does not come back"


def test_the_cycle_of_a_perfect_denoiser_is_what_the_formula_says() -> None:
    """Else it is not: one estimate of x_0 keeps k of what it sees, and the cycle costs what the formula says."""
    made, time = objective(), 0.4
    draw = fixed(made, time, 0)
    alpha, sigma = PATH.at(time)
    k = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
    torch.manual_seed(1)
    other = elsewhere(draw.context, made.categories, made.spans)
    own, apart = (SHIFT * one[:, :1, None, None, None] for one in (draw.context, other))
    network = Gaussian(SPREAD)
    there = made.estimated(network, draw.noisy, draw.times, other)
    back = made.estimated(network, alpha * there + sigma * draw.eps, draw.times, draw.context)
    away = draw.clean - own
    wanted = away - k * (alpha * (apart - own) * (1 - k * alpha) + k * alpha * (alpha * away + sigma * draw.eps))
    wanted = wanted - k * sigma * draw.eps
    assert torch.allclose(draw.clean - back, wanted, atol=1e-3)


def test_the_gradient_goes_through_both_ways_or_through_the_way_back() -> None:
    """Of a network whose two ways are parts of their own, told apart by the order of the calls."""

    class TwoWays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Linear(0.3, 0.3) for _ in range(3))
            self.calls = 0

        def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
            self.calls += 1
            said: Tensor = self.parts[self.calls - 1](x, time, context)
            return said

    for gradient, reached in (("through", [True, True]), ("back", [False, True])):
        network = TwoWays()
        torch.manual_seed(0)
        losses = objective(gradient=gradient).losses(network, Latents()[0])
        losses["cycle"].backward()
        grads = [any(p.grad is not None and bool(p.grad.any()) for p in part.parameters()) for part in network.parts]
        assert grads[1:] == reached and not grads[0], "the cycle leaves the denoising term alone"


def test_the_terms_add_up_and_none_is_made_for_nothing() -> None:
    network = Linear(0.4, 0.2)
    losses = found(objective(cycle=2.0, counterfactual=3.0), network)
    total = losses["denoising"] + 2 * losses["cycle"] + 3 * losses["counterfactual"]
    assert losses["loss"] == pytest.approx(total, rel=1e-5)
    network.asked.clear()
    alone = found(objective(cycle=0.0), network)
    assert len(network.asked) == 1
    torch.manual_seed(0)
    plain = objective().denoising.losses(network, Latents()[0])
    assert alone == {"loss": float(plain["loss"].detach())}, "without the cycle it is ldm's own loss"


def test_other_conditions_cover_the_ranges() -> None:
    torch.manual_seed(0)
    context = torch.zeros(4000, 3)
    context[:100] = torch.nan
    whole = (-1.0, 1.0)
    old = elsewhere(context[100:, :1], (0,), ((0.25, 0.5),))
    assert 0.25 <= float(old.min()) < 0.26 and 0.49 < float(old.max()) <= 0.5, "no ages that nobody has"
    drawn = elsewhere(context, (0, 2, 3), (whole, whole, whole))
    assert drawn[:100].isnan().all() and not drawn[100:].isnan().any()
    age, sex, health = drawn[100:].T
    assert float(age.min()) < -0.99 and float(age.max()) > 0.99 and abs(float(age.mean())) < 0.05
    assert set(sex.tolist()) == {-1.0, 1.0} and abs(float(sex.mean())) < 0.05
    assert set(health.tolist()) == {-1.0, 0.0, 1.0}


def test_settings_that_are_none_are_refused() -> None:
    recipe = load_preset("cdm").recipe_for()
    for key, value in (("cycle_start", "dirty"), ("cycle_steps", 0), ("cycle_terms", "swapped")):
        with pytest.raises(PresetError, match=key.removeprefix("cycle_") + "|" + key):
            recipes.check(replace(recipe, data=FrozenMapping({**recipe.data, key: value})), ("age", "sex"))


def test_cdm_fine_tunes_what_ldm_trains() -> None:
    cdm, ldm = load_preset("cdm"), load_preset("ldm")
    assert cdm.sampling == ldm.sampling
    for size in ("bundled", "full"):
        fine, first = cdm.recipe_for(size), ldm.recipe_for(size)
        assert fine.network == first.network and fine.initial.startswith("age-ldm")
        pace = ("latents", "every")  # how many latents a step has, and how soon it meets all subjects
        told, known = ({k: v for k, v in one.data.items() if k not in pace} for one in (fine, first))
        assert {key: value for key, value in told.items() if not key.startswith("cycle")} == known


def test_a_denoiser_is_fine_tuned_and_resumes_only_with_the_same_settings(tmp_path: Path) -> None:
    made = objective(dropout=0.2)
    network, _ = train(made, Schedule(2, learning_rate=1e-3, workers=0, ema=0.1, dtype="bfloat16"), tmp_path)
    before, after = made.network().state_dict(), network.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    product = made.product(network)
    assert product.diffusion is not None and product.diffusion.prediction == "v" and product.space == SPACE
    with pytest.raises(Exception, match="other settings"):
        train(objective(dropout=0.2, noise="fresh"), Schedule(2, learning_rate=1e-3, workers=0, ema=0.1), tmp_path)
