"""Inversions that come back to where they started: fixed point, to a tolerance, and BDIA, exactly."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cftools.diffusion.denoiser import Denoise
from cftools.diffusion.moves import Move
from cftools.diffusion.path import Path
from cftools.diffusion.solver import Before, Solver, Step
from cftools.errors import CftoolsWarning, PathError


@dataclass(frozen=True)
class FixedPoint:
    """Upwards, the x_s from which another solver's own move down leads to x_t: solve(x_s; s -> t) = x_t.

    Begins with that solver's move up, and adds the residual x_t - solve(x_s; s -> t) to x_s until it is small. This
    may diverge, so each subject keeps the x_s of its least residual, and stops by itself: at the tolerance, as soon
    as its residual no longer falls, or when the iterations are used up. With Ddim, x_s changes by
    (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps; AIDI (Pan et al. 2023) holds eps alone instead, and contracts
    less where little signal is left.

    Attributes:
        solver: deterministic and without a state.
        iterations: evaluations of the solver a move, at most; 1 is its own move up (with Ddim, the papers' inversion).
        tolerance: |residual| / |x_t| of one subject (Euclidean) at which it stops; 0: only when it no longer falls.
    """

    solver: Solver
    iterations: int = 1
    tolerance: float = 0.0

    @property
    def order(self) -> int:
        return self.solver.order

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Any = None) -> Step:
        """One move up; warns of subjects that a tolerance was set for and that did not reach it.

        Raises:
            PathError: the move goes down, or the solver is random.
        """
        if move.s < move.t:
            raise PathError("a fixed-point inversion only goes up: sample with its solver")
        first = self.solver.step(denoise, path, x, move)
        back = Move(move.s, move.t, "solve", move.index)
        found = before = first.mean
        least = [math.inf] * len(x)
        going = [True] * len(x)
        for _ in range(self.iterations - 1):
            if not any(going):
                break
            # Subjects that are done go along through the network, so that it always sees the same batch.
            residual = x - self.solver.step(denoise, path, found, back).mean
            # Each norm on its own: a batched one may add up in another order.
            sizes = [float(missing.norm() / row.norm()) for missing, row in zip(residual, x, strict=True)]
            better = [on and size < best for on, size, best in zip(going, sizes, least, strict=True)]
            worse = [on and not good for on, good in zip(going, better, strict=True)]
            least = [size if good else best for good, size, best in zip(better, sizes, least, strict=True)]
            going = [good and size > self.tolerance for good, size in zip(better, sizes, strict=True)]
            last = before
            before = torch.where(_rows(better, x), found, before)
            found = torch.where(_rows(better, x), found + residual, found)
            found = torch.where(_rows(worse, x), last, found)
        if self.iterations > 1 and self.tolerance > 0 and max(least) > self.tolerance:
            text = f"inversion did not come within {self.tolerance:g}: more steps or iterations, or bdia"
            warnings.warn(text, CftoolsWarning, stacklevel=2)
        return Step(found, 0.0, first.estimate)


@dataclass(frozen=True)
class Bdia:
    """BDIA-DDIM, exactly invertible at one evaluation a move: Zhang, Lewis and Kleijn 2023, with gamma = 1.

    x_s = ddim(x_t; t -> s) + x_b - ddim(x_t; t -> b) with x_b at the time b before t: the leapfrog rule. The same
    formula goes back up. The state is the pair's other half, (b, x_b): a run that turns round with it retraces its
    way to rounding error: where b is s, x_s is x_b. A run without one begins with DDIM's move.

    The paper's gamma below 1 weighs the last two terms, and the way up then divides by it at every move: from a scan
    that is an error that grows as gamma^-moves, and no solution of the ODE.
    """

    order: ClassVar[int] = 2

    def step(self, denoise: Denoise, path: Path, x: Tensor, move: Move, state: Before | None = None) -> Step:
        """One evaluation."""
        estimate = denoise(x, move.t)
        alpha, sigma = path.at(move.s)
        mean = alpha * estimate.x0 + sigma * estimate.eps
        if state is not None:
            alpha, sigma = path.at(state.t)
            mean = mean + state.x - (alpha * estimate.x0 + sigma * estimate.eps)
        return Step(mean, 0.0, estimate, Before(move.t, x))


def _rows(flags: list[bool], like: Tensor) -> Tensor:
    return torch.tensor(flags, device=like.device).view(-1, *[1] * (like.ndim - 1))
