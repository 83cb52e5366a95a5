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
#: Odds are taken to the power 1 / 0.6 before they are summed: what is unlikely, but so over many voxels, would else
#: outweigh a small structure. Chosen on simulated people of the training's anatomies who were not trained on.
TEMPERATURE = 0.6
#: But not of these, whose borders no scan shows well: their likely voxels alone are too few.
BY_ODDS = ("hippocampi",)
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

    def logits(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """What the network says of each voxel, (1 + structures, X, Y, Z) on its grid, and where the brain is."""
        image = torch.from_numpy(prepared.image)[None, None].to(self.device)
        with torch.inference_mode():
            return self.network(image)[0].float(), image[0] > 0

    def volumes(self, prepared: Prepared) -> dict[str, float]:
        """Each of VOLUMES, ml of the scan itself, not of the template it was brought to."""
        voxel_ml = abs(np.linalg.det(prepared.grid.affine[:3, :3])) / 1000
        native = voxel_ml / abs(np.linalg.det(prepared.to_mni[:3, :3]))
        logits, brain = self.logits(prepared)
        plain, sharp = (
            dict(zip(self.structures, ((logits / t).softmax(0)[1:] * brain).sum((1, 2, 3)).tolist(), strict=True))
            for t in (1.0, TEMPERATURE)
        )
        return {
            name: native * sum((plain if name in BY_ODDS else sharp)[part] for part in parts)
            for name, parts in VOLUMES.items()
        }
