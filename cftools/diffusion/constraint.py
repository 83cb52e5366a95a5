"""Constraints: what of x_t is known already, put in again after every move that a solver made.

A constraint also acts once on the start, with index 0. Masks are True where the image is free to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cftools.diffusion.noise import Draws
from cftools.diffusion.path import Path, noised


class Constraint(Protocol):
    """(x, changed): x, (B, C, *spatial), at time t with what is known put in, and whether that changed anything.

    What changed x makes the solver's memory of earlier moves wrong. index keys the draws: 0 at the start, then the
    index of the move that led here.
    """

    def __call__(self, x: Tensor, t: float, index: int, draws: Draws) -> tuple[Tensor, bool]: ...


def unconstrained(x: Tensor, t: float, index: int, draws: Draws) -> tuple[Tensor, bool]:
    """Nothing is known."""
    return x, False


@dataclass(frozen=True)
class Paste:
    """The known image as it is, at every time: for networks trained with noise in the mask alone (Palette).

    Attributes:
        known: (B, C, *spatial). free: boolean, (B, 1 or C, *spatial), True where the image may change.
    """

    known: Tensor
    free: Tensor

    def __call__(self, x: Tensor, t: float, index: int, draws: Draws) -> tuple[Tensor, bool]:
        """x inside the mask, the known image to the bit outside."""
        return torch.where(self.free, x, self.known), True


@dataclass(frozen=True)
class Repaint:
    """The known image noised to t, Lugmayr et al. 2022, algorithm 1, lines 3-8; known as it is at t = 0.

    The noise is drawn anew at every move and independently of the move's own.

    Attributes:
        known: (B, C, *spatial). free: boolean, (B, 1 or C, *spatial), True where the image may change.
    """

    path: Path
    known: Tensor
    free: Tensor

    def __call__(self, x: Tensor, t: float, index: int, draws: Draws) -> tuple[Tensor, bool]:
        """x inside the mask, the noised known image outside; at t = 0 the known image to the bit."""
        outside = self.known
        if t > 0:
            outside = noised(self.path, self.known, draws(x, "constraint", index), t)
        return torch.where(self.free, x, outside), True
