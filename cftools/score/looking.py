"""What networks see in images of a set: features for distances, and age and sex as they look."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from cftools.condition import Value
from cftools.errors import UsageError, WeightsError
from cftools.heads import Preparer
from cftools.methods import ScalarReader
from cftools.prepare import GRID_1MM, GRID_2MM, GRID_4MM, Grid, intensity_scale
from cftools.provenance import sidecar_path
from cftools.score.image import intensity_scale as scale_of
from cftools.volume import Volume
from cftools.weights import Facts, installed, load

#: Bundled weights of the features, and of what reads each variable.
FEATURES = "features-2mm"
READERS = {"age": "score-age-2mm", "sex": "score-sex-2mm"}
#: The space of the networks' grids, as BIDS names it.
SPACE = "MNI152NLin2009aSym"
#: Before the name of a file of MedicalNet's.
MEDICALNET = "medicalnet:"
_GRIDS = {grid.name: grid for grid in (GRID_1MM, GRID_2MM, GRID_4MM)}


class Shown:
    """Images as networks on one grid take them.

    What lies on that grid, and says in its JSON that it is in SPACE, as what cf-synth and cf-prep write, is taken as it
    is. Any other scan is brought there as cf-edit does it, its brain found and registered: a head of its own size may
    lie on the same voxels.
    """

    def __init__(self, grid: Grid, device: Callable[[], torch.device | str]) -> None:
        self.grid = grid
        self._preparer = Preparer(grid, device)

    def __call__(self, volume: Volume) -> np.ndarray:
        """The image, (X, Y, Z) float32 in 0..1.5, 0 outside the brain.

        Raises:
            VolumeError, RegistrationError: as `Preparer`. InputError: it is empty.
        """
        same = volume.array.shape == self.grid.shape and np.allclose(volume.affine, self.grid.affine, atol=1e-3)
        if not (same and _is_registered(volume)):
            return self._preparer(volume).image
        image = np.maximum(volume.array, 0).astype(np.float32)
        scale_of(image)  # refuses what holds nothing
        return np.clip(image / np.float32(intensity_scale(image)), 0, 1.5)


class Features:
    """A network whose pooled activations are an image's features.

    Attributes:
        name: of the network, for every output: distances under two networks cannot be compared.
        grid: of its images.
    """

    def __init__(self, name: str, grid: Grid, network: Callable[[torch.Tensor], torch.Tensor], device: torch.device):
        self.name, self.grid = name, grid
        self._network, self._device = network, device

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Features (D,) of an image (X, Y, Z) on the grid."""
        with torch.inference_mode():
            found = self._network(torch.from_numpy(image)[None, None].to(self._device))
        vector: np.ndarray = found[0].float().cpu().numpy()
        return vector


def open_features(name: str, device: torch.device) -> Features:
    """The features of bundled weights, of one's own (a path), or of MedicalNet ("medicalnet:PATH").

    Raises:
        WeightsError: there are none, or they give no features.
    """
    if name.startswith(MEDICALNET):
        from cftools.nets.medicalnet import load_medicalnet  # MONAI takes seconds to import

        path = Path(name.removeprefix(MEDICALNET))
        network = load_medicalnet(path).to(device)
        return Features(f"{MEDICALNET}{path.name}", GRID_2MM, lambda image: network(_standardised(image)), device)
    from cftools.nets.convolutional import ConvolutionalArchitecture, ConvolutionalReader

    checkpoint = load(_present(name, "features"), expect="convolutional")
    reader = checkpoint.network(ConvolutionalReader, ConvolutionalArchitecture).to(device)
    label = f"{checkpoint.name} ({checkpoint.sha256[:8]})"
    return Features(label, _grid(checkpoint.facts, name), reader.features, device)


def open_readers(names: Mapping[str, str], device: torch.device) -> dict[str, tuple[ScalarReader, Grid]]:
    """What reads each variable, by weights' name or path, with the grid of its images.

    Raises:
        WeightsError: there are none, or they read something else.
    """
    found = {}
    for variable, name in names.items():
        checkpoint = load(_present(name, "sex" if variable == "sex" else f"score-{variable}"))
        reader = ScalarReader(checkpoint, device)
        if reader.name != variable:
            raise WeightsError(f"{name}: reads {reader.name}, and {variable} is to be read")
        found[variable] = (reader, _grid(checkpoint.facts, name))
    return found


def read(reader: ScalarReader, image: np.ndarray) -> Value:
    """What a reader says of an image (X, Y, Z) on its grid."""
    with torch.inference_mode():
        value = reader.value(image)
    return round(value, 2) if isinstance(value, float) else value


def _is_registered(volume: Volume) -> bool:
    """Whether the JSON beside an image says that it is in the networks' space."""
    try:
        facts = json.loads(sidecar_path(volume.path).read_text(encoding="utf-8")) if volume.path else {}
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.get("SpatialReference") == SPACE


def _standardised(image: torch.Tensor) -> torch.Tensor:
    """As MedicalNet was trained: mean 0 and standard deviation 1 over the voxels that are not 0, and 0 elsewhere."""
    inside = image != 0
    values = image[inside]
    return torch.where(inside, (image - values.mean()) / values.std().clamp_min(1e-6), image)


def _present(name: str, preset: str) -> str:
    if not installed(name):
        raise WeightsError(
            f"{name}: neither bundled weights nor a file: cf-train --preset {preset} makes such, and cf-weights add "
            "puts them where this command finds them"
        )
    return name


def _grid(facts: Facts, name: str) -> Grid:
    grid = _GRIDS.get(facts.grid.name)
    if grid is None:
        raise UsageError(f"{name}: made for the grid {facts.grid.name}, on which no set is scored")
    return grid
