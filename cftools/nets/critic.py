"""Critics: networks that judge images or codes, for what is trained against them and never kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cftools.nets import wavelet
from cftools.nets.unet import Tokens


def unmoved(module: nn.Module, *inputs: Tensor) -> Any:
    """What a module says, where gradients reach the inputs and not the module."""
    still = {name: value.detach() for name, value in module.named_parameters()}
    return torch.func.functional_call(module, still, inputs)


class ImageCritic(nn.Module):
    """How real an image looks under a condition: convolutions over its Haar bands, and a projection.

    psi(h) + <e(c), h>, Miyato and Koyama 2018, eq. 3, with h the last features' mean over space. It has no norm across
    a batch or an image, which a penalty on the gradient of each image forbids (Gulrajani et al. 2017, section 4).

    Args:
        channels: width at each level; the first sees the bands, and every level after it halves the sides.
        variables: of the condition.
        spectral: divide each weight by its largest singular value (Miyato et al. 2018).
        wavelets: levels of the Haar wavelet whose bands it sees.
    """

    def __init__(self, channels: tuple[int, ...], variables: int, spectral: bool = False, wavelets: int = 1) -> None:
        super().__init__()
        bounded: Callable[[Any], Any] = spectral_norm if spectral else nn.Identity()
        self.wavelets = wavelets
        widths = (8**wavelets, *channels)
        self.layers = nn.ModuleList(
            bounded(nn.Conv3d(before, after, 3, padding=1) if level == 0 else nn.Conv3d(before, after, 4, 2, 1))
            for level, (before, after) in enumerate(zip(widths, channels, strict=False))
        )
        self.told = Tokens(variables, channels[-1])
        self.score = bounded(nn.Linear(channels[-1], 1))

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) of images (B, 1, X, Y, Z) under conditions (B, V), and the features that they come from."""
        x = wavelet.forward(x, self.wavelets)
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.2)
        x = x.float()
        seen = x.mean((2, 3, 4))
        with torch.autocast(x.device.type, enabled=False):  # scores that differ little would be the same in bfloat16
            return self.score(seen)[:, 0] + (self.told(context).sum(1) * seen).mean(1), x


class CodeCritic(nn.Module):
    """Whether a code is drawn from the prior, whatever the condition: three linear layers (Kwon et al. 2019).

    It is told the condition, so that codes must look like the prior under each condition alone: a code that gave the
    age away would be told from one that cannot.
    """

    def __init__(self, code: int, variables: int, width: int = 256) -> None:
        super().__init__()
        self.told = Tokens(variables, width)
        self.enter = nn.Linear(code, width)
        self.body = nn.Sequential(nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        """Scores (B,) of codes (B, C) under conditions (B, V)."""
        scores: Tensor = self.body(self.enter(z) + self.told(context).sum(1))[:, 0]
        return scores


class Rivals(nn.Module):
    """What is trained against each other: a network that is kept, and critics that are not."""

    def __init__(self, kept: nn.Module, critic: nn.Module, codes: nn.Module | None = None) -> None:
        super().__init__()
        self.kept: Any = kept
        self.critic: Any = critic
        self.codes: Any = codes
