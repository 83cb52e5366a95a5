"""Templates: images of whole brains, one of which, moved and lit, a noisy latent is taken for.

Registered people differ above all in where things are. A network of convolutions has to know every fold at every place
it may come to lie; here it says where, and what lies there is kept once (Jaderberg et al. 2015, spatial transformers;
Dalca et al. 2019, learned deformable templates). All is learned by denoising alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from cftools import field
from cftools.diffusion.denoiser import Prediction, target
from cftools.diffusion.path import make_path
from cftools.nets.autoencoder import block_cosines, block_orders

#: Voxels of the templates along the side of a latent's: its eight channels are the cosines of 2 x 2 x 2 of them.
BLOCK = 2
#: Looks at a latent by halves of its resolution, and then at its own.
LOOKS = 2, 2
#: What an image and its slopes say, and where: force and information along each axis, what is left, the image, slopes.
SEEN = 3 + 3 + 1 + 1 + 3 + 3
#: Moves, millimetres along each axis, and the logarithm of a brightness.
SAID = 4
#: Variance of a latent about its template before training: of that between templates, by how many axes a channel
#: varies along, and at least so much; of one voxel.
LEFT, LEAST = (0.07, 0.2, 0.35, 0.5), 1e-3
MISFIT = 0.5
#: Of the likelihood of a template before training: a misplaced fold speaks against it more often than it is wrong.
BELIEF = 0.07
#: Voxels over which a force is felt, and the information in them at which half of it is believed.
VOXELS, ENOUGH = 64, 8.0
#: What a network's 1 is: millimetres, and the logarithm of a brightness.
UNITS = (4.0, 4.0, 4.0, 0.1)

#: (channels seen, channels said, widths) -> a network of x, the time's and the condition's.
Make = Callable[[int, int, tuple[int, ...]], nn.Module]


class Templates(nn.Module):
    """What a noisy latent shows, by one of a few images.

    Which of them is weighed by its likelihood; where it lies and how bright it is is looked at four times, twice by
    halves of the latent's resolution and twice at its own. At each look a network sees what pulls the image so far
    towards the latent, as demons do (Thirion 1998): slopes of the image times what is left, over the information in
    them.

    Latents are such as `Standard` gives, in units of the image, from a space whose channels are cosines of blocks of a
    coarser image (`autoencoder.Resampling`).

    Args:
        count: of the images; sides: of the latent, even.
        widths: of the network that looks, by level; all but the last see halves of the resolution.
        path: name of the noise path, one of a number of times.
        make: a network of so many inputs, outputs and widths.
    """

    cosines: Tensor
    log_alpha: Tensor

    def __init__(self, count: int, sides: tuple[int, ...], widths: tuple[int, ...], path: str, make: Make) -> None:
        super().__init__()
        known = make_path(path)
        assert known.times is not None, "as the architecture has it"
        log_alpha = [math.log(known.at((n + 1) / known.times)[0]) for n in range(known.times)]
        self.register_buffer("log_alpha", torch.tensor(log_alpha), persistent=False)
        self.register_buffer("cosines", block_cosines(BLOCK), persistent=False)
        self.images = nn.Parameter(torch.zeros(count, *(BLOCK * side for side in sides)))
        self.prior = nn.Parameter(torch.zeros(count))
        self.belief = nn.Parameter(torch.tensor(math.log(BELIEF)))
        self.misfit = nn.Parameter(torch.tensor(math.log(MISFIT)))
        self.left = nn.Parameter(torch.zeros(1, BLOCK**3, *sides))
        self.coarse = make(SEEN, SAID, widths[:-1])
        self.fine = make(SEEN, SAID, widths)

    def learn(self, latents: Tensor) -> None:
        """Begin with those of latents (count, 8, *sides) in units of the image, from which nothing was taken off."""
        share = latents.new_tensor([LEFT[sum(ks)] for ks in block_orders(BLOCK)]).view(1, -1, 1, 1, 1)
        apart = latents.var(0, correction=0, keepdim=True)
        around = functional.avg_pool3d(apart, 3, stride=1, padding=1)
        with torch.no_grad():
            self.images.copy_(self.image(latents)[:, 0])
            self.left.copy_((share * around).clamp_min(LEAST).log())

    def image(self, latents: Tensor) -> Tensor:
        """(B, 8, *sides) -> (B, 1, *2 sides)."""
        return functional.conv_transpose3d(latents, self.cosines, stride=BLOCK)

    def blocks(self, image: Tensor) -> Tensor:
        """(B, 1, *2 sides) -> (B, 8, *sides)."""
        return functional.conv3d(image, self.cosines, stride=BLOCK)

    def levels(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, (B, 1, 1, 1, 1) each, where the network is told this time, (B,)."""
        time = time.float().clamp(0, len(self.log_alpha) - 1)
        below = time.floor().long().clamp_max(len(self.log_alpha) - 2)
        logs = torch.lerp(self.log_alpha[below], self.log_alpha[below + 1], time - below)
        alpha, sigma = logs.exp(), (-torch.expm1(2 * logs)).sqrt()
        return alpha.view(-1, 1, 1, 1, 1), sigma.view(-1, 1, 1, 1, 1)

    def forward(
        self,
        x: Tensor,
        centre: Tensor,
        time: Tensor,
        tokens: Tensor | None,
        told: Tensor | None,
        share: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The template brought to where the latent lies, less the centre, (B, 8, *sides), in single precision.

        Args:
            x: x_t, (B, 8, *sides); centre: what was taken off it, (1, 8, *sides).
            time: (B,); tokens, told: as the denoiser's own network is told.
            share: of each template, (B, count), where it is known; else by how likely each is.
        Returns:
            That, and the share that each template had, (B, count).
        """
        kind = x.device.type
        as_asked = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
        with torch.autocast(kind, enabled=False):
            alpha, sigma = self.levels(time)
            noisy = self.image(x.float() + alpha * centre)
            weight = alpha / (sigma**2 + alpha**2 * self.misfit.exp())  # of what is left, over its variance
            sides = tuple(x.shape[2:])
            halves = tuple(side // 2 for side in sides)
            moved = noisy.new_zeros(len(x), SAID, *halves)
            units = moved.new_tensor(UNITS).view(1, -1, 1, 1, 1)
            for network, shape in (*[(self.coarse, halves)] * LOOKS[0], *[(self.fine, sides)] * LOOKS[1]):
                image = self._image(self._share(noisy, moved, alpha, weight) if share is None else share, moved)
                seen = _seen(noisy - alpha * image, image, alpha, weight, shape)
                with as_asked:
                    said = network(seen, timesteps=time, context=tokens, class_labels=told)
                moved = field.resize(moved, shape) + units * said.float()
            share = self._share(noisy, moved, alpha, weight) if share is None else share
            return self.blocks(self._image(share, moved)) - centre, share

    def expected(self, prediction: Prediction, x: Tensor, brought: Tensor, time: Tensor) -> Tensor:
        """What to predict if all that a latent has beside its template were noise of the variance that is left."""
        alpha, sigma = self.levels(time)
        left = self.left.exp()
        kept = alpha * left / (alpha**2 * left + sigma**2)
        x0 = brought + kept * (x - alpha * brought)
        return target(prediction, x0, (x - alpha * x0) / sigma, alpha, sigma)

    def _share(self, noisy: Tensor, moved: Tensor, alpha: Tensor, weight: Tensor) -> Tensor:
        """How likely each of them is, (B, count)."""
        images = self.images.flatten(1)
        there = field.warp(noisy, -moved[:, :3]).flatten(1)  # near enough the inverse, for moves this smooth
        likely = weight.flatten(1) * (there @ images.T - alpha.flatten(1) * images.square().sum(1) / 2)
        return (self.belief.exp() * likely + self.prior).softmax(1)

    def _image(self, share: Tensor, moved: Tensor) -> Tensor:
        """The templates by their share, moved and lit, (B, 1, *2 sides)."""
        mixed = (share @ self.images.flatten(1)).view(len(share), 1, *self.images.shape[1:])
        shape = tuple(mixed.shape[2:])
        return field.warp(mixed, moved[:, :3]) * field.resize(moved[:, 3:], shape).exp()


def _seen(left: Tensor, image: Tensor, alpha: Tensor, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What a network looks at, (B, SEEN, *shape): see `Templates`."""
    slopes = torch.cat([(image.roll(-1, axis) - image.roll(1, axis)) / 2 for axis in (2, 3, 4)], dim=1)
    voxels = math.prod(image.shape[2:]) // math.prod(shape)
    pool = partial(functional.avg_pool3d, kernel_size=image.shape[2] // shape[0])
    information = VOXELS * pool(alpha * weight * slopes**2)
    parts = [
        VOXELS * pool(weight * left * slopes) / (information + ENOUGH),
        information / (information + ENOUGH),
        voxels**0.5 * pool(left) / (1 + alpha),
        pool(image) / 4,
        2 * pool(slopes),
        2 * pool(slopes.abs()),
    ]
    return torch.cat(parts, dim=1)
