"""The variational autoencoder behind latent diffusion: MONAI's AutoencoderKL, and what it may stand upon."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
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
        shortcut: start as the cosine transform of blocks, and learn what is better than that; see `Cosines`.
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
        if self.shortcut and self.latent_channels > self.factor**self.dimensions:
            block = self.factor**self.dimensions
            raise ValueError(f"latent_channels {self.latent_channels}: a shortcut has at most the block's {block}")

    @property
    def factor(self) -> int:
        """Image voxels to a latent's along each axis."""
        return 2 ** (len(self.channels) - 1 + int(self.wavelet))


class Cosines(nn.Module):
    """A linear code of blocks and back, trained with the rest from where it starts: the lowest cosines (DCT-II).

    What a network learns first, and slowly, is to copy; past a shortcut it learns what is left (Chen et al. 2025,
    Deep compression autoencoder, who average channels there). Cosines of more axes are weaker, and weighed the more, so
    that the latent's channels differ less in spread.
    """

    def __init__(self, architecture: AutoencoderArchitecture) -> None:
        super().__init__()
        side, dimensions, count = architecture.factor, architecture.dimensions, architecture.latent_channels
        places = torch.arange(side) + 0.5
        waves = torch.stack([(math.pi / side * k * places).cos() for k in range(side)])
        waves = waves / waves.norm(dim=1, keepdim=True)
        lowest = sorted(itertools.product(range(side), repeat=dimensions), key=lambda ks: sum(k * k for k in ks))
        blocks = []
        for ks in lowest[:count]:
            block = waves[ks[0]]
            for k in ks[1:]:
                block = block[..., None] * waves[k]
            blocks.append(block)
        basis = torch.stack(blocks)[:, None]
        gains = torch.tensor([1.0 + sum(k > 0 for k in ks) for ks in lowest[:count]]).view(-1, *[1] * (dimensions + 1))
        make, back = (nn.Conv3d, nn.ConvTranspose3d) if dimensions == 3 else (nn.Conv2d, nn.ConvTranspose2d)
        self.into = make(1, count, side, stride=side, bias=False)
        self.back = back(count, 1, side, stride=side, bias=False)
        with torch.no_grad():
            self.into.weight.copy_(basis * gains)
            self.back.weight.copy_(basis / gains)


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
        self.shortcut = Cosines(architecture) if architecture.shortcut else None
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
        return (mean if self.shortcut is None else mean + self.shortcut.into(x)), std

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent, (B, 1, *sides)."""
        x: Tensor = self.body.decode(z)
        if self.architecture.wavelet:
            x = wavelet.inverse(x)
        return x if self.shortcut is None else x + self.shortcut.back(z)


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
