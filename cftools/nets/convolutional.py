"""A convolutional network that reads numbers off a scan: the CDM paper's regressor, and features of a scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True)
class ConvolutionalArchitecture:
    """Size and shape of the network; everything needed to rebuild it.

    Attributes:
        outputs: numbers read off a scan: 1 of a number, one for each value of a category.
        channels: width at each level; after every level the sides are halved.
        pooled: voxels along a side of the cubes whose averages it sees; 1 for the image as it is.
    """

    outputs: int = 1
    channels: tuple[int, ...] = (12, 24, 48, 96)
    pooled: int = 1

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels {list(self.channels)}: one width or more, each 1 or more")
        if self.outputs < 1:
            raise ValueError(f"outputs {self.outputs}: 1 or more")
        if self.pooled < 1:
            raise ValueError(f"pooled {self.pooled}: 1 or more")


class ConvolutionalReader(nn.Module):
    """Two convolutions a level, each with its norm and ReLU; average pooling; one linear layer.

    As in the CDM paper's age and sex predictors (Huang et al. 2025, section 4.3), with four levels. The norm is over
    all channels of a scan: one by one (instance norm) nothing would be left of their averages, which are read, and a
    batch norm would make a scan's value hang on the scans beside it while training.
    """

    def __init__(self, architecture: ConvolutionalArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        layers: list[nn.Module] = []
        inputs = 1
        for width in architecture.channels:
            for before in (inputs, width):
                layers += [nn.Conv3d(before, width, 3, padding=1, bias=False), nn.GroupNorm(1, width), nn.ReLU()]
            layers.append(nn.MaxPool3d(2))
            inputs = width
        self.body = nn.Sequential(*layers)
        self.read = nn.Linear(inputs, architecture.outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, X, Y, Z), normalised, sides of pooled 2^levels or more -> numbers (B, outputs), float32."""
        found = self.levels(image)[-1]
        with torch.autocast(image.device.type, enabled=False):
            said: Tensor = self.read(found)
        return said

    def features(self, image: Tensor) -> Tensor:
        """Features of an image (B, 1, X, Y, Z): the activations of all levels, (B, sum of channels) float32.

        The first levels see how sharp or noisy an image is, which the last, from which age and layout are read, nearly
        forgets.
        """
        return torch.cat(self.levels(image), dim=1)

    def levels(self, image: Tensor) -> list[Tensor]:
        """What each level says of an image (B, 1, X, Y, Z): means over all places, (B, channels) float32 each."""
        found = []
        if (side := self.architecture.pooled) > 1:
            image = functional.avg_pool3d(image, side)
        for number, layer in enumerate(self.body):
            image = layer(image)
            if number == 0:  # faster on a CPU; one channel alone has no order
                image = image.to(memory_format=torch.channels_last_3d)
            if isinstance(layer, nn.MaxPool3d):
                found.append(image.float().mean((2, 3, 4)))
        return found
