"""What is expected of a latent under a condition, place by place, before any of it is seen: fitted, not trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cftools.diffusion.denoiser import Expected

#: Legendre's polynomials of each variable, of degree 1 up to this: a curve over age at every place.
DEGREE = 3
#: Least spread, in parts of the spread over all places: where those who were fitted do not differ others still may, and
#: one brain that reaches beyond theirs would otherwise outweigh all else.
LEAST_SPREAD = 0.25
#: Ridge of the fit, in parts of the number of latents: powers of a variable with two values say nothing new.
RIDGE = 1e-3


class Expectation(nn.Module):
    """Least squares over the condition at each place of registered scans: a mean that depends on it, and a spread.

    What is unknown of a condition is expected as it is on average, and spreads the more.

    Args:
        variables: condition variables; shape: (C, *sides) of a latent.
    """

    centres: Tensor
    variances: Tensor
    mean: Tensor
    slopes: Tensor
    spread: Tensor

    def __init__(self, variables: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        count = variables * DEGREE
        self.register_buffer("centres", torch.zeros(count))
        self.register_buffer("variances", torch.zeros(count))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("slopes", torch.zeros(count, *shape))
        self.register_buffer("spread", torch.ones(shape))

    @torch.no_grad()
    def fit(self, mean: Tensor, std: Tensor, context: Tensor) -> None:
        """Learn from latents.

        Args:
            mean, std: (N, C, *sides). context: (N, V) on [-1, 1], known.
        """
        powers = _legendre(context).double()
        self.centres.copy_(powers.mean(0))
        powers = powers - powers.mean(0)
        self.variances.copy_(powers.square().mean(0))
        centre = mean.mean(0)
        flat = (mean - centre).flatten(1).double()
        gram = powers.T @ powers + RIDGE * len(powers) * torch.eye(powers.shape[1], dtype=torch.float64)
        slopes = torch.linalg.solve(gram, powers.T @ flat)
        left = (flat - powers @ slopes).square().mean(0).float().view_as(centre) + std.square().mean(0)
        self.mean.copy_(centre)
        self.slopes.copy_(slopes.float().view_as(self.slopes))
        self.spread.copy_(left.sqrt().clamp_min(LEAST_SPREAD * float(mean.std())))

    def forward(self, context: Tensor | None) -> Expected:
        """Mean and spread, (B, C, *sides), under a context, (B, V) on [-1, 1], nan where unknown; B is 1 for None."""
        if context is None or not len(self.slopes):
            return Expected(self.mean[None], self.spread[None])
        powers = _legendre(context) - self.centres
        unknown = powers.isnan()
        # In full precision also under autocast: it is an image, not a feature.
        with torch.autocast(self.mean.device.type, enabled=False):
            mean = self.mean + torch.einsum("bk,k...->b...", powers.nan_to_num(), self.slopes.float())
            more = torch.einsum("bk,k...->b...", unknown * self.variances.float(), self.slopes.float().square())
            return Expected(mean, (self.spread.float().square() + more).sqrt())


def _legendre(context: Tensor) -> Tensor:
    """(B, V) -> (B, V * DEGREE), the degrees of each variable together; orthogonal where a variable is even."""
    polynomials = [torch.ones_like(context), context]
    for degree in range(1, DEGREE):
        polynomials.append(((2 * degree + 1) * context * polynomials[-1] - degree * polynomials[-2]) / (degree + 1))
    return torch.stack(polynomials[1:], dim=-1).flatten(1)
