"""Data whose diffusion is known in closed form, to hold the engine against: elementwise mixtures of Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cftools.diffusion.denoiser import Denoise, Estimate
from cftools.diffusion.path import Path


@dataclass(frozen=True)
class Mixture:
    """Every element of x_0 is drawn from sum_k weights_k N(means_k, stds_k^2) on its own."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def _components(self, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights, means, variances of x_t's components, and the variances of x_0's."""
        weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds))
        return weights, alpha * means, (alpha * stds) ** 2 + sigma**2, stds**2

    def denoise(self, path: Path) -> Denoise:
        """The exact posterior means of x_0 and eps."""

        def denoise(x: Tensor, t: float) -> Estimate:
            alpha, sigma = path.at(t)
            weights, centres, variances, clean = self._components(alpha, sigma)
            away = x.double()[..., None] - centres
            shares = torch.softmax(weights.log() - variances.log() / 2 - away**2 / (2 * variances), dim=-1)
            means = torch.tensor(self.means, dtype=torch.float64)
            x0 = (shares * (means + alpha * clean / variances * away)).sum(-1)
            eps = (shares * (sigma / variances * away)).sum(-1)
            return Estimate(x0.to(x), eps.to(x))

        return denoise

    def cdf(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        weights, centres, variances, _ = self._components(alpha, sigma)
        return (weights * torch.special.ndtr((x[..., None] - centres) / variances.sqrt())).sum(-1)

    def quantile(self, share: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """Inverse of cdf, by bisection."""
        low, high = torch.full_like(share, -20.0), torch.full_like(share, 20.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle, alpha, sigma) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def transport(self, x: Tensor, path: Path, t: float, s: float) -> Tensor:
        """Where the probability-flow ODE takes x_t: in one dimension it keeps the share of what lies below."""
        return self.quantile(self.cdf(x, *path.at(t)), *path.at(s))

    @property
    def mean(self) -> float:
        return sum(w * m for w, m in zip(self.weights, self.means, strict=True))

    @property
    def std(self) -> float:
        square = sum(w * (m**2 + s**2) for w, m, s in zip(self.weights, self.means, self.stds, strict=True))
        return math.sqrt(square - self.mean**2)
