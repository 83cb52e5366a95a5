"""The denoiser of latent and voxel diffusion: MONAI's DiffusionModelUNet, told its condition as tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from cftools.diffusion.denoiser import Prediction
from cftools.diffusion.path import make_path
from cftools.nets.standard import Standard
from cftools.nets.templates import BLOCK, Templates


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
        templates: images one of which a latent is taken for, moved, before anything else (`nets.templates`); 0 for
            none. looks: width at each level of the network that says where. path, prediction: of the diffusion.
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
    templates: int = 0
    looks: tuple[int, ...] = ()
    path: str = ""
    prediction: Prediction = "v"

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "blocks", "heads", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: at least 1")
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

        if (self.templates > 0) != (len(self.looks) > 1) or self.templates < 0:
            raise ValueError(f"templates {self.templates}, looks {list(self.looks)}: both, two widths or more, or none")
        if any(width % self.groups or width % self.heads for width in self.looks):
            raise ValueError(f"looks {list(self.looks)}: multiples of groups {self.groups} and of heads {self.heads}")
        if self.templates == 1:
            raise ValueError("templates 1: 0 for none, or 2 or more: how they differ says how people do")
        if self.templates and not (self.centred and self.inputs == self.outputs == BLOCK**3 and self.dimensions == 3):
            raise ValueError("templates: need centred, three dimensions and latents of eight channels, alone")
        if self.templates and make_path(self.path).times is None:
            raise ValueError(f"templates: path {self.path} has no number of times")

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
        make = partial(_body, architecture)
        self.templates = (
            Templates(architecture.templates, architecture.sides, architecture.looks, architecture.path, make)
            if architecture.templates
            else None
        )
        beside = architecture.atlas + (architecture.outputs if architecture.templates else 0)
        sizes = architecture.inputs + beside, architecture.outputs, architecture.channels, architecture.attention
        self.body = _body(architecture, *sizes)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None = None, share: Tensor | None = None) -> Tensor:
        """What is predicted of x_t.

        Args:
            x: (B, inputs, *sides), sides multiples of the divisor.
            time: (B,), as the path tells it.
            context: (B, V) condition on [-1, 1], nan where unknown; None for a network that is told nothing.
            share: of each template, (B, count), where it is known, as `recognised` says.
        Returns:
            (B, outputs, *sides).
        """
        tokens = self.tokens(context) if self.tokens is not None else None
        summed = tokens.sum(1) if tokens is not None and self.architecture.timed else None
        seen, expected = [x], None
        if self.templates is not None and self.standard is not None:
            centre = self.standard.centre / self.standard.spread
            brought, _ = self.templates(x, centre, time, tokens, summed, share)
            expected = self.templates.expected(self.architecture.prediction, x.float(), brought, time)
            seen.append(brought.to(x.dtype))
        if self.atlas is not None:
            seen.append(self.atlas.expand(len(x), *self.atlas.shape[1:]).to(x.dtype))
        said: Tensor = self.body(torch.cat(seen, dim=1), timesteps=time, context=tokens, class_labels=summed)
        return said if expected is None else said + expected

    @torch.no_grad()
    def recognised(self, clean: Tensor) -> Tensor | None:
        """The templates that latents without noise, (B, inputs, *sides), are taken for: the share of each, (B, count).

        Whoever they are of is not told. None of a network without templates.
        """
        if self.templates is None or self.standard is None:
            return None
        unknown = clean.new_full((len(clean), self.architecture.variables), torch.nan)
        tokens = self.tokens(unknown) if self.tokens is not None else None
        summed = tokens.sum(1) if tokens is not None and self.architecture.timed else None
        centre = self.standard.centre / self.standard.spread
        _, share = self.templates(clean, centre, clean.new_zeros(len(clean)), tokens, summed)
        return share


def _body(
    architecture: UNetArchitecture,
    inputs: int,
    outputs: int,
    channels: tuple[int, ...],
    attention: tuple[bool, ...] | None = None,
) -> DiffusionModelUNet:
    """A network of those widths, told as the architecture says; by default its last level alone attends."""
    told = architecture.variables > 0
    width = 4 * architecture.channels[0]
    attention = attention or (*[False] * (len(channels) - 1), True)
    body = DiffusionModelUNet(
        spatial_dims=architecture.dimensions,
        in_channels=inputs,
        out_channels=outputs,
        num_res_blocks=architecture.blocks,
        channels=channels,
        attention_levels=attention,
        norm_num_groups=architecture.groups,
        num_head_channels=[architecture.heads if attends else 0 for attends in attention],
        with_conditioning=told,
        cross_attention_dim=width if told else None,
        num_class_embeds=1 if told and architecture.timed else None,
    )
    if told and architecture.timed:  # MONAI adds it to its embedding of the time; a class there, here all that is told
        body.class_embedding = nn.Linear(width, 4 * channels[0])  # type: ignore[assignment]
    return body
