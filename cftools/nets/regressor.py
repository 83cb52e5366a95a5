"""A small regressor that reads a scalar, such as age, off a scan on the 2 mm grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cftools.nets.twin import unshuffle

#: Places of 8 mm on the 2 mm grid.
PLACES = 20 * 24 * 22


@dataclass(frozen=True)
class RegressorArchitecture:
    """Size of the network.

    Attributes:
        channels: widths of the layers that see one 2x2x2 block of voxels at a time.
        dropout: share of what is read that is withheld while training.
    """

    channels: tuple[int, ...] = (32, 8)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if not self.channels or any(width <= 0 for width in self.channels):
            raise ValueError(f"channels {list(self.channels)}: at least one width, each above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout:g}: a share below 1")


class Regressor(nn.Module):
    """What each 4 mm block looks like, its mean over 8 mm, and one linear layer over all places.

    The scan is registered, so where something is says as much as what it is, and how much fluid lies at a place says
    much of an age. Nearly linear on purpose: there are few scans to learn from.
    """

    def __init__(self, architecture: RegressorArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        layers: list[nn.Module] = []
        before = 8
        for width in architecture.channels:
            layers += [nn.Conv3d(before, width, 1), nn.SiLU()]
            before = width
        self.look = nn.Sequential(*layers, nn.AvgPool3d(2))
        self.withhold = nn.Dropout(architecture.dropout)
        self.read = nn.Linear(before * PLACES, 1)
        nn.init.zeros_(self.read.weight)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, 80, 96, 88) on the 2 mm grid -> value (B,), in [-1, 1] over the variable's range."""
        features = self.look(unshuffle(image)).flatten(1).float()
        with torch.autocast(image.device.type, enabled=False):
            return self.read(self.withhold(features))[:, 0]
