"""How a scan may look that shows the same brain: drawn at random on the device where the images are.

All draws come from the device's own generator, which the training loop seeds at every step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from cftools.nets.regressor import EDGE

#: Standard deviations of the log of a power of the intensities, and of a smooth gain over the image.
POWER, GAIN = 0.15, 0.08
#: The most voxels by which a brain's edge is cut back: scans are stripped more or less tightly.
CUT = 1
#: The most there is of each kind of damage: blur, voxels (standard deviation); noise and a checkerboard, of 1, the
#: bright tissue's intensity. Autoencoders blur, diffusion cut short leaves noise, transposed convolutions checkers.
DAMAGES = {"blur": 1.5, "noise": 0.1, "checkers": 0.1}
_REACH = 4  # voxels to either side of which a blur takes the mean


def bent(images: Tensor) -> Tensor:
    """Images (B, 1, X, Y, Z) with brightness and contrast of their own, anew each time; background stays 0."""
    shape = (len(images), 1, 1, 1, 1)
    power = (torch.randn(shape, device=images.device) * POWER).exp()
    coarse = torch.randn((len(images), 1, 3, 3, 3), device=images.device) * GAIN
    gain = functional.interpolate(coarse, images.shape[2:], mode="trilinear", align_corners=True).exp()
    return images.clamp_min(0) ** power * gain


def cut_back(images: Tensor) -> Tensor:
    """Images (B, 1, X, Y, Z) with 0 to CUT voxels of the brain's edge taken off each."""
    outside = (images <= EDGE).to(images.dtype)
    depth = torch.randint(0, CUT + 1, (len(images), 1, 1, 1, 1), device=images.device)
    for done in range(CUT):
        grown = functional.max_pool3d(outside, 3, stride=1, padding=1)
        outside = torch.where(depth > done, grown, outside)
    return images * (1 - outside)


def damaged(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 1, X, Y, Z), each with every second kind of DAMAGES on average, and how much of each, (B, 3) in 0..1.

    The background of a stripped scan stays 0.
    """
    count, device = len(images), images.device
    parts = torch.rand((count, len(DAMAGES)), device=device) * (torch.rand((count, len(DAMAGES)), device=device) < 0.5)
    most = torch.tensor(list(DAMAGES.values()), device=device)
    blur, noise, checkers = (parts * most).view(count, -1, 1, 1, 1, 1).unbind(1)
    axes = [torch.arange(side, device=device) for side in images.shape[2:]]
    signs = 1 - 2 * ((axes[0][:, None, None] + axes[1][:, None] + axes[2]) % 2)
    seen = blurred(images, blur.flatten()) + noise * torch.randn_like(images) + checkers * signs
    return seen.clamp_min(0) * (images > EDGE), parts


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, 1, X, Y, Z) under Gaussians of their own, (B,) standard deviations in voxels."""
    places = torch.arange(-_REACH, _REACH + 1, device=images.device)
    taps = (-0.5 * (places / sigma.clamp_min(1e-3)[:, None]) ** 2).exp()
    taps = (taps / taps.sum(1, keepdim=True)).to(images.dtype)
    seen = images.transpose(0, 1)  # a channel each, so that each has its own taps
    for axis in range(3):
        size, margin = [1, 1, 1], [0, 0, 0]
        size[axis], margin[axis] = len(places), _REACH
        seen = functional.conv3d(seen, taps.view(-1, 1, *size), padding=margin, groups=len(images))
    return seen.transpose(0, 1)
