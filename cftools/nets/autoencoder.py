"""The variational autoencoder behind latent diffusion: MONAI's AutoencoderKL, and what it may stand upon."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from monai.networks.nets import AutoencoderKL, PatchDiscriminator
from torch import Tensor, nn

from cftools.nets import wavelet


@dataclass(frozen=True)
class AutoencoderArchitecture:
    """Size and shape of the network; everything needed to rebuild it.

    Attributes:
        channels: width at each level; every level after the first halves the sides.
        latent_channels: of the latent.
        blocks: residual blocks a level.
        wavelet: enter and leave by one level of the Haar wavelet, which halves the sides without losing anything, so
            that no convolution runs at the image's own resolution.
        shortcut: add what the network says to a coarser image; see `Resampling`. It needs as many
            latent channels as voxels in a block of some side that divides the factor.
        dimensions: 2 or 3.
        groups: of the group norm.
    """

    channels: tuple[int, ...]
    latent_channels: int = 8
    blocks: int = 1
    wavelet: bool = False
    shortcut: bool = False
    dimensions: int = 3
    groups: int = 8

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(f"channels {list(self.channels)}: at least one width, each a multiple of {self.groups}")
        if self.latent_channels < 1 or self.blocks < 1:
            raise ValueError(f"latent_channels {self.latent_channels}, blocks {self.blocks}: at least 1 of each")
        if self.dimensions not in (2, 3):
            raise ValueError(f"dimensions {self.dimensions}: 2 or 3")
        ratio = self.factor // self.block
        if self.shortcut and (
            self.block**self.dimensions != self.latent_channels or self.factor % self.block or ratio % 2
        ):
            text = f"latent_channels {self.latent_channels} at factor {self.factor}"
            raise ValueError(f"{text}: a shortcut has b^{self.dimensions} of them, the factor an even multiple of b")

    @property
    def factor(self) -> int:
        """Image voxels to a latent's along each axis."""
        return 2 ** (len(self.channels) - 1 + int(self.wavelet))

    @property
    def block(self) -> int:
        """Side of the block of a coarser image that a shortcut keeps in one voxel of the latent."""
        return max(round(self.latent_channels ** (1 / self.dimensions)), 1)


class Resampling(nn.Module):
    """A linear code and its way back, which stay as they are: the image at a coarser resolution.

    With C = b^d channels and factor f, as many numbers are left as in the image resampled r = f / b times coarser. That
    is the code: smoothed by Lanczos's kernel of 3 lobes, every r-th voxel kept, and each block of b^d of them as its
    cosines (DCT-II), so that the channels differ: an average, and what varies in it. The way back is the transpose.
    What a network learns first, and slowly, is to copy; past a shortcut it learns what is left (Chen et al. 2025, Deep
    compression autoencoder, average channels there).

    Cosines of more axes are weaker, and weighed the more, so that the channels differ less in spread.
    """

    forth: Tensor
    back: Tensor

    def __init__(self, architecture: AutoencoderArchitecture) -> None:
        super().__init__()
        dimensions, self.factor = architecture.dimensions, architecture.factor
        along = _along_an_axis(self.factor // architecture.block, architecture.block)
        weight = _kernels(along, dimensions)
        axes = [sum(k > 0 for k in ks) for ks in block_orders(architecture.block, dimensions)]
        gains = torch.tensor([1.0 + n for n in axes]).view(-1, *[1] * (dimensions + 1))
        self.padding = (along.shape[1] - self.factor) // 2
        self.register_buffer("forth", weight * gains, persistent=False)
        self.register_buffer("back", weight / gains, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 1, *sides) -> (B, C, *sides / factor)."""
        convolve = functional.conv3d if x.ndim == 5 else functional.conv2d
        return convolve(x, self.forth.to(x.dtype), stride=self.factor, padding=self.padding)

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, *sides) -> (B, 1, *sides * factor)."""
        transposed = functional.conv_transpose3d if z.ndim == 5 else functional.conv_transpose2d
        return transposed(z, self.back.to(z.dtype), stride=self.factor, padding=self.padding)


def block_orders(block: int, dimensions: int = 3) -> list[tuple[int, ...]]:
    """The order along each axis of each channel's cosine, channels as a shortcut has them."""
    orders = itertools.product(range(block), repeat=dimensions)
    return sorted(orders, key=lambda ks: sum(k * k for k in ks))


def block_cosines(block: int, dimensions: int = 3) -> Tensor:
    """A block's orthonormal cosines as kernels, (block^d, 1, block, ...): a shortcut's channels, each weighed alike."""
    return _kernels(_along_an_axis(1, block), dimensions)


def _kernels(along: Tensor, dimensions: int) -> Tensor:
    """Products of the kernels along the axes, (block^d, 1, side, ...)."""
    kernels = []
    for ks in block_orders(len(along), dimensions):
        kernel = along[ks[0]]
        for k in ks[1:]:
            kernel = kernel[..., None] * along[k]
        kernels.append(kernel)
    return torch.stack(kernels)[:, None]


def _along_an_axis(ratio: int, block: int) -> Tensor:
    """The kernels along one axis, (block, side): the k-th cosine of `block` neighbours, `ratio` voxels apart each."""
    taps = torch.ones(1)
    if ratio > 1:
        distance = (torch.arange(2 * LOBES * ratio) + 0.5) / ratio - LOBES
        taps = torch.sinc(distance) * torch.sinc(distance / LOBES)
        taps = taps / taps.sum()
    places = torch.arange(block) + 0.5
    waves = torch.stack([(math.pi / block * k * places).cos() for k in range(block)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    side = len(taps) + ratio * (block - 1)
    shifted = torch.zeros(block, side)
    for index in range(block):
        shifted[index, index * ratio : index * ratio + len(taps)] = taps
    return ratio**0.5 * waves @ shifted


#: Lobes of Lanczos's kernel to either side.
LOBES = 3
#: Logarithm of a latent's variance before training, past a shortcut: as good as exact.
EXACT = -6.0


class Autoencoder(nn.Module):
    """x -> mean and std of a latent -> x; a `space.VaeNetwork`.

    Kingma and Welling 2014; without attention, so that patches and whole volumes are encoded alike (Pinaya et al.
    2022).
    """

    def __init__(self, architecture: AutoencoderArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        planes = 2**architecture.dimensions if architecture.wavelet else 1
        self.body = AutoencoderKL(
            spatial_dims=architecture.dimensions,
            in_channels=planes,
            out_channels=planes,
            num_res_blocks=architecture.blocks,
            channels=architecture.channels,
            attention_levels=[False] * len(architecture.channels),
            latent_channels=architecture.latent_channels,
            norm_num_groups=architecture.groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.shortcut = Resampling(architecture) if architecture.shortcut else None
        if self.shortcut is not None:
            body: Any = self.body
            for layer in (body.quant_conv_mu, body.quant_conv_log_sigma, body.decoder.blocks[-1]):
                nn.init.zeros_(layer.conv.weight)
                nn.init.zeros_(layer.conv.bias)
            nn.init.constant_(body.quant_conv_log_sigma.conv.bias, EXACT)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, (B, latent_channels, *sides / factor), of images (B, 1, *sides).

        Sides are multiples of the factor: `Space` pads.
        """
        mean, std = self.body.encode(wavelet.forward(x) if self.architecture.wavelet else x)
        return (mean if self.shortcut is None else mean + self.shortcut.encode(x)), std

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent, (B, 1, *sides)."""
        x: Tensor = self.body.decode(z)
        if self.architecture.wavelet:
            x = wavelet.inverse(x)
        return x if self.shortcut is None else x + self.shortcut.decode(z)


class Critic(nn.Module):
    """A patch discriminator (Isola et al. 2017), with group norm: a step holds few patches."""

    def __init__(self, dimensions: int = 3, channels: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.body = PatchDiscriminator(
            spatial_dims=dimensions,
            channels=channels,
            in_channels=1,
            num_layers_d=layers,
            norm=("GROUP", {"num_groups": 4}),
        )

    def forward(self, x: Tensor) -> Tensor:
        """How real each patch of (B, 1, *sides) looks: scores of the last layer."""
        scores: Tensor = self.body(x)[-1]
        return scores


class Adversaries(nn.Module):
    """What the autoencoder's objective trains: the network that is kept, and its critic."""

    def __init__(self, kept: Autoencoder, critic: Critic) -> None:
        super().__init__()
        self.kept, self.critic = kept, critic

    def judged(self, x: Tensor) -> Tensor:
        """The critic's scores, through which gradients reach x and not the critic."""
        still = {name: value.detach() for name, value in self.critic.named_parameters()}
        scores: Tensor = torch.func.functional_call(self.critic, still, (x,))
        return scores
