"""A small regressor that reads a scalar, such as age, off a scan on the 2 mm grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Places of 8 mm on the 2 mm grid.
PLACES = (20, 24, 22)
#: Normalised intensity above which a voxel belongs to the brain: less is a stripped edge that was interpolated.
EDGE = 0.02


@dataclass(frozen=True)
class RegressorArchitecture:
    """What the network reads.

    Attributes:
        fluid: intensities, as parts of the brain's median, from which a voxel counts as wholly and as not at all fluid.
        depth: voxels of 2 mm from the edge of the brain within which nothing is read.
        dropout: share of what is read that is withheld while training.
    """

    fluid: tuple[float, float] = (0.6, 0.95)
    depth: int = 5
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if len(self.fluid) != 2 or not 0 <= self.fluid[0] < self.fluid[1]:
            raise ValueError(f"fluid {list(self.fluid)}: two parts of the brain's median, the lower first")
        if self.depth < 0:
            raise ValueError(f"depth {self.depth}: voxels from the edge, 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout:g}: a share below 1")


class Regressor(nn.Module):
    """How dark each place deep in the brain is, and one linear layer over the places.

    The scan is registered, so where fluid lies says how wide the ventricles and the deep fissures are. Grey matter
    counts in part, as it is darker than the median. The brain's edge, and what is brighter than most of it, are
    withheld on purpose: simulated and real scans differ in them, and a network that saw them learned ages that hold for
    simulated scans alone.
    """

    def __init__(self, architecture: RegressorArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.withhold = nn.Dropout(architecture.dropout)
        x, y, z = PLACES
        self.read = nn.Linear(x * y * z, 1)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, 80, 96, 88) on the 2 mm grid -> value (B,), in [-1, 1] over the variable's range."""
        with torch.autocast(image.device.type, enabled=False):
            return self.read(self.withhold(self.fluid(image.float()).flatten(1)))[:, 0]

    def fluid(self, image: Tensor) -> Tensor:
        """Share of each place that is fluid deep in the brain, (B, 1, *PLACES)."""
        full, none = self.architecture.fluid
        median = torch.stack([one[one > EDGE].median() for one in image])
        part = image / median.view(-1, 1, 1, 1, 1)
        outside = (image <= EDGE).float()
        reach = self.architecture.depth
        for axis in range(3):
            size, margin = [1, 1, 1], [0, 0, 0]
            size[axis], margin[axis] = 2 * reach + 1, reach
            outside = F.max_pool3d(outside, size, stride=1, padding=margin)
        return F.avg_pool3d(((none - part) / (none - full)).clamp(0, 1) * (1 - outside), 4)
