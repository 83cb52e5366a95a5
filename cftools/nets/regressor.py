"""A small regressor that reads a scalar, such as age, off a scan on the 2 mm grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cftools.nets.twin import unshuffle


@dataclass(frozen=True)
class RegressorArchitecture:
    """Size of the network.

    Attributes:
        channels: width at 8, 16, 32, ... mm, multiples of 4.
        places: channels that are read at every place.
        dropout: share of what is read that is withheld while training.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    places: int = 8
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if not self.channels or any(width <= 0 or width % 4 for width in self.channels):
            raise ValueError(f"channels {list(self.channels)}: at least one width, each a multiple of 4")
        if self.places < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"places {self.places}, dropout {self.dropout:g}: at least one place, a share below 1")


class Regressor(nn.Module):
    """Levels of two conv-norm-SiLU at halving resolution, then one linear layer over places and channels.

    Each 4x4x4 block of voxels enters as 64 channels: nothing is lost, and the first level costs an eighth. The scan is
    registered, so where something is says as much as what it is: pooling over the brain would throw that away.
    """

    def __init__(self, architecture: RegressorArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        layers: list[nn.Module] = []
        before = 64
        for level, width in enumerate(architecture.channels):
            stride = 2 if level else 1
            layers += [nn.Conv3d(before, width, 3, stride=stride, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
            layers += [nn.Conv3d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
            before = width
        layers += [nn.Conv3d(before, architecture.places, 1), nn.AdaptiveAvgPool3d((5, 6, 5))]
        self.levels = nn.Sequential(*layers).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.withhold = nn.Dropout(architecture.dropout)
        self.read = nn.Linear(architecture.places * 5 * 6 * 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, X, Y, Z) on the 2 mm grid -> value (B,), in [-1, 1] over the variable's range."""
        blocks = unshuffle(image)
        b, c, *shape = blocks.shape
        blocks = unshuffle(blocks.reshape(b * c, 1, *shape)).reshape(b, 8 * c, *(n // 2 for n in shape))
        features = self.levels(blocks.contiguous(memory_format=torch.channels_last_3d)).flatten(1).float()
        with torch.autocast(image.device.type, enabled=False):
            return self.read(self.withhold(features))[:, 0]
