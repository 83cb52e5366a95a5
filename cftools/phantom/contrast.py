"""From tissues to an image: contrast, bias field, resolution and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cftools import field


@dataclass(frozen=True)
class Contrast:
    """What one kind of image shows.

    Attributes:
        means: intensity of fluid, grey and white matter, white matter being 1.
        lesions: of each of LESION_TISSUES on the same scale, in that order.
        entity, suffix: how BIDS names it.
        ages: whether grey and white matter draw together with age, as the ageing law says of T1w.
    """

    means: tuple[float, float, float]
    lesions: tuple[float, ...]
    suffix: str
    entity: str = ""
    ages: bool = False


#: What lesions are made of. Multiple sclerosis: a plaque, one whose axons are gone (a T1 "black hole"), one that takes
#: up gadolinium. An old infarct: its cavity and the scar around. A glioblastoma: dead core, enhancing rim, oedema.
LESION_TISSUES = ("plaque", "black_hole", "active_plaque", "cavity", "gliosis", "necrosis", "enhancing", "oedema")
#: Tissue means: T1w as it always was here, the others between the medians of two patients at 3 T (Lesjak et al. 2018,
#: Neuroinformatics 16:51), as are plaques and black holes. Other lesions: what radiology says of their order, amounts
#: judged.
CONTRASTS = {
    "T1w": Contrast((0.22, 0.66, 1.0), (0.76, 0.50, 0.74, 0.26, 0.62, 0.38, 0.66, 0.70), "T1w", ages=True),
    "T2w": Contrast((2.90, 1.33, 1.0), (2.00, 2.40, 2.10, 2.75, 1.90, 2.45, 1.55, 2.05), "T2w"),
    "FLAIR": Contrast((0.32, 1.17, 1.0), (1.65, 1.52, 1.70, 0.38, 1.70, 1.05, 1.50, 1.75), "FLAIR"),
    "T1ce": Contrast(
        (0.22, 0.79, 1.0), (0.79, 0.54, 1.50, 0.26, 0.70, 0.34, 1.75, 0.74), "T1w", "ce-gadolinium", ages=True
    ),
}


@dataclass(frozen=True)
class Scanner:
    """How one subject's images are taken; the same at every age, so that only the brain differs.

    Attributes:
        means: intensity of fluid, grey and white matter at 25 years.
        bias: (1, 1, 4, 4, 4) log-gain on a coarse grid.
        texture: (1, 3, 20, 24, 22) relative variation within each tissue, carried along by the anatomy.
        resolution: width of the Gaussian that blurs the image along x, y, z, millimetres.
        noise: standard deviation of the Rician noise, relative to white matter.
        tight: cut the brain out along its surface rather than along the inside of the skull.
        seed: of the noise.
        contrast: one of CONTRASTS.
    """

    means: tuple[float, float, float]
    bias: Tensor
    texture: Tensor
    resolution: tuple[float, float, float]
    noise: float
    tight: bool
    seed: int
    contrast: str = "T1w"

    @property
    def lesion_means(self) -> Tensor:
        """Intensity of each of LESION_TISSUES, (8,): as in the contrast's table, between this scanner's own tissues."""
        contrast = CONTRASTS[self.contrast]
        order = np.argsort(contrast.means)
        known, own = (np.array(means)[order] for means in (contrast.means, self.means))
        values = np.array(contrast.lesions)
        within = np.interp(values, known, own)
        return torch.from_numpy((within * np.maximum(values / known[-1], 1)).astype(np.float32))


def plain_scanner(random: np.random.Generator) -> Scanner:
    """A good T1w scan at 3 T: mild bias and noise, small differences between subjects."""
    fluid, grey, white = CONTRASTS["T1w"].means
    return Scanner(
        (fluid * random.normal(1, 0.05), grey * random.normal(1, 0.02), white),
        _draw((1, 1, 4, 4, 4), 0.05, random),
        _draw((1, 3, 20, 24, 22), 0.02, random),
        (0.0, 0.0, 0.0),
        0.012,
        False,
        int(random.integers(2**31)),
    )


def random_scanner(random: np.random.Generator) -> Scanner:
    """Any T1w scan a lab may have: wide contrast, strong bias, thick slices, noise, loose or tight stripping.

    Wide enough that a network trained on such images takes real ones for one more draw (Billot et al. 2023).
    """
    grey = random.uniform(0.50, 0.80)
    thick = random.uniform(0, 2.2) if random.random() < 0.25 else 0.0
    width = [random.uniform(0, 1.0)] * 3
    width[random.integers(3)] += thick
    return Scanner(
        (random.uniform(0.03, 0.65) * grey, grey, 1.0),
        _draw((1, 1, 4, 4, 4), random.uniform(0, 0.18), random),
        _draw((1, 3, 20, 24, 22), random.uniform(0, 0.05), random),
        (width[0], width[1], width[2]),
        0.05 * random.random() ** 2,
        bool(random.random() < 0.5),
        int(random.integers(2**31)),
    )


def other_scanner(scanner: Scanner, contrast: str, random: np.random.Generator, varied: bool) -> Scanner:
    """How the same subject is scanned in another contrast: means, bias, resolution and noise anew, the rest alike.

    Args:
        scanner: of its T1w image.
        contrast: one of CONTRASTS.
        varied: as widely as `random_scanner`, else as `plain_scanner`.
    """
    fluid, grey, white = CONTRASTS[contrast].means
    width = (0.0, 0.0, 0.0)
    if varied:
        across = random.uniform(0, 1.0)
        thick = [random.uniform(0, 2.2) if random.random() < 0.35 else 0.0, 0.0, 0.0]
        x, y, z = across + random.permutation(thick)
        width = (float(x), float(y), float(z))
    return replace(
        scanner,
        means=(
            fluid * float(np.exp(random.normal(0, 0.25 if varied else 0.04))),
            # Towards white matter or away from it, never past.
            white + (grey - white) * float(np.exp(random.normal(0, 0.25 if varied else 0.05))),
            white,
        ),
        bias=_draw((1, 1, 4, 4, 4), random.uniform(0, 0.18) if varied else 0.05, random),
        resolution=width,
        noise=0.05 * random.random() ** 2 if varied else 0.012,
        seed=int(random.integers(2**31)),
        contrast=contrast,
    )


def _draw(shape: tuple[int, ...], size: float, random: np.random.Generator) -> Tensor:
    return torch.from_numpy((size * random.standard_normal(shape)).astype(np.float32))


def render(
    tissues: Tensor, texture: Tensor, scanner: Scanner, contrast: float, lesions: Tensor | None = None
) -> Tensor:
    """An image of deformed tissues.

    I = |R * (b sum_k m_k (1 + t_k) f_k) + n|: fractions f, means m, texture t, bias b, resolution R, noise n.
    Lesions are more tissues, with the texture of white matter; they take the place of what was there.

    Args:
        tissues: (1, 3, X, Y, Z) fractions of fluid, grey and white matter.
        texture: (1, 3, X, Y, Z), the scanner's texture deformed like the tissues.
        contrast: white-to-grey ratio relative to 25 years (the ageing law's).
        lesions: (1, 8, X, Y, Z) fractions of LESION_TISSUES, or None.
    Returns:
        (1, 1, X, Y, Z); 0 outside the cranium.
    """
    shape = tuple(tissues.shape[2:])
    fluid, grey, white = scanner.means
    # Grey and white approach each other about their middle, so overall brightness stays.
    middle, half = (white + grey) / 2, (white / grey * contrast - 1) / (white / grey * contrast + 1)
    means = torch.tensor([fluid, middle * (1 - half), middle * (1 + half)], device=tissues.device).view(1, 3, 1, 1, 1)
    image = (tissues * means * (1 + texture)).sum(1, keepdim=True)
    if lesions is not None:
        inside = (lesions * scanner.lesion_means.to(tissues.device).view(1, -1, 1, 1, 1)).sum(1, keepdim=True)
        image = image * (1 - lesions.sum(1, keepdim=True)) + inside * (1 + texture[:, 2:])
    image = image * torch.exp(field.resize(scanner.bias.to(tissues.device), shape))
    cranium = tissues.sum(1, keepdim=True)
    for axis, width in enumerate(scanner.resolution):
        image = _blur_axis(image, axis, width * shape[axis] / field.BOX[axis])
    generator = torch.Generator().manual_seed(scanner.seed)
    noise = (scanner.noise * torch.randn((2, *shape), generator=generator)).to(tissues.device)
    return torch.sqrt((image + noise[None, :1]) ** 2 + noise[None, 1:] ** 2) * (cranium > 0.5)


def _blur_axis(image: Tensor, axis: int, width: float) -> Tensor:
    """Gaussian smoothing along one axis; width in voxels."""
    if width < 0.2:
        return image
    radius = max(1, round(3 * width))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / width) ** 2)
    view = [1, 1, 1, 1, 1]
    view[2 + axis] = -1
    padding = [radius if a == axis else 0 for a in range(3)]
    return torch.nn.functional.conv3d(image, (kernel / kernel.sum()).view(view), padding=padding)
