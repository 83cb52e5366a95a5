"""From tissues to an image: contrast, bias field, resolution and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cftools import field

#: Mean T1w intensity of fluid, grey and white matter at 25 years, white matter being 1.
T1W = (0.22, 0.66, 1.0)


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
    """

    means: tuple[float, float, float]
    bias: Tensor
    texture: Tensor
    resolution: tuple[float, float, float]
    noise: float
    tight: bool
    seed: int


def plain_scanner(random: np.random.Generator) -> Scanner:
    """A good T1w scan at 3 T: mild bias and noise, small differences between subjects."""
    fluid, grey, white = T1W
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


def _draw(shape: tuple[int, ...], size: float, random: np.random.Generator) -> Tensor:
    return torch.from_numpy((size * random.standard_normal(shape)).astype(np.float32))


def render(tissues: Tensor, texture: Tensor, scanner: Scanner, contrast: float) -> Tensor:
    """A T1w image of deformed tissues.

    I = |R * (b sum_k m_k (1 + t_k) f_k) + n|: fractions f, means m, texture t, bias b, resolution R, noise n.

    Args:
        tissues: (1, 3, X, Y, Z) fractions of fluid, grey and white matter.
        texture: (1, 3, X, Y, Z), the scanner's texture deformed like the tissues.
        contrast: white-to-grey ratio relative to 25 years (the ageing law's).
    Returns:
        (1, 1, X, Y, Z); 0 outside the cranium.
    """
    shape = tuple(tissues.shape[2:])
    fluid, grey, white = scanner.means
    # Grey and white approach each other about their middle, so overall brightness stays.
    middle, half = (white + grey) / 2, (white / grey * contrast - 1) / (white / grey * contrast + 1)
    means = torch.tensor([fluid, middle * (1 - half), middle * (1 + half)]).view(1, 3, 1, 1, 1)
    image = (tissues * means * (1 + texture)).sum(1, keepdim=True)
    image = image * torch.exp(field.resize(scanner.bias, shape))
    cranium = tissues.sum(1, keepdim=True)
    for axis, width in enumerate(scanner.resolution):
        image = _blur_axis(image, axis, width * shape[axis] / field.BOX[axis])
    generator = torch.Generator().manual_seed(scanner.seed)
    noise = scanner.noise * torch.randn((2, *shape), generator=generator)
    return torch.sqrt((image + noise[None, :1]) ** 2 + noise[None, 1:] ** 2) * (cranium > 0.5)


def _blur_axis(image: Tensor, axis: int, width: float) -> Tensor:
    """Gaussian smoothing along one axis; width in voxels."""
    if width < 0.2:
        return image
    radius = max(1, round(3 * width))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / width) ** 2)
    view = [1, 1, 1, 1, 1]
    view[2 + axis] = -1
    padding = [radius if a == axis else 0 for a in range(3)]
    return torch.nn.functional.conv3d(image, (kernel / kernel.sum()).view(view), padding=padding)
