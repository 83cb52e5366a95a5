"""The variational autoencoder behind latent diffusion: MONAI's AutoencoderKL, entered as it is or by Haar bands."""

from __future__ import annotations

from dataclasses import dataclass

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
        dimensions: 2 or 3.
        groups: of the group norm.
    """

    channels: tuple[int, ...]
    latent_channels: int = 8
    blocks: int = 1
    wavelet: bool = False
    dimensions: int = 3
    groups: int = 8

    def __post_init__(self) -> None:
        if not self.channels or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(f"channels {list(self.channels)}: at least one width, each a multiple of {self.groups}")
        if self.latent_channels < 1 or self.blocks < 1:
            raise ValueError(f"latent_channels {self.latent_channels}, blocks {self.blocks}: at least 1 of each")
        if self.dimensions not in (2, 3):
            raise ValueError(f"dimensions {self.dimensions}: 2 or 3")

    @property
    def factor(self) -> int:
        """Image voxels to a latent's along each axis."""
        return 2 ** (len(self.channels) - 1 + int(self.wavelet))


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

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, (B, latent_channels, *sides / factor), of images (B, 1, *sides).

        Sides are multiples of the factor: `Space` pads.
        """
        mean, std = self.body.encode(wavelet.forward(x) if self.architecture.wavelet else x)
        return mean, std

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent, (B, 1, *sides)."""
        x: Tensor = self.body.decode(z)
        return wavelet.inverse(x) if self.architecture.wavelet else x


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
