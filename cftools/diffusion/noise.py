"""Where randomness comes from, and what a run does with it.

All of a run's randomness comes from one Draws: standard normals keyed by seed, sample, stream and index. The condition
is no part of the key, so edits of one scan share their noise and differ only in what was asked; nor is the batch, so
shards and the order of subjects change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from cftools.diffusion.denoiser import Denoise
from cftools.diffusion.moves import Move
from cftools.diffusion.path import Path, noised, posterior
from cftools.diffusion.solver import Solver, Step
from cftools.errors import PathError

#: Purposes of draws; those of one never coincide with another's. Their order is part of every key.
Stream = Literal["start", "move", "constraint", "record", "partner"]
STREAMS: tuple[Stream, ...] = get_args(Stream)


@dataclass(frozen=True)
class Draws:
    """Standard normals by key.

    Attributes:
        seed: the run's, 0 or more.
        samples: of each row of the batch, its own number, 0 or more, wherever and beside whatever it is made.
    """

    seed: int
    samples: tuple[int, ...]

    def __call__(self, like: Tensor, stream: Stream, index: int) -> Tensor:
        """Independent N(0, 1) in the shape, type and device of `like`, (B, ...).

        Drawn in single precision on the CPU whatever `like` is, so that other devices and precisions see the same.

        Args:
            index: 0 for the start, else the move's.
        Raises:
            PathError: there are not as many rows as samples.
        """
        if len(like) != len(self.samples):
            raise PathError(f"{len(like)} rows, but draws are for {len(self.samples)} samples")
        rows = []
        for sample in self.samples:
            key = np.random.SeedSequence(self.seed, spawn_key=(sample, STREAMS.index(stream), index))
            values = np.random.default_rng(key).standard_normal(tuple(like.shape[1:]), dtype=np.float32)
            rows.append(torch.from_numpy(np.asarray(values)))
        return torch.stack(rows).to(like)


#: For runs that must not draw anything, such as inversions: every draw is an error.
NO_DRAWS = Draws(0, ())


class Noise(Protocol):
    """What the loop adds std times at each solver's move whose std is not 0.0.

    Gets x_t, (B, C, *spatial), the move, its step, and the run's draws; returns z, (B, C, *spatial).
    """

    def __call__(self, x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor: ...


def zero(x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor:
    """No noise: the chain of means."""
    return torch.zeros_like(x)


def fresh(x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor:
    """New noise at every move but the last, Ho et al. 2020, algorithm 2: z = 0 where s = 0."""
    return draws(x, "move", move.index) if move.s > 0 else torch.zeros_like(x)


@dataclass(frozen=True)
class Tape:
    """Recorded noise, played back: codes[i] at the move of index i + 1, each (B, C, *spatial)."""

    codes: tuple[Tensor, ...]

    def __call__(self, x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor:
        """The code of this move.

        Raises:
            PathError: nothing of this shape was recorded at a move of this index.
        """
        recorded = 0 < move.index <= len(self.codes)
        if not recorded or self.codes[move.index - 1].shape != x.shape:
            raise PathError(f"the tape has nothing for move {move.index}: play it on the schedule it was recorded on")
        return self.codes[move.index - 1]


@dataclass
class Recording:
    """Noise that leads along a chain to a given image, Huberman-Spiegelglas et al. 2024 (edit-friendly), algorithm 1.

    Each x_s is drawn from q(x_s | x_0) independently of the others, which makes the codes z = (x_s - mean) / std
    hold more of the image than a true chain's do. At s = 0 it is the image itself: the run ends on it.

    Attributes:
        clean: x_0, (B, C, *spatial).
        codes: what was returned so far, in the order of moves.
    """

    path: Path
    clean: Tensor
    codes: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor:
        """The code that leads to the next x_s.

        Raises:
            PathError: a code was skipped: the schedule goes up between moves, or a move had no std.
        """
        if move.index != len(self.codes) + 1:
            raise PathError("only a schedule that goes straight down with a random solver can be recorded")
        goal = noised(self.path, self.clean, draws(x, "record", move.index), move.s)
        self.codes.append((goal - step.mean) / step.std)
        return self.codes[-1]

    def tape(self) -> Tape:
        """What was recorded."""
        return Tape(tuple(self.codes))


@dataclass
class Paired:
    """The codes of a partner that makes the source scan at the same time, Pan et al. 2023 (CG-DDPM), eq. 9 and 13-15.

    z = (Y_s - mean) / std with the partner's own mean and std of Y_s given Y_t and the target's estimate of x_0. Y is
    one noisy sequence of the source: it starts as the source noised with the run's start draws, so at the same x_t as
    a run that starts from the noised source, and comes down by q(Y_s | Y_t, Y_0), Ho et al. 2020, eq. 6.

    Attributes:
        source: Y_0, (B, C, *spatial).
        solver: how the partner moves; the run's own.
        partner: from the target's estimate of x_0, (B, C, *spatial), to the partner's denoiser.
    """

    path: Path
    source: Tensor
    solver: Solver
    partner: Callable[[Tensor], Denoise]
    _time: float | None = None
    _noisy: Tensor | None = None

    def __call__(self, x: Tensor, move: Move, step: Step, draws: Draws) -> Tensor:
        """The partner's code for this move, after which its own chain stands at s.

        Raises:
            PathError: a move does not begin where the last one ended.
        """
        if self._noisy is None:
            self._time, self._noisy = move.t, noised(self.path, self.source, draws(x, "start", 0), move.t)
        if move.t != self._time:
            raise PathError("paired codes need moves that go straight down")
        own = self.solver.step(self.partner(step.estimate.x0), self.path, self._noisy, move)
        goal = self._down(move, draws)
        self._time, self._noisy = move.s, goal
        return (goal - own.mean) / own.std

    def _down(self, move: Move, draws: Draws) -> Tensor:
        assert self._noisy is not None
        if move.s == 0:
            return self.source
        weight_x0, weight_eps, std = posterior(self.path, move.t, move.s)
        alpha, sigma = self.path.at(move.t)
        eps = (self._noisy - alpha * self.source) / sigma
        z = draws(self._noisy, "partner", move.index)
        return weight_x0 * self.source + weight_eps * eps + std * z
