"""The network that says what each place of a scan is made of: MONAI's UNet, as fractions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.networks.nets import UNet as MonaiUNet
from torch import Tensor, nn


@dataclass(frozen=True)
class SegmenterArchitecture:
    """Size and shape of the network; everything needed to rebuild it.

    Attributes:
        structures: what it tells apart, beside what is none of them.
        channels: width at each level; every level after the first halves the sides.
        units: residual units a level (Kerfoot et al. 2019).
        places: it also sees where each voxel lies, as a coordinate along each axis (Liu et al. 2018), left as right;
            for registered scans.
    """

    structures: tuple[str, ...]
    channels: tuple[int, ...] = (16, 32, 64, 96)
    units: int = 1
    places: bool = False

    def __post_init__(self) -> None:
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise ValueError(f"channels {list(self.channels)}: at least two widths")
        if not self.structures or len(set(self.structures)) != len(self.structures):
            raise ValueError(f"structures {list(self.structures)}: one or more, each once")


class Segmenter(nn.Module):
    """A scan at 2 mm to logits of what each voxel is made of."""

    def __init__(self, architecture: SegmenterArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.body = MonaiUNet(
            spatial_dims=3,
            in_channels=4 if architecture.places else 1,
            out_channels=len(architecture.structures) + 1,
            channels=architecture.channels,
            strides=[2] * (len(architecture.channels) - 1),
            num_res_units=architecture.units,
            norm=("GROUP", {"num_groups": 1, "affine": True}),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits, (B, 1 + structures, X, Y, Z), of an image (B, 1, X, Y, Z); the first is of none of them."""
        if self.architecture.places:
            image = torch.cat([image, places(image).expand(len(image), -1, -1, -1, -1)], dim=1)
        logits: Tensor = self.body(image)
        return logits


def places(image: Tensor) -> Tensor:
    """Where the voxels of an image (B, C, X, Y, Z) lie, (1, 3, X, Y, Z): |x|, y and z on [-1, 1]."""
    axes = [torch.linspace(-1, 1, side, dtype=image.dtype, device=image.device) for side in image.shape[2:]]
    axes[0] = axes[0].abs()
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
