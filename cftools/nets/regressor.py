"""A small regressor that reads a scalar, such as age, off a scan on the 2 mm grid."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cftools.nets.twin import unshuffle


@dataclass(frozen=True)
class RegressorArchitecture:
    """Attributes: channels, width at 4, 8, 16, ... mm."""

    channels: tuple[int, ...] = (16, 32, 32, 32)


class Regressor(nn.Module):
    """Levels of two conv-norm-SiLU at halving resolution, then one linear layer over places and channels.

    The scan is registered, so where something is says as much as what it is: pooling over the brain, as age models
    usually do, would throw that away.
    """

    def __init__(self, architecture: RegressorArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        layers: list[nn.Module] = []
        before = 8
        for level, width in enumerate(architecture.channels):
            stride = 2 if level else 1
            layers += [nn.Conv3d(before, width, 3, stride=stride, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
            layers += [nn.Conv3d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU()]
            before = width
        self.levels = nn.Sequential(*layers, nn.AdaptiveAvgPool3d((5, 6, 5)))
        self.read = nn.Linear(before * 5 * 6 * 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, X, Y, Z) on the 2 mm grid -> value (B,), in [-1, 1] over the variable's range."""
        features = self.levels(unshuffle(image)).flatten(1).float()
        # Thousands of features: unscaled, one step of the optimiser would swing the sum from end to end.
        return self.read(features / features.shape[1] ** 0.5)[:, 0]
