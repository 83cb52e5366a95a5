"""Solvers: one move of the probability-flow ODE, or of the chain that was noised, as a mean and a std.

The loop adds std times noise, so that deterministic, ancestral, recorded and code-exchanging sampling differ only in
the noise that is passed. Direction is only the sign of s - t. With x = alpha x0 + sigma eps the ODE of Song et al.
2021 (score SDE), eq. 13, reads

    dx = x0 d(alpha) + eps d(sigma),

in which nothing is divided; the formulas below are that ODE's, and hold for every path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from cftools.diffusion.denoiser import Denoise, Estimate
from cftools.diffusion.moves import Move
from cftools.diffusion.path import Path, log_snr, posterior, transition
from cftools.errors import PathError


@dataclass(frozen=True)
class Step:
    """Where a move leads: mean + std z.

    Attributes:
        mean: at s, (B, C, *spatial).
        std: one number, 0.0 where the solver is deterministic, or (B, C, *spatial).
        estimate: at the move's beginning, or the one nearest to it that the solver asked for.
        state: what the solver wants back at the next move; dropped whenever something else has changed x.
    """

    mean: Tensor
    std: float | Tensor
    estimate: Estimate
    state: Any = None


class Solver(Protocol):
    """One way to make a move.

    Attributes:
        order: the error of a run falls with the number of moves to this power (of its distribution, where moves
            are random).
    """

    @property
    def order(self) -> int: ...

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Any = None) -> Step:
        """One move of x, (B, C, *spatial), from move.t to move.s."""


def advance(x: Tensor, estimate: Estimate, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """x + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps: the ODE with x0 and eps held; pairs are (alpha, sigma)."""
    return x + (end[0] - start[0]) * estimate.x0 + (end[1] - start[1]) * estimate.eps


@dataclass(frozen=True)
class Ddim:
    """x_s = alpha_s x0(x_t) + sigma_s eps(x_t), Song et al. 2021 (DDIM), eq. 12 without noise; both directions.

    On a rectified flow this is Euler's step x_t + (s - t) v. Upwards it is the first-order inversion of the papers
    (CDM, eq. 6, with eps at the beginning of the move in place of its unknown end).
    """

    order: ClassVar[int] = 1

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Any = None) -> Step:
        """One evaluation; no state."""
        estimate = denoise(x, move.t)
        alpha, sigma = path.at(move.s)
        return Step(alpha * estimate.x0 + sigma * estimate.eps, 0.0, estimate)


@dataclass(frozen=True)
class Ddpm:
    """Ancestral sampling: the mean and std of q(x_s | x_t, x_0) at the estimated x_0, Ho et al. 2020, algorithm 2.

    Where the network tells its log-variance that is used, Nichol and Dhariwal 2021, eq. 15 (CG-DDPM, eq. 4).
    At s = 0 the variance of q(x_s | x_t, x_0) is 0, and that of q(x_t | x_s) stands for it: fresh noise is none there
    (z = 0 if t = 1), but a tape or a paired code needs something to be divided by.

    Attributes:
        variance: small, that of q(x_s | x_t, x_0), or large, that of q(x_t | x_s): beta-tilde and beta of the paper.
    """

    variance: Literal["small", "large"] = "small"
    order: ClassVar[int] = 1

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Any = None) -> Step:
        """One evaluation; no state.

        Raises:
            PathError: the move goes up; noise that was added cannot be taken back so.
        """
        if move.s >= move.t:
            raise PathError("ancestral sampling cannot be inverted: record it, or choose a deterministic solver")
        estimate = denoise(x, move.t)
        weight_x0, weight_eps, small = posterior(path, move.t, move.s)
        _, large = transition(path, move.s, move.t)
        std: float | Tensor = large if self.variance == "large" or small == 0 else small
        if estimate.log_var is not None:
            low = math.log(small) if small > 0 else math.log(large)
            std = torch.exp(estimate.log_var * math.log(large) + (1 - estimate.log_var) * low)
        return Step(weight_x0 * estimate.x0 + weight_eps * estimate.eps, std, estimate)


@dataclass(frozen=True)
class Heun:
    """The trapezoidal rule after a first-order step: x0 and eps are averaged over both ends of the move.

    On a rectified flow it is Heun's step x_t + (s - t) (v_t + v_s) / 2; otherwise Karras et al. 2022, algorithm 1, in
    alpha and sigma. As there, no correction is made of a step that ends without noise.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Any = None) -> Step:
        """Two evaluations; no state."""
        start, end = path.at(move.t), path.at(move.s)
        first = denoise(x, move.t)
        guess = advance(x, first, start, end)
        if end[1] == 0:
            return Step(guess, 0.0, first)
        second = denoise(guess, move.s)
        mixed = Estimate((first.x0 + second.x0) / 2, (first.eps + second.eps) / 2)
        return Step(advance(x, mixed, start, end), 0.0, first)


@dataclass(frozen=True)
class FireFlow:
    """The midpoint rule, whose half step goes along the last move's middle: FireFlow, Deng et al. 2024.

    Second order at one evaluation a move (two at the first); made for rectified flows, right on every path. The state
    is the last middle's estimate. Networks that know only whole training times are asked between them.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Estimate | None = None) -> Step:
        """One evaluation, or two without a state."""
        middle = (move.t + move.s) / 2
        start = path.at(move.t)
        before = state or denoise(x, move.t)
        estimate = denoise(advance(x, before, start, path.at(middle)), middle)
        return Step(advance(x, estimate, start, path.at(move.s)), 0.0, before, estimate)


@dataclass(frozen=True)
class Before:
    """Where a two-step solver was a move ago: the time t, and a tensor from there, (B, C, *spatial)."""

    t: float
    x: Tensor


@dataclass(frozen=True)
class Dpm2m:
    """DPM-Solver++(2M): x_0 is continued linearly in half the log-SNR, Lu et al. 2022, algorithm 2.

    x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D, D = x0_t + h / (2 h_before) (x0_t - x0_before), written
    as DDIM's step plus what D adds to x0_t. The state is the last x0. A move from or to a log-SNR without end is
    of first order, and so is the next: two of many, which leaves the order as it is.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Before | None = None) -> Step:
        """One evaluation."""
        estimate = denoise(x, move.t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path.at(move.t), path.at(move.s)
        mean = alpha_s * estimate.x0 + sigma_s * estimate.eps
        if state is not None:
            now = log_snr(path, move.t)
            ahead, behind = log_snr(path, move.s) - now, now - log_snr(path, state.t)
            if math.isfinite(ahead) and math.isfinite(behind):
                weight = (alpha_s - alpha_t * sigma_s / sigma_t) * ahead / (2 * behind)
                mean = mean + weight * (estimate.x0 - state.x)
        return Step(mean, 0.0, estimate, Before(move.t, estimate.x0))


#: Solvers by the name that presets have for them. On a rectified flow DDIM's step is Euler's, so one has both names.
SOLVERS: dict[str, Solver] = {
    "ddpm": Ddpm(),
    "ddim": Ddim(),
    "euler": Ddim(),
    "heun": Heun(),
    "fireflow": FireFlow(),
    "dpm++2m": Dpm2m(),
}
