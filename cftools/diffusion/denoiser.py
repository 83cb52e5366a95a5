"""From what a network says of a noisy image to an estimate of the clean image and of the noise, both.

Both, because either can be had from the other only where something is not 0: x_0 from eps explodes where alpha -> 0,
eps from x_0 where sigma -> 0. Guidance and windows are Denoisers that wrap a Denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from cftools.diffusion.path import Path
from cftools.errors import PathError

#: What a network is trained to say: the noise, the clean image, or one of their two mixtures.
Prediction = Literal["eps", "x0", "v", "flow"]


@dataclass(frozen=True)
class Estimate:
    """What is believed of x_t; always x_t = alpha_t x0 + sigma_t eps.

    Attributes:
        x0: clean image, (B, C, *spatial). eps: noise in x_t, (B, C, *spatial).
        log_var: where the log-variance of an ancestral step lies, 0 at that of q(x_s | x_t, x_0), 1 at that of
            q(x_t | x_s): v of Nichol and Dhariwal 2021, eq. 15, (B, C, *spatial). A place and no variance, so that
            it holds for a step of any length. None where the network was not trained to tell.
    """

    x0: Tensor
    eps: Tensor
    log_var: Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What the network is told beside x_t and t.

    Attributes:
        channels: images it sees beside x_t, (B, K, *spatial): masks, a source scan.
        context: what it attends to, (B, L, D): numbers, text.
        null: the learned context of "not told", (B, L, D); guidance needs it.
    """

    channels: Tensor | None = None
    context: Tensor | None = None
    null: Tensor | None = None


#: A denoiser that was given its inputs: (x_t, t) -> Estimate. All that a solver sees of a network.
Denoise = Callable[[Tensor, float], Estimate]


class Denoiser(Protocol):
    """Estimates what is clean and what is noise in x_t, (B, C, *spatial), at one time t for the whole batch."""

    def __call__(self, x: Tensor, t: float, inputs: Inputs) -> Estimate: ...


class Network(Protocol):
    """(x_t and the channels, (B, C + K, *spatial); network time, (B,); context) -> prediction (and log-variance)."""

    def __call__(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class InBfloat16:
    """A network whose convolutions and products are computed in bfloat16."""

    network: Network

    def __call__(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """What the network says, in the type of x."""
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x, time, context).to(x.dtype)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16: emulated, it is slower than float32."""
    if device.type == "cpu":
        return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def bind(denoiser: Denoiser, inputs: Inputs) -> Denoise:
    """The denoiser with its inputs, as solvers take it."""
    return partial(denoiser, inputs=inputs)


def convert(prediction: Prediction, output: Tensor, x: Tensor, alpha: float, sigma: float) -> Estimate:
    """The estimate that a network's output means.

    eps: x0 = (x - sigma eps) / alpha. x0: eps = (x - alpha x0) / sigma. v = alpha eps - sigma x0 (Salimans and Ho
    2022, appendix D) and flow = eps - x0 (Liu et al. 2023, eq. 1) are solved together with x = alpha x0 + sigma eps,
    which never divides by 0.

    Args:
        output, x: (B, C, *spatial).
    Raises:
        PathError: eps is predicted where alpha is 0, or x0 where sigma is 0.
    """
    if prediction == "eps" and alpha == 0:
        raise PathError("a network that predicts noise says nothing where no signal is left (alpha 0)")
    if prediction == "x0" and sigma == 0:
        raise PathError("a network that predicts the clean image says nothing where no noise is (sigma 0)")
    return solved(prediction, output, x, alpha, sigma)


def solved(prediction: Prediction, output: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Estimate:
    """As `convert`, without looking whether anything is divided by 0; alpha and sigma may be of each, (B, 1, ...)."""
    if prediction == "eps":
        return Estimate((x - sigma * output) / alpha, output)
    if prediction == "x0":
        return Estimate(output, (x - alpha * output) / sigma)
    if prediction == "v":
        square = alpha**2 + sigma**2
        return Estimate((alpha * x - sigma * output) / square, (sigma * x + alpha * output) / square)
    if prediction == "flow":
        total = alpha + sigma
        return Estimate((x - sigma * output) / total, (x + alpha * output) / total)
    raise PathError(f"{prediction!r} is no prediction: there are eps, x0, v and flow")


def target(prediction: Prediction, clean: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """What a network of that prediction should say, (B, C, *spatial): the inverse of `convert`, for training.

    alpha, sigma: of all, or of each, (B, 1, ...).
    """
    targets = {"eps": eps, "x0": clean, "v": alpha * eps - sigma * clean, "flow": eps - clean}
    if prediction not in targets:
        raise PathError(f"{prediction!r} is no prediction: there are {', '.join(targets)}")
    return targets[prediction]


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network as a Denoiser.

    Attributes:
        learned_variance: the output has 2 C channels, the prediction and then the log-variance on [-1, 1].
    """

    network: Network
    path: Path
    prediction: Prediction
    learned_variance: bool = False

    def __call__(self, x: Tensor, t: float, inputs: Inputs) -> Estimate:
        """Estimate for x, (B, C, *spatial), at t in [0, 1].

        Below the least time it was trained at the network is told that one, and its noise is believed: x_0 is then
        what is left of x, so at t = 0 it is x itself.

        Raises:
            PathError: as for `convert`.
        """
        seen = max(t, self.path.first)
        time = torch.full((len(x),), self.path.network_time(seen), dtype=x.dtype, device=x.device)
        shown = x if inputs.channels is None else torch.cat([x, inputs.channels], dim=1)
        output, log_var = self.network(shown, time, inputs.context), None
        if self.learned_variance:
            output, log_var = output.chunk(2, dim=1)
            log_var = (log_var + 1) / 2
        estimate = replace(convert(self.prediction, output, x, *self.path.at(seen)), log_var=log_var)
        if t == seen:
            return estimate
        alpha, sigma = self.path.at(t)
        return replace(estimate, x0=(x - sigma * estimate.eps) / alpha)


@dataclass(frozen=True)
class Clipped:
    """A Denoiser whose x_0 keeps to the range of training images; to be the outermost, after guidance.

    eps is derived anew from the clipped x_0 (Nichol and Dhariwal 2021's code; `use_clipped_model_output` elsewhere),
    so that the estimate still adds up to x_t.
    """

    denoiser: Denoiser
    path: Path
    low: float = -1.0
    high: float = 1.0

    def __call__(self, x: Tensor, t: float, inputs: Inputs) -> Estimate:
        """Estimate for x, (B, C, *spatial); at t = 0, where x_0 is x, as the wrapped one has it."""
        estimate = self.denoiser(x, t, inputs)
        alpha, sigma = self.path.at(t)
        if sigma == 0:
            return estimate
        x0 = estimate.x0.clamp(self.low, self.high)
        return replace(estimate, x0=x0, eps=(x - alpha * x0) / sigma)
