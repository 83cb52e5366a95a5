"""A small regressor that reads a scalar, such as age, off a scan on the 2 mm grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class RegressorArchitecture:
    """Attributes: channels, width of each level."""

    channels: tuple[int, ...] = (8, 16, 32, 64)


class Regressor(nn.Module):
    """Levels of two conv-norm-ReLU and a halving, average pooling, one linear layer (the CDM paper's age model)."""

    def __init__(self, architecture: RegressorArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        layers: list[nn.Module] = []
        before = 1
        for width in architecture.channels:
            layers += [nn.Conv3d(before, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
            layers += [nn.Conv3d(width, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
            before = width
        self.levels = nn.Sequential(*layers)
        self.read = nn.Linear(before, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, X, Y, Z) on the 2 mm grid -> value (B,), in [-1, 1] over the variable's range."""
        return self.read(self.levels(image).mean((2, 3, 4)).float())[:, 0]
