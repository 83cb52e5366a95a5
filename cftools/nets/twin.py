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
        residual: predict a change of intensity beside the field.
        atlas: channels of what is learned of each place in MNI152 space, whatever the scan.
        curves: number of curves over the condition that the flow is made of.
    """

    variables: int
    changes: tuple[int, ...]
    channels: tuple[int, ...] = (16, 32, 64, 64)
    velocity_mm: int = 4
    residual: bool = True
    atlas: int = 8
    curves: int = 8

    def __post_init__(self) -> None:
        if self.velocity_mm not in (4, 8):
            raise ValueError(f"velocity_mm {self.velocity_mm}: 4 or 8")
        if len(self.channels) < 2 or any(width <= 0 or width % 4 for width in self.channels):
            raise ValueError(f"channels {list(self.channels)}: at least two widths, each a multiple of 4")
        if self.curves < 1 or self.atlas < 0:
            raise ValueError(f"curves {self.curves}, atlas {self.atlas}: at least one curve, and no atlas below 0")


class Flow(NamedTuple):
    """What the network says of a change.

    Attributes:
        velocity: (B, 3, X, Y, Z) millimetres.
        residual: (B, 2, X, Y, Z): what is added, in normalised intensity, and what the intensity is scaled by, less 1.
    """

    velocity: Tensor
    residual: Tensor


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

    velocity = sum_k (g_k(c') - g_k(c)) f_k(scan, c): the UNet looks at the scan and says what would move, the curves g
    say how much. So it is zero when nothing is asked, and changes add up exactly.
    """

    def __init__(self, architecture: TwinArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths, variables, curves = architecture.channels, architecture.variables, architecture.curves
        size = 4 * widths[0]
        self.embed = nn.Sequential(nn.Linear(2 * variables, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())
        self.straight = nn.Linear(variables, curves, bias=False)
        nn.init.ones_(self.straight.weight)
        self.bent = nn.Sequential(nn.Linear(2 * variables, 32), nn.SiLU(), nn.Linear(32, curves))
        # A registered brain ages alike at one place: an atlas learns that in few steps, the UNet the rest.
        self.atlas = nn.Parameter(0.1 * torch.randn(1, architecture.atlas, *ATLAS_SHAPE))
        # 8 sub-voxels of each 2x2x2 block, where the block lies in MNI152 space, and what is known of there.
        self.down = nn.ModuleList([Block(8 + 3 + architecture.atlas, widths[0], size)])
        for before, after in pairwise(widths):
            self.down.append(Block(before, after, size, stride=2))
        self.narrow, self.up = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for width, spacing in reversed([(w, 4 * 2**i) for i, w in enumerate(widths[:-1])]):
            if spacing >= architecture.velocity_mm:
                self.narrow.append(nn.Conv3d(below, width, 1))
                self.up.append(Block(2 * width, width, size))
                below = width
        outputs = 5 if architecture.residual else 3
        self.head = nn.Parameter(torch.zeros(curves, outputs, below + architecture.atlas))
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, image: Tensor, source: Tensor, target: Tensor) -> Flow:
        """The flow that turns a scan under one condition into the scan under another.

        Args:
            image: (B, 1, X, Y, Z) on the 2 mm grid, brain about 0..1, 0 outside.
            source, target: (B, V) condition in [-1, 1]; nan is the null token, "unknown".
        Returns:
            velocity (B, 3, ...) and residual (B, 2, ...) on the velocity grid.
        """
        return self.flow(self.look(image, source), source, target)

    def look(self, image: Tensor, source: Tensor) -> Tensor:
        """What the scan shows, whatever is asked of it: (B, C, ...) on the velocity grid."""
        embedding = self.embed(_tokens(source, ~source.isnan()))
        atlas = self.atlas.expand(image.shape[0], -1, -1, -1, -1)
        x = torch.cat([unshuffle(image), self._where(image), atlas], dim=1)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        skips.pop()
        for narrow, block in zip(self.narrow, self.up, strict=True):
            skip = skips.pop()
            x = F.interpolate(narrow(x), size=skip.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1), embedding)
        if not self.architecture.atlas:
            return x.float()
        return torch.cat([x.float(), field.resize(atlas.float(), tuple(x.shape[2:]))], dim=1)

    def flow(self, seen: Tensor, source: Tensor, target: Tensor) -> Flow:
        """The flow for a change of condition, from what `look` saw under the source."""
        with torch.autocast(seen.device.type, enabled=False):
            amounts = self._amounts(source, target)
            # Large units, so that weights that start at 0 need not grow far: 4 mm over half the range.
            mixed = torch.einsum("bk,kof->bof", amounts, self.head)
            out = torch.bmm(mixed, seen.flatten(2)).view(len(seen), -1, *seen.shape[2:])
            velocity = 4 * out[:, :3]
            residual = out[:, 3:] if self.architecture.residual else torch.zeros_like(out[:, :2])
        return Flow(velocity, residual)

    def _amounts(self, source: Tensor, target: Tensor) -> Tensor:
        """How far each curve goes between two conditions, (B, K); by no step where either is unknown."""
        known = ~(source.isnan() | target.isnan())
        source, target = source.nan_to_num() * known, target.nan_to_num() * known
        straight = self.straight(target) - self.straight(source)
        return straight + self.bent(_tokens(target, known)) - self.bent(_tokens(source, known))

    @staticmethod
    def _where(image: Tensor) -> Tensor:
        x, y, z = (n // 2 for n in image.shape[2:])
        points = field.identity((x, y, z), image.device) / 100
        return points[None].expand(image.shape[0], -1, -1, -1, -1).to(image.dtype)


def _tokens(values: Tensor, known: Tensor) -> Tensor:
    """Condition values and whether each is known, (B, 2 V)."""
    return torch.cat([values.nan_to_num(), known.to(values.dtype)], dim=1)


def unshuffle(image: Tensor) -> Tensor:
    """(B, 1, 2X, 2Y, 2Z) -> (B, 8, X, Y, Z): each 2x2x2 block as channels."""
    b, _, x, y, z = image.shape
    blocks = image.view(b, x // 2, 2, y // 2, 2, z // 2, 2)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, 8, x // 2, y // 2, z // 2)
