"""Solvers: measured orders, the published formulas step for step, and inversions that come back."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from gaussians import Mixture
from torch import Tensor

from cftools.diffusion.constraint import Repaint
from cftools.diffusion.denoiser import Denoise, Estimate, convert
from cftools.diffusion.integrate import integrate
from cftools.diffusion.inversion import Bdia, FixedPoint
from cftools.diffusion.moves import Move, down, times, up
from cftools.diffusion.noise import NO_DRAWS, Draws, fresh, zero
from cftools.diffusion.path import Path, RectifiedFlow, VariancePreserving, make_path, transition
from cftools.diffusion.solver import SOLVERS, Ddim, Ddpm, Dpm2m, FireFlow, Heun, Solver, Step
from cftools.diffusion.start import inverted
from cftools.errors import CftoolsWarning, PathError
from cftools.preset import DETERMINISTIC, DiffusionSampling

diffusers: Any = importlib.import_module("diffusers")
DATA = Mixture((0.4, 0.6), (-1.0, 0.8), (0.4, 0.5))
OTHER = Mixture((0.7, 0.3), (-0.5, 1.5), (0.3, 0.6))
FLOW = RectifiedFlow()
# Enough training times for moves and their middles to fall on them however fine the schedule.
SCALED = make_path("scaled-linear", times=4000, beta_start=0.0015 / 4, beta_end=0.0205 / 4)
COSINE = make_path("cosine", times=4000)
EXACT = FixedPoint(Ddim(), 60, 1e-13)
GRID = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 9)


def run(solver: Solver, denoise: Denoise, path: Path, x: Tensor, moves: tuple[Move, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CftoolsWarning)
        return integrate(solver, denoise, path, x, moves, zero, NO_DRAWS)[0]


def measured_order(solver: Solver, path: Path, upwards: bool) -> float:
    """Slope of the error against the number of moves, between t = 0.9 and 0.1, on data whose ODE is solved."""
    x, errors, steps = GRID, [], (40, 80, 160)
    if upwards:
        x = DATA.transport(GRID, path, 0.9, 0.1)
    for count in steps:
        schedule = [(3600 - 3200 * k / count) / 4000 for k in range(count + 1)]
        moves = up(schedule) if upwards else down(schedule)
        truth = DATA.transport(x, path, moves[0].t, moves[-1].s)
        errors.append(float((run(solver, DATA.denoise(path), path, x, moves) - truth).abs().max()))
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


ORDERED: dict[str, Solver] = {
    "ddim": Ddim(),
    "heun": Heun(),
    "fireflow": FireFlow(),
    "dpm++2m": Dpm2m(),
    "bdia": Bdia(),
}
INVERSIONS: dict[str, Solver] = {"fixed ddim": FixedPoint(Ddim(), 9, 1e-12), "fixed heun": FixedPoint(Heun(), 9, 1e-12)}


@pytest.mark.parametrize("path", [FLOW, SCALED, COSINE], ids=["flow", "scaled", "cosine"])
@pytest.mark.parametrize("name", ORDERED)
def test_order_downwards(name: str, path: Path) -> None:
    assert measured_order(ORDERED[name], path, upwards=False) == pytest.approx(ORDERED[name].order, abs=0.2)


@pytest.mark.parametrize("path", [FLOW, SCALED, COSINE], ids=["flow", "scaled", "cosine"])
@pytest.mark.parametrize("name", [*ORDERED, *INVERSIONS])
def test_order_upwards(name: str, path: Path) -> None:
    solver = (ORDERED | INVERSIONS)[name]
    assert measured_order(solver, path, upwards=True) == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("path", [FLOW, SCALED, COSINE], ids=["flow", "scaled", "cosine"])
def test_order_of_the_ancestral_distribution(path: Path, variance: str) -> None:
    """For Gaussian data a move is affine, so the mean and variance it leads to are known without sampling."""
    data, solver = Mixture((1.0,), (0.5,), (0.7,)), Ddpm("small" if variance == "small" else "large")
    denoise, errors, steps = data.denoise(path), [], (40, 80, 160)
    for count in steps:
        schedule = [(3600 - 3200 * k / count) / 4000 for k in range(count + 1)]
        alpha, sigma = path.at(schedule[0])
        mean, square = torch.tensor([[alpha * 0.5]], dtype=torch.float64), (alpha * 0.7) ** 2 + sigma**2
        for move in down(schedule):
            here, beside = (solver.step(denoise, path, mean + shift, move) for shift in (0.0, 1.0))
            square = float(beside.mean - here.mean) ** 2 * square + float(here.std) ** 2
            mean = here.mean
        alpha, sigma = path.at(schedule[-1])
        assert float(mean) == pytest.approx(alpha * 0.5)
        errors.append(abs(square - (alpha * 0.7) ** 2 - sigma**2))
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(solver.order, abs=0.2)


# The published formulas, in the papers' own alphas and betas, of a chain respaced to K of T times.

T, K = 1000, 50
BETA = np.linspace(1e-4, 0.02, T)
BAR = np.concatenate([[1.0], np.cumprod(1 - BETA)])  # BAR[n] is the paper's alpha-bar at n
COUNTS = list(range(T, -1, -T // K))
LINEAR = VariancePreserving("vp-linear")


def made_up(x: Tensor, n: float) -> Tensor:
    """An eps that depends on all there is, and is nobody's posterior."""
    return torch.tanh(1.3 * x + 0.001 * n) + 0.2 * x


def made_up_denoise(path: Path = LINEAR) -> Denoise:
    def denoise(x: Tensor, t: float) -> Estimate:
        return convert("eps", made_up(x, round(t * T)), x, *path.at(t))

    return denoise


def follow(solver: Solver, published: Callable[[Tensor, int, int, Tensor], Tensor], size: float) -> None:
    """Run solver and formula over a whole schedule with the same noise; they agree at every move."""
    draws = Draws(0, (0, 1))
    x = y = draws(torch.zeros(2, 1, 4, 4, dtype=torch.float64), "start", 0)
    for move, n, m in zip(down(times(LINEAR, K)), COUNTS[:-1], COUNTS[1:], strict=True):
        step = solver.step(made_up_denoise(), LINEAR, x, move)
        z = draws(x, "move", move.index) * (m > 0)
        x, y = step.mean + step.std * z, published(y, n, m, z)
        assert float((x - y).abs().max()) < size
    assert float(x.abs().max()) > 0.1


def test_ddpm_agrees_with_ho() -> None:
    def published(x: Tensor, n: int, m: int, z: Tensor) -> Tensor:
        """Algorithm 2, with the respaced betas of Nichol and Dhariwal 2021, eq. 19."""
        beta = 1 - BAR[n] / BAR[m]
        small = (1 - BAR[m]) / (1 - BAR[n]) * beta
        mean = (x - beta / math.sqrt(1 - BAR[n]) * made_up(x, n)) / math.sqrt(1 - beta)
        return mean + math.sqrt(small) * z

    follow(Ddpm(), published, 1e-9)


def test_ddpm_with_large_variance_agrees_with_ho() -> None:
    def published(x: Tensor, n: int, m: int, z: Tensor) -> Tensor:
        beta = 1 - BAR[n] / BAR[m]
        mean = (x - beta / math.sqrt(1 - BAR[n]) * made_up(x, n)) / math.sqrt(1 - beta)
        return mean + math.sqrt(beta) * z

    follow(Ddpm("large"), published, 1e-9)


def test_ddim_agrees_with_song() -> None:
    def published(x: Tensor, n: int, m: int, z: Tensor) -> Tensor:
        eps = made_up(x, n)
        return math.sqrt(BAR[m]) * (x - math.sqrt(1 - BAR[n]) * eps) / math.sqrt(BAR[n]) + math.sqrt(1 - BAR[m]) * eps

    follow(Ddim(), published, 1e-9)


def test_learned_variance_agrees_with_nichol() -> None:
    """Eq. 15: the log-variance lies between those of beta and beta-tilde; CG-DDPM's eq. 4."""
    place = torch.linspace(0, 1, 16, dtype=torch.float64).view(1, 1, 4, 4)

    def denoise(x: Tensor, t: float) -> Estimate:
        estimate = made_up_denoise()(x, t)
        return Estimate(estimate.x0, estimate.eps, place)

    x = torch.ones_like(place)
    for n, m in ((1000, 980), (500, 480), (20, 0)):
        beta = 1 - BAR[n] / BAR[m]
        small = (1 - BAR[m]) / (1 - BAR[n]) * beta or beta
        std = Ddpm().step(denoise, LINEAR, x, Move(n / T, m / T, "solve", 1)).std
        expected = torch.exp(place * math.log(beta) + (1 - place) * math.log(small)).sqrt()
        torch.testing.assert_close(std, expected)


def test_dpm_solver_agrees_with_lu() -> None:
    """DPM-Solver++ algorithm 2, in its lambda = log(alpha / sigma) and h, with DDIM first and last."""
    denoise, x, state = made_up_denoise(), GRID, None
    y, memory = GRID, []
    for move in down(times(LINEAR, 10)):
        step = Dpm2m().step(denoise, LINEAR, x, move, state)
        x, state = step.mean, step.state
        (alpha_t, sigma_t), (alpha_s, sigma_s) = LINEAR.at(move.t), LINEAR.at(move.s)
        memory.append((math.log(alpha_t / sigma_t), denoise(y, move.t).x0))
        mixed = memory[-1][1]
        if move.s == 0:
            y = mixed
        else:
            h = math.log(alpha_s / sigma_s) - memory[-1][0]
            if len(memory) > 1:
                r = (memory[-1][0] - memory[-2][0]) / h
                mixed = (1 + 1 / (2 * r)) * memory[-1][1] - 1 / (2 * r) * memory[-2][1]
            y = sigma_s / sigma_t * y - alpha_s * math.expm1(-h) * mixed
        torch.testing.assert_close(x, y)


def test_on_a_flow_the_solvers_are_eulers_heuns_and_the_midpoint_rule() -> None:
    def velocity(x: Tensor, t: float) -> Tensor:
        return torch.sin(2 * x) + t

    def denoise(x: Tensor, t: float) -> Estimate:
        return convert("flow", velocity(x, t), x, *FLOW.at(t))

    for t, s in ((1.0, 0.75), (0.25, 0.5)):
        move, h, v = Move(t, s, "solve", 1), s - t, velocity(GRID, t)
        euler = GRID + h * v
        torch.testing.assert_close(Ddim().step(denoise, FLOW, GRID, move).mean, euler)
        heun = GRID + h / 2 * (v + velocity(euler, s))
        torch.testing.assert_close(Heun().step(denoise, FLOW, GRID, move).mean, heun)
        first = FireFlow().step(denoise, FLOW, GRID, move)
        middle = velocity(GRID + h / 2 * v, t + h / 2)
        torch.testing.assert_close(first.mean, GRID + h * middle)
        then = FireFlow().step(denoise, FLOW, first.mean, Move(s, s + h, "solve", 2), first.state).mean
        torch.testing.assert_close(then, first.mean + h * velocity(first.mean + h / 2 * middle, s + h / 2))


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [(Ddim(), 8), (Ddpm(), 8), (Heun(), 15), (FireFlow(), 9), (Dpm2m(), 8), (Bdia(), 8)],
    ids=lambda value: type(value).__name__,
)
def test_evaluations(solver: Solver, evaluations: int) -> None:
    calls, denoise = [], DATA.denoise(FLOW)

    def counted(x: Tensor, t: float) -> Estimate:
        calls.append(t)
        return denoise(x, t)

    x = run(solver, counted, FLOW, GRID, down(times(FLOW, 8)))
    assert len(calls) == evaluations and min(calls) > 0
    assert torch.isfinite(x).all()


def test_presets_know_solvers_by_name() -> None:
    known = get_args(get_type_hints(DiffusionSampling)["solver"])
    solvers = {**SOLVERS, "bdia": Bdia()}
    assert set(known) == set(solvers)
    for name in known:
        std = solvers[name].step(DATA.denoise(FLOW), FLOW, GRID, Move(0.5, 0.4, "solve", 1)).std
        assert (std == 0.0) == (name in DETERMINISTIC)


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_agrees_with_diffusers(name: str, spacing: str) -> None:
    common = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False, "timestep_spacing": spacing}
    scheduler = (diffusers.DDIMScheduler if name == "ddim" else diffusers.DDPMScheduler)(**common)
    scheduler.set_timesteps(K)
    solver: Solver = Ddim() if name == "ddim" else Ddpm()
    moves = down(times(LINEAR, K, spacing="trailing" if spacing == "trailing" else "leading"))
    assert [round(m.t * T) - 1 for m in moves] == scheduler.timesteps.tolist()
    x = y = torch.randn((1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for move, n in zip(moves, scheduler.timesteps.tolist(), strict=True):
        ours = solver.step(made_up_denoise(), LINEAR, x, move)
        theirs = scheduler.step(made_up(y, n + 1), n, y, generator=torch.Generator().manual_seed(n))
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(n), dtype=x.dtype)
        x, y = ours.mean + (ours.std * z if move.s > 0 else 0), theirs.prev_sample
        assert float((x - y).abs().max()) < 1e-4 * float(y.abs().max())  # its tables are single precision


class OneDraw:
    """One tensor of noise for whatever is asked at a move: diffusers' RePaint has but one."""

    def __init__(self, like: Tensor) -> None:
        self.like = like

    def __call__(self, like: Tensor, stream: str, index: int) -> Tensor:
        return torch.randn(self.like.shape, generator=torch.Generator().manual_seed(index), dtype=like.dtype)


def test_repaint_agrees_with_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down with what is known put in, and up again: a move each, on the whole schedule."""
    module = importlib.import_module("diffusers.schedulers.scheduling_repaint")
    scheduler = diffusers.RePaintScheduler(beta_start=1e-4, beta_end=0.02, eta=1.0, clip_sample=False)
    scheduler.set_timesteps(T, jump_length=1, jump_n_sample=1)
    random = torch.Generator().manual_seed(0)
    x, known = (torch.randn((1, 1, 8, 8), generator=random, dtype=torch.float64) for _ in range(2))
    free = torch.rand((1, 1, 8, 8), generator=random) < 0.5
    draws: Any = OneDraw(x)
    constraint = Repaint(LINEAR, known, free)
    for index, n in enumerate((999, 700, 300, 20, 1, 0), start=1):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, i=index, **__: draws(x, "move", i))
        move = Move((n + 1) / T, n / T, "solve", index)
        step = Ddpm().step(made_up_denoise(), LINEAR, x, move)
        ours, _ = constraint(step.mean + step.std * fresh(x, move, step, draws), move.s, index, draws)
        # Its masks are 1 where the image is known.
        theirs = scheduler.step(made_up(x, n + 1), n, x, known, (~free).double()).prev_sample
        assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
        if n:  # up again, to where the move began
            scale, std = transition(LINEAR, n / T, (n + 1) / T)
            again = scheduler.undo_step(theirs, n)
            assert float((scale * theirs + std * draws(x, "move", index) - again).abs().max()) < 1e-4


# Inversions.


def test_the_plain_inversion_is_the_papers() -> None:
    """CDM eq. 6, with the eps of where the move begins in place of the one it solves for."""
    for n, m in ((20, 40), (480, 500)):
        step = Ddim().step(made_up_denoise(), LINEAR, GRID, Move(n / T, m / T, "solve", 1))
        ratio = math.sqrt(BAR[m] / BAR[n])
        eps = made_up(GRID, n)
        torch.testing.assert_close(
            step.mean, ratio * GRID + (math.sqrt(1 - BAR[m]) - ratio * math.sqrt(1 - BAR[n])) * eps
        )
        fixed = FixedPoint(Ddim(), 1).step(made_up_denoise(), LINEAR, GRID, Move(n / T, m / T, "solve", 1))
        assert torch.equal(fixed.mean, step.mean)


def round_trip(upwards: Solver, downwards: Solver, path: Path, x: Tensor, steps: int) -> float:
    schedule = times(path, steps)
    top, state = inverted(upwards, DATA.denoise(path), path, x, up(schedule))
    back, _ = integrate(downwards, DATA.denoise(path), path, top, down(schedule), zero, NO_DRAWS, state=state)
    return float((back - x).abs().max())


@pytest.mark.parametrize("path", [FLOW, LINEAR], ids=["flow", "linear"])
def test_round_trips(path: Path) -> None:
    plain = round_trip(Ddim(), Ddim(), path, GRID, 20)
    twice = round_trip(FixedPoint(Ddim(), 2), Ddim(), path, GRID, 20)
    assert plain > 0.1 and twice < plain / 3
    assert round_trip(FixedPoint(Ddim(), 60, 1e-12), Ddim(), path, GRID, 20) < 1e-9
    assert round_trip(FixedPoint(Heun(), 60, 1e-12), Heun(), path, GRID, 20) < 1e-9
    assert round_trip(Bdia(), Bdia(), path, GRID, 20) < 1e-12


def test_bdia_retraces_a_sample_and_a_scan() -> None:
    """From the prior down and up again, and from the scan up and down again, for a network that is no posterior."""
    schedule, denoise = times(LINEAR, 20), made_up_denoise()
    x, state = integrate(Bdia(), denoise, LINEAR, GRID, down(schedule), zero, NO_DRAWS)
    back, _ = integrate(Bdia(), denoise, LINEAR, x, up(schedule), zero, NO_DRAWS, state=state)
    torch.testing.assert_close(back, GRID, atol=1e-8, rtol=0)
    forgetful, _ = integrate(Bdia(), denoise, LINEAR, x, up(schedule), zero, NO_DRAWS)
    assert float((forgetful - GRID).abs().max()) > 1e-3


def test_fixed_point_stops_each_subject_by_itself() -> None:
    """A batch of two gives the bits of each alone, though one needs many more iterations than the other."""
    used = []

    def denoise(x: Tensor, t: float) -> Estimate:
        used.append(len(x))
        alpha, sigma = FLOW.at(t)
        return convert("flow", torch.tanh(2 * x), x, alpha, sigma)

    easy, hard = torch.linspace(0.9, 1.1, 8).view(1, 1, 8), torch.linspace(-0.1, 0.4, 8).view(1, 1, 8)
    move, solver = Move(0.5, 0.8, "solve", 1), FixedPoint(Ddim(), 30, 1e-4)
    alone, lengths = [], []
    for x in (easy, hard):
        used.clear()
        alone.append(solver.step(denoise, FLOW, x, move).mean)
        lengths.append(len(used))
    assert lengths[1] > lengths[0] + 2
    used.clear()
    together = solver.step(denoise, FLOW, torch.cat([easy, hard]), move).mean
    assert used == [2] * max(lengths)
    assert torch.equal(together[0], alone[0][0]) and torch.equal(together[1], alone[1][0])
    turned = solver.step(denoise, FLOW, torch.cat([hard, easy]), move).mean
    assert torch.equal(turned, together.flip(0))


def test_fixed_point_that_diverges_keeps_its_least_residual_and_warns() -> None:
    """With v = -5 x and a move of 0.4 each iteration doubles the residual: the move up is as good as it gets."""
    calls = []

    def denoise(x: Tensor, t: float) -> Estimate:
        calls.append(t)
        return convert("flow", -5 * x, x, *FLOW.at(t))

    move = Move(0.3, 0.7, "solve", 1)
    with pytest.warns(CftoolsWarning, match="did not come within"):
        step = FixedPoint(Ddim(), 20, 1e-6).step(denoise, FLOW, GRID, move)
    torch.testing.assert_close(step.mean, -GRID)
    assert calls == [0.3, 0.7, 0.7]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FixedPoint(Ddim(), 20).step(denoise, FLOW, GRID, move)
        FixedPoint(Ddim(), 60, 1e-6).step(DATA.denoise(FLOW), FLOW, GRID, move)


def test_a_random_solver_cannot_be_inverted() -> None:
    with pytest.raises(PathError, match="cannot be inverted"):
        inverted(Ddpm(), DATA.denoise(FLOW), FLOW, GRID, up(times(FLOW, 4)))
    with pytest.raises(PathError, match="only goes up"):
        EXACT.step(DATA.denoise(FLOW), FLOW, GRID, Move(0.5, 0.4, "solve", 1))


@pytest.mark.parametrize(
    ("upwards", "downwards", "size"),
    [(Heun(), Heun(), 2e-3), (FireFlow(), FireFlow(), 4e-3), (Bdia(), Bdia(), 3e-3), (EXACT, Ddim(), 0.1)],
    ids=["heun", "fireflow", "bdia", "ddim"],
)
def test_counterfactuals_of_a_mixture(upwards: Solver, downwards: Solver, size: float) -> None:
    """Inverted under one condition and sampled under another, x becomes F_other^-1(F_own(x)) at every element."""
    x = DATA.quantile(torch.linspace(0.02, 0.98, 25, dtype=torch.float64).view(1, 1, 25))
    truth = OTHER.quantile(DATA.cdf(x))
    assert float((truth - x).abs().max()) > 0.5
    schedule = times(FLOW, 50)
    top, state = inverted(upwards, DATA.denoise(FLOW), FLOW, x, up(schedule))
    edited, _ = integrate(downwards, OTHER.denoise(FLOW), FLOW, top, down(schedule), zero, NO_DRAWS, state=state)
    assert float((edited - truth).abs().max()) < size


def test_a_step_knows_its_estimate() -> None:
    step: Step = Heun().step(DATA.denoise(FLOW), FLOW, GRID, Move(0.5, 0.4, "solve", 1))
    torch.testing.assert_close(0.5 * step.estimate.x0 + 0.5 * step.estimate.eps, GRID)
