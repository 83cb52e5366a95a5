"""The twin flow's network: from a scan and a change of condition to a velocity field and an intensity residual."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cftools import field

#: The atlas has 4 mm voxels.
ATLAS_SHAPE = (40, 48, 44)


@dataclass(frozen=True)
class TwinArchitecture:
    """Size and shape of the network; everything needed to rebuild it.

    Attributes:
        variables: number of condition variables; each that is not in `changes` is context only.
        changes: indices of the variables that can be changed.
        channels: width at 4, 8, 16, ... mm.
        velocity_mm: voxel size of the velocity field, 4 or 8.
        residual: predict an intensity residual beside the field.
        atlas: channels of what is learned of each place in MNI152 space, whatever the scan.
    """

    variables: int
    changes: tuple[int, ...]
    channels: tuple[int, ...] = (12, 32, 64, 64)
    velocity_mm: int = 4
    residual: bool = True
    atlas: int = 8


class Flow(NamedTuple):
    """What the network says: a field and a residual per unit of change, already summed over what changes."""

    velocity: Tensor  # (B, 3, X, Y, Z) millimetres
    residual: Tensor  # (B, 1, X, Y, Z) normalised intensity


class Block(nn.Module):
    """Two 3x3x3 convolutions with group norm, the second scaled and shifted by the condition (FiLM, Perez 2018)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = nn.GroupNorm(4, outputs)
        self.second = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, outputs)
        self.film = nn.Linear(embedding, 2 * outputs)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.first(x)))
        scale, shift = self.film(embedding)[:, :, None, None, None].chunk(2, dim=1)
        return x + F.silu(self.norm2(self.second(x)) * (1 + scale) + shift)


class TwinNet(nn.Module):
    """A small UNet on a scan on the 2 mm grid, entered at 4 mm.

    velocity = sum_k (c'_k - c_k) f_k(scan, c, c'): zero when nothing is asked, and linear in a small change.
    """

    def __init__(self, architecture: TwinArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = architecture.channels
        size = 4 * widths[0]
        self.embed = nn.Sequential(
            nn.Linear(4 * architecture.variables, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU()
        )
        # A registered brain ages alike at one place: an atlas learns that in few steps, the UNet the rest.
        self.atlas = nn.Parameter(0.1 * torch.randn(1, architecture.atlas, *ATLAS_SHAPE))
        self.recall = nn.Linear(size, architecture.atlas)
        # 8 sub-voxels of each 2x2x2 block, where the block lies in MNI152 space, and what is known of there.
        self.down = nn.ModuleList([Block(8 + 3 + architecture.atlas, widths[0], size)])
        for before, after in pairwise(widths):
            self.down.append(Block(before, after, size, stride=2))
        self.up = nn.ModuleList()
        below = widths[-1]
        for width, spacing in reversed([(w, 4 * 2**i) for i, w in enumerate(widths[:-1])]):
            if spacing >= architecture.velocity_mm:
                self.up.append(Block(below + width, width, size))
                below = width
        heads = len(architecture.changes)
        self.head = nn.Conv3d(below + architecture.atlas, heads * (4 if architecture.residual else 3), 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor, source: Tensor, target: Tensor) -> Flow:
        """The flow that turns a scan under one condition into the scan under another.

        Args:
            image: (B, 1, X, Y, Z) on the 2 mm grid, brain about 0..1, 0 outside.
            source, target: (B, V) condition in [-1, 1]; nan is the null token, "unknown".
        Returns:
            velocity (B, 3, ...) and residual (B, 1, ...) on the velocity grid.
        """
        known = ~(source.isnan() | target.isnan())
        source, target = source.nan_to_num(), target.nan_to_num()
        change = target - source
        embedding = self.embed(torch.cat([source, target, change, known.to(image.dtype)], dim=1))
        atlas = self.atlas.expand(image.shape[0], -1, -1, -1, -1)
        x = torch.cat([unshuffle(image), self._where(image), atlas], dim=1)
        skips = []
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1), embedding)
        recalled = self.recall(embedding)[:, :, None, None, None] * atlas
        x = torch.cat([x, field.resize(recalled.to(x.dtype), tuple(x.shape[2:]))], dim=1)
        out = self.head(x).float()
        out = out.view(out.shape[0], len(self.architecture.changes), -1, *out.shape[2:])
        amount = change[:, list(self.architecture.changes), None, None, None, None]
        # A head's unit is large so that its zero-initialised weights need not grow far: 4 mm over half the range.
        velocity = (4 * amount * out[:, :, :3]).sum(1)
        residual = (amount * out[:, :, 3:]).sum(1) if self.architecture.residual else velocity[:, :1] * 0
        return Flow(velocity, residual)

    @staticmethod
    def _where(image: Tensor) -> Tensor:
        x, y, z = (n // 2 for n in image.shape[2:])
        points = field.identity((x, y, z), image.device) / 100
        return points[None].expand(image.shape[0], -1, -1, -1, -1).to(image.dtype)


def unshuffle(image: Tensor) -> Tensor:
    """(B, 1, 2X, 2Y, 2Z) -> (B, 8, X, Y, Z): each 2x2x2 block as channels."""
    b, _, x, y, z = image.shape
    blocks = image.view(b, x // 2, 2, y // 2, 2, z // 2, 2)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, 8, x // 2, y // 2, z // 2)
