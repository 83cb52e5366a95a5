"""Noise paths, schedules, and what a network's output means."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from cftools.diffusion import moves
from cftools.diffusion.denoiser import Clipped, Estimate, Inputs, NetworkDenoiser, Prediction, bind, convert, target
from cftools.diffusion.guidance import Guided
from cftools.diffusion.integrate import integrate
from cftools.diffusion.noise import Draws, fresh
from cftools.diffusion.path import (
    Path,
    RectifiedFlow,
    VariancePreserving,
    log_snr,
    make_path,
    noised,
    posterior,
    transition,
)
from cftools.diffusion.solver import Ddpm
from cftools.diffusion.windows import Windows
from cftools.errors import PathError

T = 1000
LINEAR = VariancePreserving("vp-linear")
PATHS: tuple[Path, ...] = (LINEAR, make_path("scaled-linear"), make_path("cosine", times=4000), RectifiedFlow())
GENERATOR = torch.Generator().manual_seed(0)
CLEAN, EPS = (torch.randn((2, 3, 4, 4), generator=GENERATOR, dtype=torch.float64) for _ in range(2))


def published_betas(name: str) -> list[float]:
    """Written down from the papers once more, one step at a time."""
    if name == "vp-linear":
        return [1e-4 + (0.02 - 1e-4) * n / (T - 1) for n in range(T)]
    if name == "scaled-linear":
        return [(math.sqrt(0.0015) + (math.sqrt(0.0205) - math.sqrt(0.0015)) * n / (T - 1)) ** 2 for n in range(T)]

    def bar(n: int) -> float:
        return math.cos((n / T + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - bar(n + 1) / bar(n), 0.999) for n in range(T)]


@pytest.mark.parametrize("name", ["vp-linear", "scaled-linear", "cosine"])
def test_discrete_paths_are_the_published_products(name: str) -> None:
    settings = {"beta_start": 0.0015, "beta_end": 0.0205} if name == "scaled-linear" else {}
    path = make_path(name, times=T, **settings)
    bar = 1.0
    for n, beta in enumerate(published_betas(name), 1):
        bar *= 1 - beta
        alpha, sigma = path.at(n / T)
        assert alpha**2 == pytest.approx(bar, rel=1e-9)
        assert sigma**2 == pytest.approx(1 - bar, rel=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_paths_begin_at_the_clean_image_and_lose_it_steadily(path: Path) -> None:
    assert path.at(0.0) == (1.0, 0.0)
    ratios = [log_snr(path, t) for t in np.linspace(0, 1, 41)]
    assert ratios[0] == math.inf
    assert all(later < before for before, later in pairwise(ratios))
    with pytest.raises(PathError, match=r"outside \[0, 1\]"):
        path.at(1.001)


def test_rectified_flow_ends_in_pure_noise() -> None:
    assert RectifiedFlow().at(1.0) == (0.0, 1.0)
    assert log_snr(RectifiedFlow(), 1.0) == -math.inf
    assert log_snr(RectifiedFlow(), 0.25) == pytest.approx(2 * math.log(3))


@pytest.mark.parametrize("times", [1000, 4000, 7])
def test_networks_are_told_whole_training_times(times: int) -> None:
    path = VariancePreserving("cosine", times=times)
    assert [path.network_time(n / times) for n in range(1, times + 1)] == list(range(times))
    assert path.network_time(0.0) == 0
    assert RectifiedFlow().network_time(0.25) == 250


def test_noising_a_batch_gives_each_its_own_time() -> None:
    times = torch.tensor([0.3, 0.9])
    together = noised(LINEAR, CLEAN, EPS, times)
    for row, t in enumerate(times.tolist()):
        torch.testing.assert_close(together[row], noised(LINEAR, CLEAN[row], EPS[row], t))
    alpha, sigma = LINEAR.at(0.3)
    torch.testing.assert_close(noised(LINEAR, CLEAN, EPS, 0.3), alpha * CLEAN + sigma * EPS)


@pytest.mark.parametrize("path", PATHS)
def test_transitions_compose(path: Path) -> None:
    t, s, u = 0.2, 0.5, 0.95
    (one, first), (two, second), (both, whole) = transition(path, t, s), transition(path, s, u), transition(path, t, u)
    assert both == pytest.approx(one * two)
    assert whole**2 == pytest.approx((two * first) ** 2 + second**2)
    for a, b in ((s, t), (u, u - 0.1)):
        with pytest.raises(PathError):
            transition(path, a, b)


def test_a_transition_between_training_times_is_one_published_step() -> None:
    scale, std = transition(LINEAR, 499 / T, 500 / T)
    beta = published_betas("vp-linear")[499]
    assert scale == pytest.approx(math.sqrt(1 - beta)) and std**2 == pytest.approx(beta)


@pytest.mark.parametrize("path", PATHS)
def test_posterior_is_bayes_rule(path: Path) -> None:
    """q(x_s | x_t, x_0) from q(x_s | x_0) and q(x_t | x_s), by precisions."""
    t, s, x0, eps = 0.8, 0.55, 0.7, -1.3
    alpha_t, sigma_t = path.at(t)
    alpha_s, sigma_s = path.at(s)
    scale, up = transition(path, s, t)
    precision = 1 / sigma_s**2 + (scale / up) ** 2
    mean = (alpha_s * x0 / sigma_s**2 + scale * (alpha_t * x0 + sigma_t * eps) / up**2) / precision
    weight_x0, weight_eps, std = posterior(path, t, s)
    assert weight_x0 * x0 + weight_eps * eps == pytest.approx(mean)
    assert std == pytest.approx(precision**-0.5)
    with pytest.raises(PathError):
        posterior(path, s, t)


def test_paths_by_name_refuse_what_they_have_not() -> None:
    assert make_path("rectified-flow", clock=1.0) == RectifiedFlow(1.0)
    for name, settings in (("vp", {}), ("rectified-flow", {"beta_end": 0.1}), ("cosine", {"clock": 2}), ("x", {})):
        with pytest.raises(PathError):
            make_path(name, **settings)
    for bad in ({"times": 0}, {"beta_end": 1.0}, {"beta_start": 0.5, "beta_end": 0.1}):
        with pytest.raises(PathError):
            make_path("vp-linear", **bad)


def counts(*args: float, **settings: moves.Spacing) -> list[int]:
    steps, start = (*args, 1.0)[:2]
    return [round(t * T) for t in moves.times(LINEAR, int(steps), start, settings.get("spacing", "trailing"))]


def test_spacings_are_the_published_ones() -> None:
    assert counts(50) == [*range(1000, 0, -20), 0]
    assert counts(50, spacing="leading") == [*range(981, 0, -20), 0]
    assert counts(4, spacing="uniform") == [1000, 667, 334, 1, 0]
    # As diffusers round them where steps do not divide the training times.
    assert counts(7) == [1000, 857, 714, 571, 429, 286, 143, 0]
    assert moves.times(LINEAR, 1000) == tuple(n / T for n in range(1000, -1, -1))


def test_schedules_can_begin_part_of_the_way_up() -> None:
    assert counts(200, 0.2) == list(range(200, -1, -1))
    assert counts(4, 0.2) == [200, 150, 100, 50, 0]
    assert moves.times(RectifiedFlow(), 4, 0.5) == (0.5, 0.375, 0.25, 0.125, 0.0)
    for steps, start in ((201, 0.2), (0, 1.0), (5, 0.0), (5, 1.1)):
        with pytest.raises(PathError):
            moves.times(LINEAR, steps, start)


@pytest.mark.parametrize("spacing", get_args(moves.Spacing))
def test_schedules_can_end_before_all_noise_is_gone(spacing: moves.Spacing) -> None:
    assert [round(t * T) for t in moves.times(LINEAR, 6, spacing=spacing, end=0.5)] == [
        1000,
        900,
        800,
        700,
        600,
        500,
        0,
    ]
    assert moves.times(RectifiedFlow(), 3, 0.8, spacing, 0.4) == pytest.approx((0.8, 0.6, 0.4, 0.0))
    assert moves.times(LINEAR, 2, 0.002, spacing, 0.001) == (0.002, 0.001, 0.0)
    for steps, end in ((1, 0.5), (502, 0.5), (4, 1.0), (4, -0.1)):
        with pytest.raises(PathError):
            moves.times(LINEAR, steps, spacing=spacing, end=end)


def test_a_run_that_ends_early_ends_on_the_estimate_of_its_last_move() -> None:
    asked: list[float] = []

    def denoise(x: Tensor, t: float) -> Estimate:
        asked.append(t)
        return Estimate(torch.full_like(x, t), torch.zeros_like(x))

    schedule = moves.down(moves.times(LINEAR, 3, end=0.5))
    end, _ = integrate(Ddpm(), denoise, LINEAR, torch.ones(1, 1, 4), schedule, fresh, Draws(0, (0,)))
    assert asked == [1.0, 0.75, 0.5] and torch.equal(end, torch.full((1, 1, 4), 0.5))


def test_inverting_goes_the_same_way_back() -> None:
    times = moves.times(LINEAR, 10)
    down, up = moves.down(times), moves.up(times)
    assert [(m.s, m.t) for m in reversed(up)] == [(m.t, m.s) for m in down]
    assert [m.index for m in down] == [m.index for m in up] == list(range(1, 11))
    with pytest.raises(PathError):
        moves.down((0.2, 0.5))


@pytest.mark.parametrize("resample", [1, 2, 4])
def test_resampling_goes_up_again_between_its_passes(resample: int) -> None:
    schedule = moves.down(moves.times(LINEAR, 10), resample)
    assert [m.index for m in schedule] == list(range(1, len(schedule) + 1))
    assert all(a.s == b.t for a, b in pairwise(schedule))
    renoised = [m for m in schedule if m.kind == "renoise"]
    assert len(renoised) == 9 * (resample - 1) and all(0 < m.t < m.s for m in renoised)
    assert sum(m.s == 0 for m in schedule) == 1
    assert len(schedule) == 10 + 2 * len(renoised)


PREDICTIONS: tuple[Prediction, ...] = ("eps", "x0", "v", "flow")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (0.3, 0.7), (1.0, 0.0), (0.0, 1.0)])
def test_predictions_mean_what_was_mixed(prediction: Prediction, alpha: float, sigma: float) -> None:
    x = alpha * CLEAN + sigma * EPS
    output = target(prediction, CLEAN, EPS, alpha, sigma)
    if (prediction, alpha) == ("eps", 0.0) or (prediction, sigma) == ("x0", 0.0):
        with pytest.raises(PathError, match="says nothing"):
            convert(prediction, output, x, alpha, sigma)
        return
    estimate = convert(prediction, output, x, alpha, sigma)
    torch.testing.assert_close(estimate.x0, CLEAN)
    torch.testing.assert_close(estimate.eps, EPS)


def test_a_network_gets_its_inputs_and_a_whole_time() -> None:
    seen = []

    def network(x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        seen.append((x, time, context))
        return torch.cat([x[:, :3] / 2, torch.full_like(x[:, :3], -0.5)], 1)

    inputs = Inputs(channels=torch.ones(2, 1, 4, 4).double(), context=torch.zeros(2, 1, 5))
    denoise = bind(NetworkDenoiser(network, LINEAR, "eps", learned_variance=True), inputs)
    estimate = denoise(CLEAN, 0.5)
    shown, time, context = seen[0]
    assert torch.equal(shown, torch.cat([CLEAN, torch.ones(2, 1, 4, 4)], 1)) and context is inputs.context
    assert time.tolist() == [499, 499] and time.dtype == CLEAN.dtype
    assert estimate.log_var is not None and torch.all(estimate.log_var == 0.25)
    alpha, sigma = LINEAR.at(0.5)
    torch.testing.assert_close(estimate.eps, CLEAN / 2)
    torch.testing.assert_close(alpha * estimate.x0 + sigma * estimate.eps, CLEAN)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_clean_image_is_its_own_estimate(prediction: Prediction) -> None:
    times = []

    def network(x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        times.append(float(time[0]))
        return torch.sin(3 * x)

    estimate = NetworkDenoiser(network, LINEAR, prediction)(CLEAN, 0.0, Inputs())
    assert torch.equal(estimate.x0, CLEAN) and times == [0]
    torch.testing.assert_close(estimate.eps, convert(prediction, torch.sin(3 * CLEAN), CLEAN, *LINEAR.at(1e-3)).eps)


def scaled(x: Tensor, t: float, inputs: Inputs) -> Estimate:
    """A denoiser that sums up, and whose estimate depends on the context."""
    factor = 1.0 if inputs.context is None else float(inputs.context.mean())
    alpha, sigma = LINEAR.at(t)
    x0 = factor * torch.tanh(2 * x)
    return Estimate(x0, (x - alpha * x0) / sigma, torch.full_like(x, factor))


def test_clipping_keeps_the_range_and_the_sum() -> None:
    clipped = Clipped(scaled, LINEAR, -0.5, 0.25)(CLEAN, 0.4, Inputs())
    alpha, sigma = LINEAR.at(0.4)
    assert float(clipped.x0.min()) == -0.5 and float(clipped.x0.max()) == 0.25
    torch.testing.assert_close(alpha * clipped.x0 + sigma * clipped.eps, CLEAN)


INPUTS = Inputs(context=torch.full((2, 1, 1), 0.9), null=torch.full((2, 1, 1), 0.4))


@pytest.mark.parametrize(("scale", "evaluations"), [(0.0, 1), (1.0, 1), (3.0, 2)])
def test_guidance_goes_on_from_the_null(scale: float, evaluations: int) -> None:
    calls = []

    def counted(x: Tensor, t: float, inputs: Inputs) -> Estimate:
        calls.append(t)
        return scaled(x, t, inputs)

    guided = Guided(counted, scale)(CLEAN, 0.4, INPUTS)
    assert len(calls) == evaluations
    alpha, sigma = LINEAR.at(0.4)
    torch.testing.assert_close(guided.x0, (0.4 + scale * 0.5) * torch.tanh(2 * CLEAN), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alpha * guided.x0 + sigma * guided.eps, CLEAN)


def test_guidance_of_one_is_the_conditional_to_the_bit() -> None:
    guided, told = Guided(scaled, 1.0)(CLEAN, 0.4, INPUTS), scaled(CLEAN, 0.4, INPUTS)
    assert torch.equal(guided.x0, told.x0) and torch.equal(guided.eps, told.eps)
    unconditional = Inputs(context=INPUTS.context)
    Guided(scaled, 1.0)(CLEAN, 0.4, unconditional)
    with pytest.raises(PathError, match="null"):
        Guided(scaled, 2.0)(CLEAN, 0.4, unconditional)


def test_windows_of_an_elementwise_denoiser_change_nothing() -> None:
    seen: list[tuple[int, ...]] = []

    def watched(x: Tensor, t: float, inputs: Inputs) -> Estimate:
        seen.append(tuple(x.shape[2:]))
        assert inputs.channels is not None and torch.equal(inputs.channels, 2 * x)  # cut at the same place
        return scaled(x, t, inputs)

    x = torch.randn((2, 1, 10, 9), generator=GENERATOR, dtype=torch.float64)
    whole = scaled(x, 0.4, Inputs())
    for overlap in (0.0, 0.5, 0.75):
        windows = Windows(watched, (4, 5), overlap)(x, 0.4, Inputs(channels=2 * x))
        torch.testing.assert_close(windows.x0, whole.x0)
        torch.testing.assert_close(windows.eps, whole.eps)
        torch.testing.assert_close(windows.log_var, whole.log_var)
    assert set(seen) == {(4, 5)}
    with pytest.raises(PathError, match="pad it"):
        Windows(watched, (11, 5), 0.5)(x, 0.4, Inputs(channels=2 * x))


def test_windows_trust_their_middles() -> None:
    """Two windows of 4 over 6 voxels, each with its own constant: the seam is a ramp between them."""
    values = iter([0.0, 1.0])

    def constant(x: Tensor, t: float, inputs: Inputs) -> Estimate:
        filled = torch.full_like(x, next(values))
        return Estimate(filled, filled)

    blended = Windows(constant, (4,), 0.5)(torch.zeros(1, 1, 6), 0.4, Inputs()).x0[0, 0]
    torch.testing.assert_close(blended, torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))
