"""Whole runs: keyed draws, constraints, tapes, paired codes, and the loop that holds them together."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from gaussians import Mixture
from torch import Tensor

from cftools.diffusion.constraint import Constraint, Paste, Repaint, unconstrained
from cftools.diffusion.denoiser import Denoise, Estimate
from cftools.diffusion.integrate import integrate
from cftools.diffusion.inversion import Bdia
from cftools.diffusion.moves import Move, down, times, up
from cftools.diffusion.noise import NO_DRAWS, STREAMS, Draws, Paired, Recording, Tape, fresh, zero
from cftools.diffusion.path import Path, RectifiedFlow, make_path, transition
from cftools.diffusion.solver import Before, Ddim, Ddpm, Dpm2m, FireFlow, Heun, Solver, Step
from cftools.diffusion.start import inverted, noised, prior, recorded
from cftools.errors import PathError

LINEAR, FLOW = make_path("vp-linear"), RectifiedFlow()
YOUNG, OLD = Mixture((0.4, 0.6), (-1.0, 0.8), (0.4, 0.5)), Mixture((0.7, 0.3), (-0.5, 1.5), (0.3, 0.6))
EMPTY = torch.zeros(1, 1, 8, 8)


def sample(
    seed: int, samples: tuple[int, ...], data: Mixture = YOUNG, constraint: Constraint = unconstrained
) -> Tensor:
    draws = Draws(seed, samples)
    start = prior(EMPTY.expand(len(samples), -1, -1, -1), draws)
    moves = down(times(LINEAR, 10), 2)
    return integrate(Ddpm(), data.denoise(LINEAR), LINEAR, start, moves, fresh, draws, constraint)[0]


# Draws.


def test_draws_differ_by_every_part_of_their_key() -> None:
    keys = [(seed, n, stream, index) for seed in (0, 1) for n in (0, 1) for stream in STREAMS for index in (0, 1)]
    drawn = torch.cat([Draws(seed, (n,))(EMPTY, stream, index) for seed, n, stream, index in keys])
    assert len(torch.unique(drawn)) > 0.99 * drawn.numel()
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05) and float(drawn.std()) == pytest.approx(1, abs=0.05)
    correlation = torch.corrcoef(drawn.flatten(1)).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 0.6


def test_draws_are_the_same_beside_whatever_and_in_other_precisions() -> None:
    three = Draws(5, (7, 3, 9))(EMPTY.expand(3, -1, -1, -1), "move", 4)
    assert torch.equal(three[1:2], Draws(5, (3,))(EMPTY, "move", 4))
    double = Draws(5, (3,))(EMPTY.double(), "move", 4)
    assert double.dtype == torch.float64 and torch.equal(double.float(), three[1:2])
    with pytest.raises(PathError, match="2 rows"):
        Draws(5, (3,))(EMPTY.expand(2, -1, -1, -1), "move", 4)
    with pytest.raises(PathError):
        NO_DRAWS(EMPTY, "move", 1)


def test_neither_shard_nor_order_changes_a_subject() -> None:
    known, free = torch.full_like(EMPTY, 0.5), torch.rand(EMPTY.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    repaint = Repaint(LINEAR, known, free)
    for constraint in (unconstrained, repaint):
        batch = sample(1, (4, 2, 7), constraint=constraint)
        turned = sample(1, (7, 4, 2), constraint=constraint)
        assert torch.equal(turned, batch[[2, 0, 1]])
        for row, number in enumerate((4, 2, 7)):
            assert torch.equal(sample(1, (number,), constraint=constraint), batch[row : row + 1])
    assert not torch.equal(sample(1, (4,)), sample(2, (4,)))


def test_conditions_share_their_draws() -> None:
    """What two conditions are given is the same, so a condition that asks for nothing new gives the same bits."""
    asked: dict[str, list[Tensor]] = {"young": [], "old": []}

    def watching(name: str, data: Mixture) -> None:
        draws = Draws(3, (1,))

        def noise(x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor:
            asked[name].append(fresh(x, move, step, draws))
            return asked[name][-1]

        integrate(Ddpm(), data.denoise(LINEAR), LINEAR, prior(EMPTY, draws), down(times(LINEAR, 5)), noise, draws)

    watching("young", YOUNG)
    watching("old", OLD)
    assert len(asked["young"]) == 5
    assert all(torch.equal(a, b) for a, b in zip(asked["young"], asked["old"], strict=True))
    assert torch.equal(sample(3, (1,), replace(YOUNG)), sample(3, (1,), YOUNG))
    assert not torch.equal(sample(3, (1,), OLD), sample(3, (1,), YOUNG))


def test_fresh_noise_is_none_at_the_last_move() -> None:
    step, draws = Step(EMPTY, 1.0, Estimate(EMPTY, EMPTY)), Draws(0, (0,))
    assert not fresh(EMPTY, Move(0.1, 0.0, "solve", 9), step, draws).any()
    assert fresh(EMPTY, Move(0.2, 0.1, "solve", 8), step, draws).all()


def test_ancestral_sampling_makes_the_data() -> None:
    draws, shape = Draws(0, (0,)), torch.zeros(1, 1, 4000)
    x, _ = integrate(Ddpm(), YOUNG.denoise(LINEAR), LINEAR, prior(shape, draws), down(times(LINEAR, 250)), fresh, draws)
    for point in (-1.2, -0.8, 0.0, 0.5, 1.0):
        share = float(YOUNG.cdf(torch.tensor([point], dtype=torch.float64)))
        assert float((x < point).float().mean()) == pytest.approx(share, abs=0.025)


# Constraints.

SCAN = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
FREE = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
FREE[..., 2:6, 3:5] = True
DETERMINISTIC: tuple[Solver, ...] = (Ddim(), Heun(), FireFlow(), Dpm2m(), Bdia())


@pytest.mark.parametrize("solver", [Ddpm(), *DETERMINISTIC], ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("path", [LINEAR, FLOW], ids=["linear", "flow"])
def test_constraints_leave_the_outside_exact(solver: Solver, path: Path) -> None:
    draws = Draws(0, (0,))
    for constraint in (Paste(SCAN, FREE), Repaint(path, SCAN, FREE)):
        moves = down(times(path, 6), 3)
        x, _ = integrate(solver, YOUNG.denoise(path), path, prior(SCAN, draws), moves, fresh, draws, constraint)
        assert torch.equal(x[~FREE], SCAN[~FREE])
        assert not torch.isclose(x[FREE], SCAN[FREE]).any() and torch.isfinite(x).all()


def test_a_constraint_acts_on_the_start_and_after_every_solve() -> None:
    acted: list[tuple[float, int]] = []
    met: list[Tensor] = []

    def watch(x: Tensor, t: float, index: int, draws: Draws) -> tuple[Tensor, bool]:
        acted.append((t, index))
        return Paste(SCAN, FREE)(x, t, index, draws)

    def denoise(x: Tensor, t: float) -> Estimate:
        met.append(x)
        return YOUNG.denoise(LINEAR)(x, t)

    draws = Draws(0, (0,))
    moves = down(times(LINEAR, 4), 2)
    integrate(Ddpm(), denoise, LINEAR, prior(SCAN, draws), moves, fresh, draws, watch)
    assert acted == [(1.0, 0), *((m.s, m.index) for m in moves if m.kind == "solve")]
    assert torch.equal(met[0][~FREE], SCAN[~FREE]) and torch.equal(met[0][FREE], prior(SCAN, draws)[FREE])


def test_repaint_noises_what_is_known_anew_at_every_move() -> None:
    known, draws = torch.full((1, 1, 4000), 0.7), Draws(0, (0,))
    repaint = Repaint(LINEAR, known, torch.zeros_like(known, dtype=torch.bool))
    alpha, sigma = LINEAR.at(0.5)
    one, two = (repaint(torch.zeros_like(known), 0.5, index, draws)[0] for index in (3, 4))
    for x in (one, two):
        assert float(x.mean()) == pytest.approx(0.7 * alpha, abs=0.05)
        assert float(x.std()) == pytest.approx(sigma, abs=0.05)
    assert abs(float(torch.corrcoef(torch.cat([one[0], two[0]]))[0, 1])) < 0.06
    own = fresh(known, Move(0.6, 0.5, "solve", 3), Step(known, 1.0, Estimate(known, known)), draws)
    assert abs(float(torch.corrcoef(torch.cat([one[0], own[0]]))[0, 1])) < 0.06


MODES = torch.tensor([[1.5, 1.0], [-1.5, -1.0]], dtype=torch.float64)  # (component, channel)
WIDTH = 0.35


def joint(path: Path) -> Denoise:
    """Two channels that are high together or low together: a mixture of two Gaussians in the plane."""

    def denoise(x: Tensor, t: float) -> Estimate:
        alpha, sigma = path.at(t)
        variance = (alpha * WIDTH) ** 2 + sigma**2
        away = x[:, None] - alpha * MODES[None, :, :, None]
        share = torch.softmax(-(away**2).sum(2) / (2 * variance), 1)[:, :, None]
        x0 = (share * (MODES[None, :, :, None] + alpha * WIDTH**2 / variance * away)).sum(1)
        return Estimate(x0, (share * sigma / variance * away).sum(1))

    return denoise


def test_repaint_recovers_the_known_conditional() -> None:
    """Given the first channel the second is a known mixture; without resampling RePaint misses its mode."""
    known = torch.full((1, 2, 500), 0.3, dtype=torch.float64)
    high = 1 / (1 + math.exp(-2 * 1.5 * 0.3 / WIDTH**2))
    assert high > 0.99
    means = {}
    for resample in (1, 8):
        draws = Draws(0, (0,))
        constraint = Repaint(LINEAR, known, torch.tensor([False, True]).view(1, 2, 1))
        moves = down(times(LINEAR, 200), resample)
        x, _ = integrate(Ddpm(), joint(LINEAR), LINEAR, prior(known, draws), moves, fresh, draws, constraint)
        means[resample] = float(x[0, 1].mean())
        inside = x[0, 1][x[0, 1] > 0]
        assert torch.equal(x[0, 0], known[0, 0])
    assert means[1] < 0.6 and means[8] == pytest.approx(2 * high - 1, abs=0.08)
    assert float(inside.mean()) == pytest.approx(1, abs=0.06)
    assert float(inside.std()) == pytest.approx(WIDTH, abs=0.05)


class Remembering:
    """Ddim that counts for how many moves it was not made to forget."""

    order = 1

    def __init__(self) -> None:
        self.states: list[int | None] = []

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: int | None = None) -> Step:
        self.states.append(state)
        return replace(Ddim().step(denoise, path, x, move), state=(state or 0) + 1)


def test_what_changes_x_makes_the_solver_forget() -> None:
    draws, denoise = Draws(0, (0,)), YOUNG.denoise(LINEAR)

    def states(resample: int, constraint: Constraint, state: int | None = None) -> list[int | None]:
        solver, moves = Remembering(), down(times(LINEAR, 3), resample)
        integrate(solver, denoise, LINEAR, prior(SCAN, draws), moves, zero, draws, constraint, state)
        return solver.states

    assert states(1, unconstrained) == [None, 1, 2]
    assert states(1, unconstrained, 5) == [5, 6, 7]
    assert states(2, unconstrained) == [None, None, 1, None, 1]
    assert states(1, Paste(SCAN, FREE), 5) == [None, None, None]


# Tapes.


@pytest.mark.parametrize("path", [LINEAR, FLOW], ids=["linear", "flow"])
def test_a_tape_ends_on_the_scan(path: Path) -> None:
    draws, moves = Draws(0, (0,)), down(times(path, 12, 0.64))
    top, tape = recorded(Ddpm(), YOUNG.denoise(path), path, SCAN, moves, draws)
    played, _ = integrate(Ddpm(), YOUNG.denoise(path), path, top, moves, tape, NO_DRAWS)
    assert len(tape.codes) == 12 and float(tape.codes[0].std()) > 0.3
    assert float((played - SCAN).abs().max()) < 1e-6
    edited, _ = integrate(Ddpm(), OLD.denoise(path), path, top, moves, tape, NO_DRAWS)
    assert float((edited - SCAN).abs().max()) > 0.1


def test_a_tape_is_played_on_its_own_schedule() -> None:
    tape, draws = Tape((EMPTY, EMPTY)), Draws(0, (0,))
    start, denoise = prior(EMPTY, draws), YOUNG.denoise(LINEAR)
    with pytest.raises(PathError, match="nothing for move 3"):
        integrate(Ddpm(), denoise, LINEAR, start, down(times(LINEAR, 3)), tape, draws)
    with pytest.raises(PathError, match="nothing for move 1"):
        integrate(Ddpm(), denoise, LINEAR, start[..., :4], down(times(LINEAR, 2)), tape, draws)


def test_only_what_goes_straight_down_at_random_is_recorded() -> None:
    denoise, draws = YOUNG.denoise(LINEAR), Draws(0, (0,))
    with pytest.raises(PathError, match="deterministic"):
        recorded(Ddim(), denoise, LINEAR, SCAN, down(times(LINEAR, 4)), draws)
    with pytest.raises(PathError, match="straight down"):
        recorded(Ddpm(), denoise, LINEAR, SCAN, down(times(LINEAR, 4), 2), draws)


def test_recorded_noise_is_larger_than_a_chains() -> None:
    """Edit-friendly codes: independent x_t make codes of more than unit variance (Huberman et al., section 3.2)."""
    path, draws, clean = make_path("vp-linear"), Draws(0, (0,)), torch.zeros(1, 1, 4000)
    recording, point = Recording(path, clean), Mixture((1.0,), (0.0,), (1e-3,))
    moves = down(times(path, 50))
    start = noised(path, clean, 1.0, draws)
    integrate(Ddpm(), point.denoise(path), path, start, moves, recording, draws)
    spread = [float(code.std()) for code in recording.codes[5:-1]]
    assert min(spread) > 1.2


# Paired codes.


def paired(source: Tensor, target: Mixture, partner: Mixture, steps: int, samples: tuple[int, ...] = (0,)) -> Tensor:
    draws, moves = Draws(0, samples), down(times(LINEAR, steps))
    noise = Paired(LINEAR, source, Ddpm(), lambda estimate: partner.denoise(LINEAR))
    start = noised(LINEAR, source, 1.0, draws)
    return integrate(Ddpm(), target.denoise(LINEAR), LINEAR, start, moves, noise, draws)[0]


def test_a_partner_of_itself_gives_the_source_back() -> None:
    source = YOUNG.quantile(torch.linspace(0.01, 0.99, 64, dtype=torch.float64)).view(1, 1, 64)
    torch.testing.assert_close(paired(source, YOUNG, YOUNG, 50), source, atol=1e-9, rtol=0)


def expected_correlation(own: float, other: float, steps: int) -> float:
    """Of the target with the source that it was made from, both Gaussian with these stds.

    All is linear then: (X, Y, Y_0) and the noise of Y's chain, in the papers' alpha-bar and beta; 2 x 3 matrices take
    (X, Y, Y_0) down a move, with Y_0 kept.
    """
    bar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    alpha, sigma = math.sqrt(bar[-1]), math.sqrt(1 - bar[-1])
    start = np.array([[alpha], [alpha], [1.0]]) * own
    covariance = start @ start.T + sigma**2 * np.outer([1, 1, 0], [1, 1, 0])
    for n, m in pairwise(range(1000, -1, -1000 // steps)):
        beta = 1 - bar[n] / bar[m]
        to_x0, to_xt = math.sqrt(bar[m]) * beta / (1 - bar[n]), math.sqrt(1 - beta) * (1 - bar[m]) / (1 - bar[n])
        std = math.sqrt((1 - bar[m]) / (1 - bar[n]) * beta)
        gain = {s: to_x0 * math.sqrt(bar[n]) * s**2 / (bar[n] * s**2 + 1 - bar[n]) + to_xt for s in (own, other)}
        # Y_s - mean of Y, of which the same goes to X: their stds are the same.
        move = np.array([[gain[other], to_xt - gain[own], to_x0], [0, to_xt, to_x0], [0, 0, 1]])
        covariance = move @ covariance @ move.T + std**2 * np.outer([1, 1, 0], [1, 1, 0])
    return float(covariance[0, 2] / math.sqrt(covariance[0, 0] * covariance[2, 2]))


def test_paired_codes_carry_a_subject_to_the_other_contrast() -> None:
    """Two Gaussian contrasts: an element that is high in one becomes high in the other, as much as theory says."""
    own, other = Mixture((1.0,), (-0.5,), (0.6,)), Mixture((1.0,), (1.0,), (0.3,))
    source = own.quantile(torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    made = paired(source.view(1, 1, -1), other, own, 200).flatten()
    expected = expected_correlation(0.6, 0.3, 200)
    assert expected > 0.9
    assert float(torch.corrcoef(torch.stack([made, source]))[0, 1]) == pytest.approx(expected, abs=0.01)
    assert float(made.mean()) == pytest.approx(1, abs=0.02) and float(made.std()) == pytest.approx(0.3, rel=0.05)
    two = source.view(2, 1, -1)
    assert torch.equal(paired(two, other, own, 20, (5, 8))[1:], paired(two[1:], other, own, 20, (8,)))


def test_paired_codes_are_unit_noise_along_one_chain() -> None:
    codes: list[Tensor] = []
    source = YOUNG.quantile(torch.rand(3000, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    given: list[Tensor] = []

    def partner(estimate: Tensor) -> Denoise:
        given.append(estimate)
        return YOUNG.denoise(LINEAR)

    pair = Paired(LINEAR, source.view(1, 1, -1), Ddpm("large"), partner)

    def noise(x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor:
        codes.append(pair(x, move, step, draws))
        assert given[-1] is step.estimate.x0
        return codes[-1]

    draws = Draws(0, (0,))
    start = noised(LINEAR, source.view(1, 1, -1), 1.0, draws)
    integrate(Ddpm("large"), OLD.denoise(LINEAR), LINEAR, start, down(times(LINEAR, 200)), noise, draws)
    assert len(codes) == 200
    for one, two in zip(codes[20:180:20], codes[21:181:20], strict=True):
        assert float(one.mean()) == pytest.approx(0, abs=0.06) and float(one.std()) == pytest.approx(1, abs=0.08)
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])) < 0.1


def test_paired_codes_need_a_chain() -> None:
    draws, moves = Draws(0, (0,)), down(times(LINEAR, 4), 2)
    noise = Paired(LINEAR, SCAN, Ddpm(), lambda estimate: YOUNG.denoise(LINEAR))
    with pytest.raises(PathError, match="straight down"):
        integrate(Ddpm(), YOUNG.denoise(LINEAR), LINEAR, prior(SCAN, draws), moves, noise, draws)


# The loop and its starts.


def test_the_loop_reports_and_refuses_gaps() -> None:
    draws, seen = Draws(0, (0,)), []
    moves = down(times(LINEAR, 4), 2)
    start, denoise = prior(SCAN, draws), YOUNG.denoise(LINEAR)
    x, _ = integrate(Ddpm(), denoise, LINEAR, start, moves, fresh, draws, record=lambda move, x: seen.append((move, x)))
    assert [move for move, _ in seen] == list(moves) and seen[-1][1] is x
    for broken in ((), moves[:2] + moves[3:]):
        with pytest.raises(PathError, match="from where the last one ended"):
            integrate(Ddpm(), denoise, LINEAR, start, broken, fresh, draws)


def test_renoising_is_the_forward_chain_whatever_the_solver() -> None:
    draws, move = Draws(0, (0,)), Move(0.3, 0.6, "renoise", 4)
    for noise in (zero, fresh, Tape(())):
        x, state = integrate(Ddim(), YOUNG.denoise(LINEAR), LINEAR, SCAN, (move,), noise, draws, state="old")
        scale, std = transition(LINEAR, 0.3, 0.6)
        torch.testing.assert_close(x, scale * SCAN + std * draws(SCAN, "move", 4))
        assert state is None


def test_zero_noise_is_the_chain_of_means() -> None:
    moves, denoise = down(times(LINEAR, 5)), YOUNG.denoise(LINEAR)
    x = expected = prior(SCAN, Draws(0, (0,)))
    x, _ = integrate(Ddpm(), denoise, LINEAR, x, moves, zero, NO_DRAWS)
    for move in moves:
        expected = Ddpm().step(denoise, LINEAR, expected, move).mean
    assert torch.equal(x, expected)


def test_starts() -> None:
    draws = Draws(0, (3,))
    z = prior(SCAN, draws)
    alpha, sigma = LINEAR.at(0.2)
    torch.testing.assert_close(noised(LINEAR, SCAN, 0.2, draws), alpha * SCAN + sigma * z)
    assert torch.equal(noised(FLOW, SCAN, 1.0, draws), z)
    top, state = inverted(Bdia(), YOUNG.denoise(FLOW), FLOW, SCAN, up(times(FLOW, 4, 0.5)))
    assert isinstance(state, Before) and state.t == 0.375 and top.shape == SCAN.shape


def test_nothing_is_kept_for_gradients() -> None:
    weight = torch.tensor(1.0, requires_grad=True)

    def denoise(x: Tensor, t: float) -> Estimate:
        return Estimate(weight * x, x)

    assert not integrate(Ddim(), denoise, FLOW, SCAN, down(times(FLOW, 2)), zero, NO_DRAWS)[0].requires_grad
