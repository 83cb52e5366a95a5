"""Volumes of a scan's structures, by a network that says what each place is made of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cftools.errors import WeightsError
from cftools.prepare import Prepared
from cftools.weights import Checkpoint

#: What is told of a scan, and the structures it is the sum of.
VOLUMES: Mapping[str, tuple[str, ...]] = {
    "brain": ("cortex", "white_matter", "deep_grey", "hippocampus"),
    "grey": ("cortex", "deep_grey", "hippocampus"),
    "white": ("white_matter",),
    "ventricles": ("lateral_ventricles", "third_ventricle"),
    "hippocampi": ("hippocampus",),
}
#: The weights that tell them.
TISSUES = "tissues-2mm"


class TissueReader:
    """What a scan is made of.

    Raises:
        WeightsError: the weights do not know a structure of VOLUMES.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        from cftools.nets.segmenter import Segmenter, SegmenterArchitecture  # MONAI takes seconds to import

        self.device = torch.device(device)
        self.network = checkpoint.network(Segmenter, SegmenterArchitecture).to(self.device)
        self.structures = self.network.architecture.structures
        needed = {name for names in VOLUMES.values() for name in names}
        if missing := sorted(needed - set(self.structures)):
            raise WeightsError(f"{checkpoint.name}: do not tell {', '.join(missing)}: use {TISSUES}")

    def fractions(self, prepared: Prepared) -> Tensor:
        """Share of each voxel that is each structure, (structures, X, Y, Z) on its grid; 0 outside the brain."""
        image = torch.from_numpy(prepared.image)[None, None].to(self.device)
        with torch.inference_mode():
            shares: Tensor = self.network(image).float().softmax(1)[0, 1:] * (image[0] > 0)
        return shares

    def volumes(self, prepared: Prepared) -> dict[str, float]:
        """Each of VOLUMES, ml of the scan itself, not of the template it was brought to."""
        voxel_ml = abs(np.linalg.det(prepared.grid.affine[:3, :3])) / 1000
        native = voxel_ml / abs(np.linalg.det(prepared.to_mni[:3, :3]))
        totals = dict(zip(self.structures, self.fractions(prepared).sum((1, 2, 3)).tolist(), strict=True))
        return {name: native * sum(totals[part] for part in parts) for name, parts in VOLUMES.items()}
