"""What a run starts from: pure noise, or a scan that was noised, inverted or recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cftools.diffusion.denoiser import Denoise
from cftools.diffusion.integrate import Record, integrate
from cftools.diffusion.moves import Move
from cftools.diffusion.noise import NO_DRAWS, Draws, Recording, Tape, zero
from cftools.diffusion.path import Path
from cftools.diffusion.path import noised as mix
from cftools.diffusion.solver import Solver
from cftools.errors import PathError


def prior(like: Tensor, draws: Draws) -> Tensor:
    """x at t = 1, N(0, 1) in the shape of `like`, (B, C, *spatial); shared by all conditions of a sample."""
    return draws(like, "start", 0)


def noised(path: Path, clean: Tensor, t: float, draws: Draws) -> Tensor:
    """x_t of a scan, (B, C, *spatial), with the noise that `prior` has: Meng et al. 2022 (SDEdit), eq. 3."""
    return mix(path, clean, prior(clean, draws), t)


def inverted(
    solver: Solver, denoise: Denoise, path: Path, clean: Tensor, moves: Sequence[Move], record: Record | None = None
) -> tuple[Tensor, Any]:
    """The noise that a scan comes from under its own condition.

    Args:
        solver: deterministic; as it is the papers' inversion, in FixedPoint or as Bdia one that comes back.
        denoise: told the scan's own condition, at guidance 1.
        clean: (B, C, *spatial). moves: `moves.up` of the times that sampling will use.
    Returns:
        x at the top, (B, C, *spatial), and the solver's state, for `integrate` to go on with.
    Raises:
        PathError: the solver is random.
    """
    return integrate(solver, denoise, path, clean, moves, zero, NO_DRAWS, record=record)


def recorded(
    solver: Solver,
    denoise: Denoise,
    path: Path,
    clean: Tensor,
    moves: Sequence[Move],
    draws: Draws,
    record: Record | None = None,
) -> tuple[Tensor, Tape]:
    """The noised scan, and the codes that lead a random solver from it to the scan under its own condition.

    Huberman-Spiegelglas et al. 2024, algorithm 1. Played under the same condition the tape gives the scan, to
    rounding error; under another, the edit.

    Args:
        clean: (B, C, *spatial). moves: `moves.down` of the times that the tape will be played on.
    Raises:
        PathError: the solver is deterministic, or the moves go up in between.
    """
    top = noised(path, clean, moves[0].t, draws)
    recording = Recording(path, clean)
    integrate(solver, denoise, path, top, moves, recording, draws, record=record)
    if len(recording.codes) != len(moves):
        raise PathError("only a random solver can be recorded: a deterministic one is inverted")
    return top, recording.tape()
