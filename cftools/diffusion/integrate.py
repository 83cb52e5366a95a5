"""The only loop: sampling, inverting, recording and repainting are choices of what is passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cftools.diffusion.constraint import Constraint, unconstrained
from cftools.diffusion.denoiser import Denoise
from cftools.diffusion.moves import Move
from cftools.diffusion.noise import Draws, Noise
from cftools.diffusion.path import Path, transition
from cftools.diffusion.solver import Solver
from cftools.errors import PathError

#: Told after every move: the move, and the x it led to.
Record = Callable[[Move, Tensor], None]


@torch.no_grad()
def integrate(
    solver: Solver,
    denoise: Denoise,
    path: Path,
    x: Tensor,
    moves: Sequence[Move],
    noise: Noise,
    draws: Draws,
    constraint: Constraint = unconstrained,
    state: Any = None,
    record: Record | None = None,
) -> tuple[Tensor, Any]:
    """Take x through the moves.

    At a solver's move x becomes mean + std z, and the constraint acts; at a renoising one it goes back up by
    q(x_s | x_t) with fresh noise, whatever the solver's noise is. The constraint acts once before the first move.

    Args:
        x: (B, C, *spatial), at the time of the first move.
        state: of a solver that goes on from an earlier run, as Bdia does to come back.
        record: called after every move, for progress and pictures.
    Returns:
        x at the end, (B, C, *spatial), and the solver's state there.
    Raises:
        PathError: there is no move, a move does not begin where the last one ended, or a part refuses one.
    """
    if not moves or any(before.s != move.t for before, move in pairwise(moves)):
        raise PathError("moves must be one or more, each from where the last one ended")
    x, changed = constraint(x, moves[0].t, 0, draws)
    state = None if changed else state
    for move in moves:
        if move.kind == "renoise":
            scale, std = transition(path, move.t, move.s)
            x, state = scale * x + std * draws(x, "move", move.index), None
        else:
            step = solver.step(denoise, path, x, move, state)
            # Solvers say 0.0 where they are deterministic; no noise is asked for then.
            random = isinstance(step.std, Tensor) or step.std > 0
            x = step.mean + step.std * noise(x, move, step, draws) if random else step.mean
            x, changed = constraint(x, move.s, move.index, draws)
            state = None if changed else step.state
        if record is not None:
            record(move, x)
    return x, state
