"""Where the brain is in a scan of a whole head, whatever its contrast, orientation and voxel size.

A small network looks at the head at 2 mm in the scanner's own axes, before anything is registered: in the manner of
SynthStrip (Hoopes et al. 2022), trained on heads whose contrast, pose and field of view are drawn at random. What it
calls brain is the brain with the fluid in it and between its folds, without the fluid around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from cftools.errors import RegistrationError, VolumeError, WeightsError
from cftools.nifti import printable
from cftools.prepare import (
    BRAIN_LITRES,
    Brain,
    Grid,
    Prepared,
    bounding_box,
    canonical,
    prepare,
    resample,
    stripped_brain,
    to_native,
)
from cftools.register import shrink
from cftools.volume import Volume
from cftools.weights import Checkpoint, load

if TYPE_CHECKING:
    from cftools.nets.segmenter import Segmenter

#: The weights that find it.
BRAINMASK = "brainmask-2mm"
#: What the network tells apart.
STRUCTURES = ("brain",)
#: The box that it looks at; where it lies differs from head to head.
HEAD_GRID = Grid("head 2 mm", (96, 112, 112), np.diag([2.0, 2.0, 2.0, 1.0]))

_ABOVE_MM = 10.0  # air in the box above the head
_DEPTH_MM = 180.0  # of a head from its top, to tell where its middle is: what lies deeper is neck
_FOREGROUND = 0.2  # of the bright tissue
#: From the middle of the brain to that of the box, in heads that are where the network expects them.
_BRAIN_TO_BOX = np.array([0.0, 12.0, -28.0])
_OFF_MM = 24.0  # further off, it looks again
_HEAD_TO_BRAIN = 0.8  # of a head that is whole, the brain is less


def normalised_head(image: np.ndarray) -> np.ndarray:
    """Intensities as the network takes them: 0 and 1 at the 1st and 99.5th percentile, clipped to -0.2 and 1.5.

    Args:
        image: (X, Y, Z).
    Returns:
        (X, Y, Z) float32.
    """
    low, high = np.percentile(image, [1, 99.5])
    return np.clip((image - low) / max(float(high - low), 1e-6), -0.2, 1.5).astype(np.float32)


def box_at(centre: np.ndarray, shape: tuple[int, int, int] = HEAD_GRID.shape) -> Grid:
    """A box of HEAD_GRID's voxels with its middle at a place in the scanner's mm (RAS), (3,)."""
    affine = HEAD_GRID.affine.copy()
    affine[:3, 3] = centre - np.diag(affine)[:3] * (np.array(shape) - 1) / 2
    return Grid(HEAD_GRID.name, shape, affine)


def middle_of_box(box: Grid) -> np.ndarray:
    """The middle of a box, mm, (3,)."""
    return box.affine[:3, :3] @ ((np.array(box.shape) - 1) / 2) + box.affine[:3, 3]


def middle_of_head(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where to put the middle of the box: below the top of the head, amid its upper part; mm (RAS), (3,).

    Args:
        array: intensities, (I, J, K).
        affine: indices -> the scanner's mm, (4, 4).
    """
    coarse, affine = shrink(array - array.min(), affine)  # 4 mm: noise in the air averages out
    pieces, count = ndimage.label(coarse > _FOREGROUND * np.percentile(coarse, 99))
    if not count:
        return affine[:3, :3] @ ((np.array(coarse.shape) - 1) / 2) + affine[:3, 3]
    largest = np.argwhere(pieces == np.bincount(pieces.ravel())[1:].argmax() + 1)
    places = largest @ affine[:3, :3].T + affine[:3, 3]
    top = np.percentile(places[:, 2], 99.8)
    upper = places[places[:, 2] > top - _DEPTH_MM]
    low, high = np.percentile(upper, [1, 99], axis=0)
    half = HEAD_GRID.shape[2] * HEAD_GRID.affine[2, 2] / 2
    return np.array([*(low + high)[:2] / 2, top + _ABOVE_MM - half])


def whole(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask at about 2 mm, gaps of 4 mm closed and holes filled, (X, Y, Z) bool."""
    pieces, count = ndimage.label(mask)
    if not count:
        return np.zeros(mask.shape, bool)
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    box, room = bounding_box(largest), 3
    ball = np.linalg.norm(np.mgrid[-2:3, -2:3, -2:3], axis=0) <= 2
    closed = ndimage.binary_closing(np.pad(largest[box], room), ball)
    filled = np.zeros(mask.shape, bool)
    filled[box] = ndimage.binary_fill_holes(closed)[room:-room, room:-room, room:-room]
    return filled


def solid(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask at about 2 mm that hangs together by more than 8 mm, made `whole`; (X, Y, Z) bool."""
    ball = np.linalg.norm(np.mgrid[-2:3, -2:3, -2:3], axis=0) <= 2
    pieces, count = ndimage.label(ndimage.binary_erosion(mask, ball))
    if not count:
        return whole(mask)
    core = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return whole(ndimage.binary_dilation(core, ball, iterations=2) & mask)


class BrainFinder:
    """The network that finds brains in heads.

    Raises:
        WeightsError: the weights are made for something else.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        from cftools.nets.segmenter import Segmenter, SegmenterArchitecture  # MONAI takes seconds to import

        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.network: Segmenter = checkpoint.network(Segmenter, SegmenterArchitecture).to(self.device)
        if self.network.architecture.structures != STRUCTURES or checkpoint.facts.grid.shape != HEAD_GRID.shape:
            raise WeightsError(f"{checkpoint.name}: find no brains in heads: use {BRAINMASK}")

    def find(self, volume: Volume) -> np.ndarray:
        """The brain of a head, on the scan's own grid, (I, J, K) bool; empty where there is none."""
        array, affine, orientation = canonical(volume)
        box = box_at(middle_of_head(array, affine))
        share = self._share(array, affine, box)
        brain = solid(share > 0.5)
        if brain.any():
            middle = (box.affine @ [*ndimage.center_of_mass(brain), 1])[:3] + _BRAIN_TO_BOX
            if np.linalg.norm(middle - middle_of_box(box)) > _OFF_MM:  # a long neck, shoulders, a coil in view
                box = box_at(middle)
                share = self._share(array, affine, box)
                brain = solid(share > 0.5)
        # Within the brain at least half, so that holes stay filled; far from it nothing.
        share = np.where(brain, np.maximum(share, 0.51), share) * ndimage.binary_dilation(brain, iterations=2)
        index_of = np.linalg.inv(box.affine) @ affine
        on_scan = ndimage.affine_transform(share, index_of[:3, :3], index_of[:3, 3], array.shape, order=1)
        return to_native(on_scan > 0.5, orientation)

    def _share(self, array: np.ndarray, affine: np.ndarray, box: Grid) -> np.ndarray:
        """How surely each voxel of a box is brain, (X, Y, Z) in 0..1."""
        image = torch.from_numpy(normalised_head(resample(array, affine, box)))[None, None].to(self.device)
        with torch.inference_mode():
            share: np.ndarray = self.network(image).float().softmax(1)[0, 1].cpu().numpy()
        return share


class Preparer:
    """Brings scans to a model's grid, whole heads and brains cut out; the network is loaded for the first head.

    Args:
        grid: of the model.
        device: says which device to use, when one is needed.
        stripped: the scans are brains cut out already, so that nothing is to be found.
    """

    def __init__(self, grid: Grid, device: Callable[[], torch.device | str], stripped: bool = False) -> None:
        self.grid = grid
        self.stripped = stripped
        self._device = device
        self._finder: BrainFinder | None = None

    def __call__(self, volume: Volume, mask: Volume | None = None, to_mni: np.ndarray | None = None) -> Prepared:
        """A scan on the grid; errors as `prepare`.

        Args:
            mask: of its brain, on its own grid; None to find it.
            to_mni: as of `prepare`.
        Raises:
            VolumeError: the mask is on another grid, empty, or holds more than one value beside 0.
        """
        brain = self.brain(volume, mask)
        try:
            return prepare(volume, self.grid, to_mni, brain)
        except RegistrationError:
            # A child's head, or one in a tight field of view, is no larger than a brain may be.
            inner = None if brain.found_by or self.stripped else self.found(volume)
            if inner is None or not BRAIN_LITRES[0] <= inner.litres(volume) <= _HEAD_TO_BRAIN * brain.litres(volume):
                raise
        return prepare(volume, self.grid, to_mni, inner)

    def again(self, prepared: Prepared, array: np.ndarray) -> Prepared:
        """The same scan with other intensities, (I, J, K), where it was and with the brain that was found in it."""
        brain = Brain(prepared.mask, prepared.found_by) if prepared.found_by else None
        return prepare(prepared.volume.with_array(array), prepared.grid, prepared.to_mni, brain)

    def brain(self, volume: Volume, mask: Volume | None = None) -> Brain:
        """Which voxels of a scan are brain; arguments and errors as above."""
        if mask is not None:
            name = mask.path.name if mask.path else "a mask"
            inside = volume.region(mask)
            if not inside.any():
                raise VolumeError(f"{printable(name)}: is empty: give a mask of the brain")
            return Brain(inside, name)
        brain = stripped_brain(volume)
        if self.stripped or brain.litres(volume) <= BRAIN_LITRES[1]:
            return brain
        return self.found(volume)

    def found(self, volume: Volume) -> Brain:
        """What the network takes for brain in a head."""
        if self._finder is None:
            self._finder = BrainFinder(load(BRAINMASK, expect="segmenter"), self._device())
        return Brain(self._finder.find(volume), BRAINMASK)

    def weights_of(self, prepared: Prepared) -> dict[str, Checkpoint]:
        """The weights that found its brain, by role; none where none did."""
        return {"brain mask": self._finder.checkpoint} if self._finder and prepared.found_by == BRAINMASK else {}
