"""Training the network that finds brains in heads: heads as code maps, looked at in ever new contrasts and poses.

As in SynthSeg and SynthStrip (Billot et al. 2023; Hoopes et al. 2022) a map is drawn at random from what each voxel is
made of to how bright it is; so the network cannot rely on any contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.utils.data import Dataset

from cftools import field
from cftools.heads import HEAD_GRID, box_at, middle_of_head, normalised_head, whole
from cftools.phantom.contrast import CONTRASTS
from cftools.phantom.head import MATERIALS, SIGNALS, grown, with_margin
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM, canonical, resample
from cftools.train.store import Made, Store
from cftools.train.twin import AGES
from cftools.volume import Volume

#: Codes: below FIRST_MATERIAL a tissue, from fluid (0) over grey (100) to white matter (200); then MATERIALS.
TISSUE_CODES = (0, 100, 200)
FIRST_MATERIAL = 201
#: Sides of the box that real heads are kept in: HEAD_GRID's and what turning it may bring into view.
KEPT = (112, 128, 128)
_CODES = 256
#: Logarithm of MNI152's size over that of a head, along each axis.
_MNI_SIZE = 0.11


@dataclass(frozen=True, eq=False)
class CodedHead:
    """A head as what its voxels are made of.

    Attributes:
        codes: (X, Y, Z) uint8 at 2 mm; tissue and material codes in simulated heads, 255 times the normalised
            intensity in real ones.
        brain: (X, Y, Z) bool, with the fluid between its folds and without that around it.
        middle: where `middle_of_head` puts the box, in voxels, (3,).
        real: whether it is a real one; simulated ones are as large as MNI152.
    """

    codes: np.ndarray
    brain: np.ndarray
    middle: np.ndarray
    real: bool

    @classmethod
    def kept(cls, made: Made) -> CodedHead:
        """A simulated head from what `made` gave."""
        return cls(made["codes"].numpy(), made["brain"].numpy(), made["middle"].numpy(), False)

    def made(self) -> Made:
        """As tensors, to be kept."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("codes", "brain", "middle")}


def real_head(volume: Volume, labels: Volume) -> Tensor:
    """A scan with its labels as training keeps it: image in 0..1 and brain, (2, *KEPT) float32.

    The brain is the union of the labels, closed and filled.
    """
    volume.check_same_grid(labels)
    array, affine, _ = canonical(volume)
    mask = canonical(labels)[0] > 0
    box = box_at(middle_of_head(array, affine), KEPT)
    image = np.clip(normalised_head(resample(array, affine, box)), 0, 1)
    brain = whole(resample(mask.astype(np.float32), affine, box) > 0.5)
    return torch.from_numpy(np.stack([image, brain.astype(np.float32)]))


def coded_real(head: Tensor) -> CodedHead:
    """A real head, (2, *KEPT) as from `real_head`, as codes."""
    image, brain = head.numpy()
    return CodedHead((image * 255).round().astype(np.uint8), brain > 0.5, (np.array(image.shape) - 1) / 2, True)


def coded_simulated(family: Family, seed: int, number: int) -> CodedHead:
    """The head of a simulated subject, as codes."""
    age = float(np.random.default_rng([seed, 13, number]).uniform(*AGES))
    with torch.inference_mode():
        aged = family.draw(seed, number).at(age)
        subject = aged.subject
        points = field.identity(GRID_2MM.shape)[None] + aged.displacement
        tissues = field.sample(subject.anatomy.tissues, points)
        amount = tissues.sum(1, keepdim=True).clamp(min=1e-3)
        position = (tissues * torch.tensor(TISSUE_CODES).view(1, 3, 1, 1, 1)).sum(1, keepdim=True) / amount
        position = position * (amount / subject.cranium.clamp(min=1e-3)).clamp(max=1)  # what is missing is fluid
        inside = grown(subject.cranium)[0, 0].numpy() > 0.5
        brain = inside & (grown(field.sample(subject.anatomy.strip, points))[0, 0].numpy() > 0.5)
        codes = np.where(
            inside,
            grown(position)[0, 0].numpy().round().astype(np.uint8),
            subject.head.materials + np.uint8(FIRST_MATERIAL),
        )
    grid = with_margin(GRID_2MM)
    solid = (codes != FIRST_MATERIAL).astype(np.float32)
    middle = middle_of_head(solid, grid.affine)
    return CodedHead(codes, whole(brain), (np.linalg.inv(grid.affine) @ [*middle, 1])[:3], False)


class Heads(Dataset[dict[str, Tensor]]):
    """Item i holds one head: image (1, 1, *HEAD_GRID.shape) and fractions (1, 2, ...) of what is no brain and what is.

    Heads come again and again, each time in another contrast, pose and field of view. Every second of the simulated
    is someone new until the cohort is full.

    Args:
        family: where simulated subjects come from.
        real: heads as from `real_head`.
        seed: of the draws.
        cohort: number of different simulated subjects; a minute of work and 90 MB for 30.
        share: of the items that show a real head, where there are any.
        store: where the simulated are kept.
    """

    def __init__(
        self,
        family: Family,
        real: Sequence[Tensor],
        seed: int,
        cohort: int,
        share: float,
        store: Store | None = None,
    ) -> None:
        self.family, self.seed, self.cohort, self.share = family, seed, cohort, share
        self._real = [coded_real(head) for head in real]
        self.store = store or Store()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, 14, index])
        if self._real and random.random() < self.share:
            head = self._real[int(random.integers(len(self._real)))]
        else:
            known = min(self.cohort, index // 2 + 1)
            number = known - 1 if index % 2 == 0 and known == index // 2 + 1 else int(random.integers(known))
            head = CodedHead.kept(
                self.store.get(number, lambda: coded_simulated(self.family, self.seed, number).made())
            )
        image, brain = look(head, random)
        return {"image": image, "fractions": torch.cat([1 - brain, brain], dim=1)}


def look(head: CodedHead, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A head as some scanner sees it in HEAD_GRID's box, and how much of each voxel is brain; (1, 1, X, Y, Z) each."""
    lookup = (_real_lookup if head.real else _simulated_lookup)(random)
    image = torch.from_numpy(lookup[head.codes])
    brain = torch.from_numpy(head.brain.astype(np.float32))
    if random.random() < 0.05:  # stripped, and yet not clean enough to be taken for it
        image = image * brain
    size = 0.0 if head.real else _MNI_SIZE
    both = _posed(torch.stack([image, brain])[None], head.middle, size, random)
    image, brain = both[:, :1], both[:, 1:]
    image = _scanned(image, random)
    seen = torch.from_numpy(_field_of_view(image.shape[2:], random))
    image, brain = image * seen, brain * seen
    if random.random() < 0.3:  # air without noise
        image = image * (image > random.uniform(0.02, 0.08))
    return torch.from_numpy(normalised_head(image[0, 0].numpy()))[None, None], brain


def _simulated_lookup(random: np.random.Generator) -> np.ndarray:
    """Brightness of each code in a simulated head, (256,): of a known contrast, or of none."""
    if random.random() < 0.5:
        contrast = str(random.choice(list(CONTRASTS)))
        tissues = np.array(CONTRASTS[contrast].means) * np.exp(random.normal(0, 0.12, 3))
        materials = np.array(SIGNALS[contrast]) * np.exp(random.normal(0, 0.3, len(MATERIALS)))
        largest = max(tissues.max(), 1.0)
        tissues, materials = tissues / largest, materials / largest
    else:
        tissues, materials = random.uniform(0, 1, 3), random.uniform(0, 1.2, len(MATERIALS))
        materials[0] = 0.02 * random.random()
    lookup = np.zeros(_CODES, np.float32)
    lookup[:FIRST_MATERIAL] = np.interp(np.arange(FIRST_MATERIAL), TISSUE_CODES, tissues)
    lookup[FIRST_MATERIAL : FIRST_MATERIAL + len(MATERIALS)] = materials
    return lookup


def _real_lookup(random: np.random.Generator) -> np.ndarray:
    """Brightness of each intensity of a real head, (256,): bent a little, or by any curve that leaves air dark."""
    codes = np.linspace(0, 1, _CODES)
    if random.random() < 0.6:
        return (codes ** np.exp(random.normal(0, 0.25))).astype(np.float32)
    knots = np.array([0, 0.06, *np.sort(random.uniform(0.1, 0.9, 4)), 1])
    heights = np.array([0, *random.uniform(0, 1, 6)])
    return np.interp(codes, knots, heights).astype(np.float32)


def _posed(values: Tensor, middle: np.ndarray, size: float, random: np.random.Generator) -> Tensor:
    """A head turned, stretched, mirrored, bent and shifted into HEAD_GRID's box.

    Args:
        values: (1, C, I, J, K) at 2 mm.
        middle: where the box's middle lies in it, in voxels.
        size: logarithm of its size over that of a head.
    """
    turn = Rotation.from_euler("xyz", random.normal(0, (12, 6, 8)), degrees=True).as_matrix()
    stretch = np.exp(size + random.normal(0, 0.06) + random.normal(0, 0.03, 3))
    matrix = turn * (stretch * np.array([random.choice([-1, 1]), 1, 1]))
    centre = middle + random.normal(0, 3.5, 3)
    shape = HEAD_GRID.shape
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    places = torch.einsum("ij,jxyz->ixyz", torch.from_numpy(matrix.astype(np.float32)), places)
    bend = torch.from_numpy(random.normal(0, random.uniform(0, 1.6), (1, 3, 6, 7, 7)).astype(np.float32))
    places = places + functional.interpolate(bend, size=shape, mode="trilinear", align_corners=True)[0]
    half = torch.tensor([n / 2 for n in values.shape[2:]]).view(3, 1, 1, 1)
    places = (places + torch.from_numpy(centre.astype(np.float32)).view(3, 1, 1, 1) + 0.5) / half - 1
    return functional.grid_sample(values, places.flip(0).movedim(0, -1)[None], align_corners=False)


def _scanned(image: Tensor, random: np.random.Generator) -> Tensor:
    """Texture, receive bias, blur and thick slices, and Rician noise laid over (1, 1, X, Y, Z), a little or much."""
    much = random.random()
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    shape = image.shape
    image = image * (1 + much * random.uniform(0, 0.12) * torch.randn(shape, generator=generator))
    bias = torch.from_numpy(random.normal(0, much * random.uniform(0, 0.3), (1, 1, 4, 4, 4)).astype(np.float32))
    image = image * torch.exp(field.resize(bias, tuple(shape[2:])))
    widths = np.full(3, much * random.uniform(0, 0.8))
    if random.random() < 0.25:
        widths[random.integers(3)] += random.uniform(0.5, 2.0)
    image = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, 0, *widths), truncate=2.5))
    noise = 0.08 * much * random.random() ** 2 * torch.randn((2, *shape), generator=generator)
    return torch.sqrt((image + noise[0]) ** 2 + noise[1] ** 2)


def _field_of_view(shape: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """1 where the scan has a voxel, (X, Y, Z) float32: the neck is often left out, other sides seldom."""
    seen = np.ones(tuple(shape), np.float32)
    for axis, size in enumerate(shape):
        for end in (0, 1):
            neck = (axis, end) == (2, 0)
            if random.random() < (0.4 if neck else 0.12):
                cut = int(random.uniform(0, 0.35 if neck else 0.12) * size)
                np.moveaxis(seen, axis, 0)[slice(size - cut, None) if end else slice(cut)] = 0
    return seen
