"""The spaces that models work in: an image to a latent and back.

A space is frozen and made of `SpaceFacts`, which training fixed and which every latent carries: nothing is remembered
from encode to decode. The image is padded, half on each side and with its outermost voxels going on, until the
latent's sides are multiples of `divisor` (a UNet that halves them twice needs 4: 160 x 192 x 176 at factor 8 is
20 x 24 x 22 and becomes 20 x 24 x 24); decode crops. Padding the image, not the latent, gives autoencoder and
denoiser what more field of view would have given them. An image that fits is not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cftools.errors import WeightsError
from cftools.facts import SpaceFacts
from cftools.nets import wavelet


class Space(Protocol):
    """What a diffusion model asks of a space; x is (B, C, *sides) as the facts have them, z is a latent."""

    @property
    def facts(self) -> SpaceFacts:
        """What training fixed."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the latent of an image, each (B, *facts.latent_shape)."""

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent, (B, C, *facts.shape)."""


class VaeNetwork(Protocol):
    """A variational autoencoder, such as MONAI's AutoencoderKL."""

    def encode(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """Mean and std, before scaling."""

    def decode(self, z: Tensor, /) -> Tensor:
        """The image."""


class Quantizer(Protocol):
    """A codebook."""

    def quantize(self, encodings: Tensor, /) -> Tensor:
        """Index of the nearest code, (B, C, *sides) -> (B, *sides) integer."""

    def embed(self, indices: Tensor, /) -> Tensor:
        """The codes, (B, *sides) -> (B, C, *sides)."""


class VqNetwork(Protocol):
    """A vector-quantised autoencoder, such as MONAI's VQVAE, in eval mode: in training its codebook moves."""

    @property
    def quantizer(self) -> Quantizer:
        """The codebook."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Encodings, before quantisation."""

    def decode(self, codes: Tensor, /) -> Tensor:
        """The image of codes."""


@dataclass(frozen=True)
class IdentitySpace:
    """Images as they are, z = x, std 0."""

    facts: SpaceFacts

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image, padded, and 0; see `Space`.

        Raises:
            ValueError: its channels or sides are not those of the facts.
        """
        return _exactly(_checked(_padded(x, self.facts), self.facts))

    def decode(self, z: Tensor) -> Tensor:
        """The latent, cropped; see `Space`.

        Raises:
            ValueError: its shape is not that of the facts.
        """
        return _cropped(_checked(z, self.facts), self.facts)


@dataclass(frozen=True)
class WaveletSpace:
    """The bands of one level of the Haar wavelet, std 0; half the sides, 2^d times the channels.

    z = W x with the lowest band multiplied by facts.scale. Neighbouring voxels are alike, so that band spreads 2^(d/2)
    times as wide as the image and the others hardly at all; WDM divides it by 3, scale = 1/3, before noise of unit
    variance is added to all, and multiplies it by 3 before the inverse. Their images are on [-1, 1].
    Friedrich et al. 2024, WDM: 3D wavelet diffusion models for high-resolution medical image synthesis, and their code.
    """

    facts: SpaceFacts

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bands in the order of `nets.wavelet`, and 0; see `Space`.

        Raises:
            ValueError: channels or sides are not those of the facts.
        """
        z = wavelet.forward(_padded(x, self.facts))
        return _exactly(_checked(z, self.facts) * self._scales(z))

    def decode(self, z: Tensor) -> Tensor:
        """The image of the bands, cropped; see `Space`.

        Raises:
            ValueError: its shape is not that of the facts.
        """
        return _cropped(wavelet.inverse(_checked(z, self.facts) / self._scales(z)), self.facts)

    def _scales(self, z: Tensor) -> Tensor:
        """(C, 1, ...): facts.scale in the lowest band, whose channels come first, and 1 in the others."""
        dimensions = len(self.facts.shape)
        scales = z.new_ones(self.facts.channels, *[1] * dimensions)
        scales[: self.facts.channels // 2**dimensions] = self.facts.scale
        return scales


@dataclass(frozen=True)
class VaeSpace:
    """The latents of a variational autoencoder, z = scale E(x), std = scale S(x), x = D(z / scale).

    scale is 1 over the spread of the training set's latents, Rombach et al. 2022, High-resolution image synthesis
    with latent diffusion models, appendix G; the std goes with the mean, so that noise is drawn when it is
    wanted and not baked into what is stored.
    """

    facts: SpaceFacts
    network: VaeNetwork

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the latent; see `Space`.

        Raises:
            ValueError: the image's sides are not those of the facts.
            WeightsError: the network's latents are not what the facts promise.
        """
        mean, std = self.network.encode(_padded(x, self.facts))
        for latent in (mean, std):
            _check_network(latent, self.facts.latent_shape)
        return mean * self.facts.scale, std * self.facts.scale

    def decode(self, z: Tensor) -> Tensor:
        """The image of a latent, cropped; see `Space`.

        Raises:
            ValueError: its shape is not that of the facts.
            WeightsError: the network's images are not what the facts promise.
        """
        x = self.network.decode(_checked(z, self.facts) / self.facts.scale)
        _check_network(x, (*x.shape[1:2], *self.facts.padded))
        return _cropped(x, self.facts)


@dataclass(frozen=True)
class VqSpace:
    """The codes of a vector-quantised autoencoder, z = scale e_k with e_k the code nearest to E(x), std 0.

    van den Oord et al. 2017, Neural discrete representation learning. For transformers, `indices` and `codes`.
    """

    facts: SpaceFacts
    network: VqNetwork

    def indices(self, x: Tensor) -> Tensor:
        """The tokens of an image, (B, *sides) integer.

        Raises:
            ValueError: the image's sides are not those of the facts.
            WeightsError: the network's encodings are not what the facts promise.
        """
        encodings = self.network.encode(_padded(x, self.facts))
        _check_network(encodings, self.facts.latent_shape)
        return self.network.quantizer.quantize(encodings)

    def codes(self, indices: Tensor) -> Tensor:
        """The latent of tokens, (B, *sides) -> (B, *facts.latent_shape)."""
        codes = self.network.quantizer.embed(indices)
        _check_network(codes, self.facts.latent_shape)
        return codes * self.facts.scale

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The codes of an image, and 0; see `Space`. Errors as `indices`."""
        return _exactly(self.codes(self.indices(x)))

    def decode(self, z: Tensor) -> Tensor:
        """The image of the codes nearest to a latent, cropped; see `Space`.

        Raises:
            ValueError: its shape is not that of the facts.
            WeightsError: the network's images are not what the facts promise.
        """
        indices = self.network.quantizer.quantize(_checked(z, self.facts) / self.facts.scale)
        x = self.network.decode(self.network.quantizer.embed(indices))
        _check_network(x, (*x.shape[1:2], *self.facts.padded))
        return _cropped(x, self.facts)


def make_space(facts: SpaceFacts, network: Any = None) -> Space:
    """The space that the facts speak of.

    Args:
        network: a `VaeNetwork` or a `VqNetwork`, in eval mode, for these two kinds; the others take none.
    Raises:
        WeightsError: a network is needed and there is none, or the other way round.
    """
    if (network is not None) != (facts.kind in ("vae", "vq")):
        what = "needs the weights of a network" if network is None else "takes no weights of a network"
        raise WeightsError(f"a space of kind {facts.kind} {what}: check the weights for the role space")
    if facts.kind == "vae":
        return VaeSpace(facts, network)
    if facts.kind == "vq":
        return VqSpace(facts, network)
    return WaveletSpace(facts) if facts.kind == "wavelet" else IdentitySpace(facts)


def pooled(facts: SpaceFacts, mask: Tensor) -> Tensor:
    """A mask on the image, (B, 1, *facts.shape), as it lies in the latent, (B, 1, *sides): 1 where any of it is."""
    if tuple(mask.shape[2:]) != facts.shape:
        raise ValueError(f"this space has images of {_by(facts.shape)}, not {_by(mask.shape[2:])}")
    padded = F.pad(mask, [n for pair in reversed(_padding(facts)) for n in pair])
    pool = F.max_pool3d if mask.ndim == 5 else F.max_pool2d
    return pool(padded, facts.factor)


def _padding(facts: SpaceFacts) -> list[tuple[int, int]]:
    """Voxels before and after along each axis; an odd one goes after."""
    missing = [whole - side for whole, side in zip(facts.padded, facts.shape, strict=True)]
    return [(n // 2, n - n // 2) for n in missing]


def _padded(x: Tensor, facts: SpaceFacts) -> Tensor:
    if tuple(x.shape[2:]) != facts.shape:
        raise ValueError(f"this space takes images of {_by(facts.shape)}, not {_by(x.shape[2:])}")
    padding = _padding(facts)
    if not any(map(any, padding)):
        return x
    return F.pad(x, [n for pair in reversed(padding) for n in pair], mode="replicate")


def _cropped(x: Tensor, facts: SpaceFacts) -> Tensor:
    for axis, ((before, _), side) in enumerate(zip(_padding(facts), facts.shape, strict=True)):
        x = x.narrow(2 + axis, before, side)
    return x


def _checked(z: Tensor, facts: SpaceFacts) -> Tensor:
    if tuple(z.shape[1:]) != facts.latent_shape:
        raise ValueError(f"latents of this space are (B, {_list(facts.latent_shape)}), not ({_list(z.shape)})")
    return z


def _check_network(out: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(out.shape[1:]) != expected:
        found = f"({_list(out.shape)}) where its facts promise (B, {_list(expected)})"
        raise WeightsError(f"the network of the space gives {found}: use the weights that go with the facts")


def _exactly(mean: Tensor) -> tuple[Tensor, Tensor]:
    return mean, torch.zeros_like(mean)


def _by(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def _list(sides: tuple[int, ...]) -> str:
    return ", ".join(map(str, sides))
