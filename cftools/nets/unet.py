"""The denoiser of latent and voxel diffusion: MONAI's DiffusionModelUNet, told its condition as tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from cftools.nets.standard import Standard


@dataclass(frozen=True)
class UNetArchitecture:
    """Size and shape of the network; everything needed to rebuild it.

    Attributes:
        outputs: channels of what it says: those of the latent, twice as many with a learned variance.
        inputs: channels it sees: those of the latent and of what stands beside it, such as masks.
        channels: width at each level; every level after the first halves the sides.
        attention: which levels attend, to themselves and to the condition.
        variables: condition variables it is told, each a token; 0 for a network that is told nothing.
        atlas: channels learned for each place of the latent, seen beside it; 0 for a network that has none and takes
            latents of any size. sides: of the latent, for the atlas and for `centred`.
        blocks: residual blocks a level; heads: channels of an attention head; groups: of the group norm.
        dimensions: 2 or 3.
        timed: what is told goes beside the time into every block too, not by attention alone.
        centred: noise is mixed with latents less what is usual at a place, each channel by what it does to the image.
    """

    inputs: int
    outputs: int
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    variables: int = 0
    atlas: int = 0
    sides: tuple[int, ...] = ()
    blocks: int = 1
    heads: int = 32
    groups: int = 8
    dimensions: int = 3
    timed: bool = False
    centred: bool = False

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.blocks) < 1:
            raise ValueError(f"inputs {self.inputs}, outputs {self.outputs}, blocks {self.blocks}: at least 1 of each")
        if not self.channels or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(f"channels {list(self.channels)}: at least one width, each a multiple of {self.groups}")
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention {list(self.attention)}: one for each of channels {list(self.channels)}")
        if any(width % self.heads for width, attends in zip(self.channels, self.attention, strict=True) if attends):
            raise ValueError(f"heads {self.heads}: must divide the width of each level that attends")
        if not self.attention[-1]:
            raise ValueError("attention: the last level attends always, as MONAI's middle block does: say true there")
        placed = self.atlas > 0 or self.centred
        if self.atlas < 0 or placed != (len(self.sides) == self.dimensions):
            raise ValueError(
                f"atlas {self.atlas}, centred {self.centred}, sides {list(self.sides)}: both need the latent's sides"
            )

    @property
    def divisor(self) -> int:
        """What the sides of a latent are a multiple of."""
        return int(2 ** (len(self.channels) - 1))


class Tokens(nn.Module):
    """Condition values as tokens, one a variable: (B, V) in [-1, 1], nan where unknown -> (B, V, width).

    A value is told by waves of it, so that neighbouring ages can be told apart (Tancik et al. 2020); what is unknown
    is a token that is learned, the null of classifier-free guidance (Ho and Salimans 2022).
    """

    waves: Tensor

    def __init__(self, variables: int, width: int, octaves: int = 4) -> None:
        super().__init__()
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(-1, octaves - 1), persistent=False)
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Linear(1 + 2 * octaves, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(variables)
        )
        self.null = nn.Parameter(0.02 * torch.randn(variables, width))

    def forward(self, values: Tensor) -> Tensor:
        known = ~values.isnan()
        filled = values.nan_to_num()[..., None]
        phases = filled * self.waves
        features = torch.cat([filled, phases.sin(), phases.cos()], dim=-1)
        told = torch.stack([one(features[:, index]) for index, one in enumerate(self.embed)], dim=1)
        return torch.where(known[..., None], told, self.null.to(told.dtype))


class UNet(nn.Module):
    """(x_t, time, condition) -> what the path's prediction says.

    Scans are registered, so that an atlas can say what is usual at a place, which convolutions alone cannot know.
    """

    def __init__(self, architecture: UNetArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        told = architecture.variables > 0
        width = 4 * architecture.channels[0]
        self.tokens = Tokens(architecture.variables, width) if told else None
        self.atlas = (
            nn.Parameter(torch.zeros(1, architecture.atlas, *architecture.sides)) if architecture.atlas else None
        )
        self.standard = Standard(architecture.outputs, architecture.sides) if architecture.centred else None
        timed = told and architecture.timed
        self.body = DiffusionModelUNet(
            spatial_dims=architecture.dimensions,
            in_channels=architecture.inputs + architecture.atlas,
            out_channels=architecture.outputs,
            num_res_blocks=architecture.blocks,
            channels=architecture.channels,
            attention_levels=architecture.attention,
            norm_num_groups=architecture.groups,
            num_head_channels=[architecture.heads if attends else 0 for attends in architecture.attention],
            with_conditioning=told,
            cross_attention_dim=width if told else None,
            num_class_embeds=1 if timed else None,
        )
        if timed:  # what MONAI adds to its embedding of the time; a class there, here all that is told
            self.body.class_embedding = nn.Linear(width, width)  # type: ignore[assignment]

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None) -> Tensor:
        """What is predicted of x_t.

        Args:
            x: (B, inputs, *sides), sides multiples of the divisor.
            time: (B,), as the path tells it.
            context: (B, V) condition on [-1, 1], nan where unknown; None for a network that is told nothing.
        Returns:
            (B, outputs, *sides).
        """
        tokens = self.tokens(context) if self.tokens is not None else None
        if self.atlas is not None:
            x = torch.cat([x, self.atlas.expand(len(x), *self.atlas.shape[1:]).to(x.dtype)], dim=1)
        summed = tokens.sum(1) if tokens is not None and self.architecture.timed else None
        said: Tensor = self.body(x, timesteps=time, context=tokens, class_labels=summed)
        return said
