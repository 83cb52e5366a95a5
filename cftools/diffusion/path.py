"""Noise paths: x_t = alpha_t x_0 + sigma_t eps, from the clean image at t = 0 to noise at t = 1.

Sampling asks for one time and takes plain numbers, in double precision whatever the images are in. Respacing needs
no tables of its own: every formula below takes both ends of a move, and the variances of a skipped-through chain
(Nichol and Dhariwal 2021, section 4) follow from alpha and sigma there.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from cftools.errors import PathError


class Path(Protocol):
    """What a diffusion was trained on.

    Attributes:
        times: how many training times there are, at n / times for n = 1, 2, ...; None where training is continuous.
        first: the least time that the network was trained at; at t = 0 it is told this one.
    """

    @property
    def times(self) -> int | None: ...

    @property
    def first(self) -> float: ...

    def at(self, t: float) -> tuple[float, float]:
        """(alpha_t, sigma_t) at a time in [0, 1]; exactly (1, 0) at t = 0."""

    def network_time(self, t: float) -> float:
        """What the network is told for t, in the units of its training."""


@dataclass(frozen=True)
class VariancePreserving:
    """Discrete diffusion: alpha^2 = prod_n (1 - beta_n), sigma^2 = 1 - alpha^2, Ho et al. 2020, eq. 4.

    Time n of `times` is t = n / times and the network is told n - 1. Between two times the logarithm of alpha is
    linear, as under a constant beta; moves between training times never see that.

    Attributes:
        schedule: "vp-linear", beta from start to end (Ho et al. 2020); "scaled-linear", its root from root to root
            (Rombach et al. 2022); "cosine", which takes no start and end (Nichol and Dhariwal 2021, eq. 17).
    Raises:
        PathError: there is no such schedule, no time, or betas do not keep to 0 < start <= end < 1.
    """

    schedule: Literal["vp-linear", "scaled-linear", "cosine"] = "vp-linear"
    times: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.schedule not in ("vp-linear", "scaled-linear", "cosine"):
            raise PathError(f"{self.schedule!r} is no noise path: there are {', '.join(PATHS)}")
        if self.times < 1:
            raise PathError("times must be 1 or more")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise PathError("betas must keep to 0 < beta_start <= beta_end < 1")

    @property
    def first(self) -> float:
        return 1 / self.times

    @cached_property
    def betas(self) -> np.ndarray:
        """beta_n of the steps n = 1 ... times, (times,), float64."""
        if self.schedule == "cosine":
            # Nichol and Dhariwal 2021, eq. 17 with its offset s = 0.008; 0.999 keeps alpha above 0 at the end.
            bar = np.cos((np.arange(self.times + 1) / self.times + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        power = 2.0 if self.schedule == "scaled-linear" else 1.0
        return np.linspace(self.beta_start ** (1 / power), self.beta_end ** (1 / power), self.times) ** power

    @cached_property
    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        log_alpha = np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas)) / 2])
        return np.arange(self.times + 1) / self.times, log_alpha

    def at(self, t: float) -> tuple[float, float]:
        _check(t)
        log_alpha = float(np.interp(t, *self._knots))
        return math.exp(log_alpha), math.sqrt(-math.expm1(2 * log_alpha))

    def network_time(self, t: float) -> float:
        # n / times * times is not always n, and some networks look a whole number up.
        return max(round(t * self.times - 1, 6), 0.0)


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight lines: alpha = 1 - t, sigma = t, trained at every t (Liu et al. 2023, eq. 1); told clock * t."""

    clock: float = 1000.0

    @property
    def times(self) -> None:
        return None

    @property
    def first(self) -> float:
        return 0.0

    def at(self, t: float) -> tuple[float, float]:
        _check(t)
        return 1.0 - t, t

    def network_time(self, t: float) -> float:
        return self.clock * t


#: The paths by the name that weights know them by.
PATHS = ("vp-linear", "scaled-linear", "cosine", "rectified-flow")


def make_path(name: str, **settings: float) -> Path:
    """A path by name, with the settings that its weights were trained with.

    Raises:
        PathError: there is no such path, or it has no such setting.
    """
    kind = RectifiedFlow if name == "rectified-flow" else VariancePreserving
    known = {key for key in kind.__dataclass_fields__ if key != "schedule"}
    if name not in PATHS or not settings.keys() <= known:
        unknown = ", ".join(sorted(settings.keys() - known))
        raise PathError(f"path {name} has no {unknown}" if name in PATHS else f"{name!r} is no noise path")
    if name == "rectified-flow":
        return RectifiedFlow(**settings)
    whole: dict[str, int] = {}
    if "times" in settings:
        whole = {"times": int(settings.pop("times"))}  # among floats in a record
    return VariancePreserving(name, **whole, **settings)  # type: ignore[arg-type]  # checked: it is one of PATHS


def describe(path: Path) -> tuple[str, dict[str, float]]:
    """The name and the settings that `make_path` makes it of again."""
    settings = asdict(path)  # type: ignore[call-overload]  # every path is a dataclass
    name = settings.pop("schedule", "rectified-flow")
    return name, {key: float(value) for key, value in settings.items()}


def log_snr(path: Path, t: float) -> float:
    """log(alpha_t^2 / sigma_t^2): inf at the clean image, -inf where no signal is left."""
    alpha, sigma = path.at(t)
    if sigma == 0:
        return math.inf
    return 2 * math.log(alpha / sigma) if alpha > 0 else -math.inf


def noised(path: Path, clean: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t eps.

    Args:
        clean, eps: (B, C, *spatial).
        t: one time for all, or (B,), one for each.
    Raises:
        PathError: a time is outside [0, 1].
    """
    if not isinstance(t, Tensor):
        alpha, sigma = path.at(t)
        return alpha * clean + sigma * eps
    pairs = torch.tensor([path.at(time) for time in t.tolist()], dtype=clean.dtype, device=clean.device)
    alphas, sigmas = pairs.view(-1, 2, *[1] * (clean.ndim - 1)).unbind(1)
    return alphas * clean + sigmas * eps


def transition(path: Path, t: float, s: float) -> tuple[float, float]:
    """(scale, std) of q(x_s | x_t) for t <= s, the way up: x_s = scale x_t + std z.

    scale = alpha_s / alpha_t, std^2 = sigma_s^2 - scale^2 sigma_t^2; from one training time to the next that is
    sqrt(1 - beta) and beta, Ho et al. 2020, eq. 2.

    Raises:
        PathError: s < t, or no signal is left at t.
    """
    alpha_t, sigma_t = path.at(t)
    alpha_s, sigma_s = path.at(s)
    if s < t:
        raise PathError(f"noise is added from {t:g} upwards, not to {s:g}")
    if alpha_t == 0:
        raise PathError(f"no signal is left at {t:g} to go up from")
    scale = alpha_s / alpha_t
    return scale, math.sqrt(max(sigma_s**2 - (scale * sigma_t) ** 2, 0.0))


def posterior(path: Path, t: float, s: float) -> tuple[float, float, float]:
    """(weight of x_0, weight of eps, std) of q(x_s | x_t, x_0) for s < t, the way down.

    Ho et al. 2020, eq. 6 and 7, with x_t = alpha_t x_0 + sigma_t eps put in so that nothing is divided by alpha_t:
    mean = alpha_s x_0 + (scale sigma_s^2 / sigma_t) eps, std = sigma_s std_(t|s) / sigma_t; scale and std_(t|s) are
    those of `transition` from s to t.

    Raises:
        PathError: s >= t.
    """
    if s >= t:
        raise PathError(f"the posterior goes down from {t:g}, not to {s:g}")
    alpha_s, sigma_s = path.at(s)
    _, sigma_t = path.at(t)
    scale, std = transition(path, s, t)
    return alpha_s, scale * sigma_s**2 / sigma_t, sigma_s * std / sigma_t


def _check(t: float) -> None:
    if not 0 <= t <= 1:
        raise PathError(f"time {t:g} is outside [0, 1]")
