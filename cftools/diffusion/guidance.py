"""Classifier-free guidance: go further in the direction that the condition pulls."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cftools.diffusion.denoiser import Denoiser, Estimate, Inputs
from cftools.errors import PathError


@dataclass(frozen=True)
class Guided:
    """null + scale (conditional - null), Ho and Salimans 2022, eq. 6, whose w is scale - 1.

    x0 and eps are mixed alike, so the estimate still adds up to x_t. The log-variance is the conditional's.

    Attributes:
        scale: 1 is the conditional itself, in one evaluation; 0 the null alone, in one; all others take two.
    """

    denoiser: Denoiser
    scale: float

    def __call__(self, x: Tensor, t: float, inputs: Inputs) -> Estimate:
        """Estimate for x, (B, C, *spatial), at t.

        Raises:
            PathError: scale is not 1 and the inputs have no null.
        """
        if self.scale == 1:
            return self.denoiser(x, t, inputs)
        if inputs.null is None:
            raise PathError(f"guidance {self.scale:g} needs weights that were trained with a null condition")
        null = self.denoiser(x, t, replace(inputs, context=inputs.null))
        if self.scale == 0:
            return null
        told = self.denoiser(x, t, inputs)
        return replace(
            told,
            x0=null.x0 + self.scale * (told.x0 - null.x0),
            eps=null.eps + self.scale * (told.eps - null.eps),
        )
