"""Spaces: what is encoded comes back, with the energy, the order and the sides that it should have."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cftools.errors import WeightsError
from cftools.facts import SpaceFacts
from cftools.nets import wavelet
from cftools.space import IdentitySpace, Space, VqSpace, make_space

EVEN = {2: (6, 4), 3: (4, 8, 6)}


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@dataclass
class Vae:
    """Stands in for an autoencoder: block means and block spreads; decodes to blocks of one value."""

    factor: int
    extra: int = 0  # voxels too many along the last axis

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocks = x
        for axis in range(2, x.ndim):
            blocks = blocks.unflatten(axis, (-1, self.factor)).movedim(axis + 1, -1)
        blocks = blocks.flatten(x.ndim)
        return blocks.mean(-1), blocks.std(-1, correction=0)

    def decode(self, z: Tensor) -> Tensor:
        for axis in range(2, z.ndim):
            z = z.repeat_interleave(self.factor, axis)
        return torch.cat([z, z[..., : self.extra]], dim=-1)


@dataclass
class Codebook:
    codes: Tensor  # (K, C)

    def quantize(self, encodings: Tensor) -> Tensor:
        apart = encodings.movedim(1, -1).unsqueeze(-2) - self.codes
        return apart.square().sum(-1).argmin(-1)

    def embed(self, indices: Tensor) -> Tensor:
        return self.codes[indices].movedim(-1, 1)


@dataclass
class Vq(Vae):
    quantizer: Codebook = field(default_factory=lambda: Codebook(torch.tensor([[-1.0], [0.25], [1.0]])))

    def encode(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().encode(x)[0]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_wavelet_is_orthonormal_and_reconstructs(dimensions: int, channels: int) -> None:
    x = image(2, channels, *EVEN[dimensions])
    z = wavelet.forward(x)
    assert z.shape == (2, channels * 2**dimensions, *(side // 2 for side in x.shape[2:]))
    torch.testing.assert_close(z.square().sum(), x.square().sum(), rtol=1e-14, atol=0)
    torch.testing.assert_close(wavelet.inverse(z), x, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(wavelet.forward(wavelet.inverse(z)), z, rtol=1e-14, atol=1e-14)
    single = x.float()
    assert (wavelet.inverse(wavelet.forward(single)) - single).abs().max() < 1e-6


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_wavelets_matrix_times_its_transpose_is_one(dimensions: int) -> None:
    sides = (2,) * dimensions
    count = 2**dimensions
    matrix = wavelet.forward(torch.eye(count, dtype=torch.float64).view(count, 1, *sides)).flatten(1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_bands_are_counted_with_the_first_axis_as_the_highest_digit(dimensions: int) -> None:
    names = wavelet.bands(dimensions)
    assert names[:2] == (("LL", "LH") if dimensions == 2 else ("LLL", "LLH")) and len(names) == 2**dimensions
    for index, name in enumerate(names):
        # 1, -1 along the axes that the band is high in: even minus odd is positive.
        rows = [torch.tensor([1.0, -1.0 if letter == "H" else 1.0]).repeat(2) for letter in name]
        x = torch.ones(1, 1, *[4] * dimensions)
        for axis, row in enumerate(rows):
            x = x * row.view(-1, *[1] * (dimensions - 1 - axis))
        z = wavelet.forward(torch.cat([0 * x, x], dim=1))
        expected = torch.zeros_like(z)
        expected[:, 2 * index + 1] = 2 ** (dimensions / 2)  # band * C + c, with C = 2 and c = 1
        torch.testing.assert_close(z, expected)


def test_levels_are_the_wavelet_of_every_band() -> None:
    x = torch.randn(2, 1, 8, 12, 4)
    twice = wavelet.forward(wavelet.forward(x))
    torch.testing.assert_close(wavelet.forward(x, 2), twice, rtol=0, atol=0)
    torch.testing.assert_close(wavelet.inverse(twice, 2), x)


def test_gradients_go_through_the_wavelet() -> None:
    x = image(1, 1, 4, 4).requires_grad_()
    (wavelet.forward(x)[:, 0].sum() * 3).backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1.5))


@pytest.mark.parametrize("shape", [(1, 1, 5, 4), (1, 1, 4, 4, 3), (1, 1, 0, 4), (1, 4, 4), (4, 4), (1,) * 6])
def test_what_the_wavelet_cannot_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"even sides, and|a wavelet is of images"):
        wavelet.forward(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 6, 4, 4, 4), (1, 2, 4, 4), (1, 0, 4, 4), (1, 8, 4)])
def test_what_the_inverse_cannot_take(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiple of (4|8) channels|a wavelet is of images"):
        wavelet.inverse(torch.zeros(shape))


SPACES: dict[str, tuple[SpaceFacts, object]] = {
    "identity 2D": (SpaceFacts("identity", (5, 7), 2, divisor=4), None),
    "identity 3D": (SpaceFacts("identity", (4, 4, 5), 1, divisor=2), None),
    "identity unpadded": (SpaceFacts("identity", (5, 3, 2), 1), None),
    "wavelet 2D": (SpaceFacts("wavelet", (6, 9), 4, factor=2, scale=0.5), None),
    "wavelet 3D": (SpaceFacts("wavelet", (5, 8, 6), 16, factor=2, divisor=4, scale=1 / 3), None),
    "vae 2D": (SpaceFacts("vae", (8, 12), 1, factor=4, divisor=2, scale=0.7), Vae(4)),
    "vae 3D": (SpaceFacts("vae", (8, 4, 12), 2, factor=4, divisor=2, scale=3.0), Vae(4)),
    "vq 2D": (SpaceFacts("vq", (8, 6), 1, factor=2, divisor=3, scale=2.0), Vq(2)),
    "vq 3D": (SpaceFacts("vq", (4, 8, 6), 1, factor=2), Vq(2)),
}


def lossless(name: str) -> bool:
    return name.startswith(("identity", "wavelet"))


@pytest.fixture(params=SPACES)
def case(request: pytest.FixtureRequest) -> tuple[Space, Tensor, bool]:
    """A space, an image that comes through it unchanged, and whether any image would."""
    facts, network = SPACES[request.param]
    space = make_space(facts, network)
    if lossless(request.param):
        channels = facts.channels // (2 ** len(facts.shape) if facts.kind == "wavelet" else 1)
        return space, image(2, channels, *facts.shape, dtype=torch.float32), True
    # Blocks of one code each: what these networks can tell, unless padding shifts the blocks.
    codes = torch.tensor([-1.0, 0.25, 1.0])[torch.arange(2 * math.prod(facts.latent_shape)) % 3]
    blocks = Vae(facts.factor).decode(codes.view(2, *facts.latent_shape))
    for axis, side in enumerate(facts.shape):
        blocks = blocks.narrow(2 + axis, 0, side)
    return space, blocks, False


def test_an_image_comes_back(case: tuple[Space, Tensor, bool]) -> None:
    space, x, exact = case
    mean, std = space.encode(x)
    assert mean.shape == std.shape == (2, *space.facts.latent_shape)
    assert all(side % space.facts.divisor == 0 for side in mean.shape[2:])
    assert exact is False or not std.any()
    padded = space.facts.padded != space.facts.shape
    if exact or not padded:
        assert space.decode(mean).shape == x.shape
        assert (space.decode(mean) - x).abs().max() < 2e-6


def test_spaces_without_networks_lose_nothing_to_padding() -> None:
    x = image(1, 1, 5, 6, 7)
    identity = make_space(SpaceFacts("identity", (5, 6, 7), 1, divisor=4))
    mean, _ = identity.encode(x)
    assert mean.shape == (1, 1, 8, 8, 8)
    assert identity.decode(mean).equal(x)
    # Half on each side, an odd voxel after, and the outermost voxels go on.
    assert mean[:, :, 1:6, 1:7, :7].equal(x)
    assert mean[:, :, 0, 1:7, :7].equal(x[:, :, 0]) and mean[:, :, 7, 1:7, :7].equal(x[:, :, 4])


def test_an_image_that_fits_is_not_copied() -> None:
    x = image(1, 1, 4, 8)
    mean, _ = IdentitySpace(SpaceFacts("identity", (4, 8), 1, divisor=4)).encode(x)
    assert mean.data_ptr() == x.data_ptr()


def test_the_full_grids_sides() -> None:
    full = SpaceFacts("vae", (160, 192, 176), 3, factor=8, divisor=4)
    assert full.latent_shape == (3, 20, 24, 24) and full.padded == (160, 192, 192)
    assert SpaceFacts("vae", (160, 192, 176), 3, factor=8).latent_shape == (3, 20, 24, 22)
    assert SpaceFacts("wavelet", (80, 96, 88), 8, factor=2, divisor=4).padded == (80, 96, 88)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_wdm_scales_the_lowest_band_alone(dimensions: int) -> None:
    sides, count = EVEN[dimensions], 2**dimensions
    x = image(1, 2, *sides)
    plain, _ = make_space(SpaceFacts("wavelet", sides, 2 * count, factor=2)).encode(x)
    scaled, _ = make_space(SpaceFacts("wavelet", sides, 2 * count, factor=2, scale=1 / 3)).encode(x)
    assert plain.equal(wavelet.forward(x))
    torch.testing.assert_close(scaled[:, :2], plain[:, :2] / 3)
    assert scaled[:, 2:].equal(plain[:, 2:])


def test_a_vae_scales_mean_and_std_alike() -> None:
    facts = SpaceFacts("vae", (8, 8, 4), 1, factor=4, scale=2.5)
    x = image(1, 1, 8, 8, 4)
    mean, std = make_space(facts, Vae(4)).encode(x)
    before = Vae(4).encode(x)
    torch.testing.assert_close(mean, before[0] * 2.5)
    torch.testing.assert_close(std, before[1] * 2.5)
    torch.testing.assert_close(make_space(facts, Vae(4)).decode(mean), Vae(4).decode(before[0]))


def test_a_padded_vae_sees_the_image_in_the_middle() -> None:
    facts = SpaceFacts("vae", (4, 4), 1, factor=2, divisor=4)  # one more latent on each side
    x = image(1, 1, 4, 4)
    mean, _ = make_space(facts, Vae(2)).encode(x)
    torch.testing.assert_close(mean[:, :, 1:3, 1:3], Vae(2).encode(x)[0])
    torch.testing.assert_close(make_space(facts, Vae(2)).decode(mean), Vae(2).decode(Vae(2).encode(x)[0]))


def test_tokens_and_codes() -> None:
    facts = SpaceFacts("vq", (4, 4, 4), 1, factor=2, scale=2.0)
    space = make_space(facts, Vq(2))
    assert isinstance(space, VqSpace)
    tokens = torch.arange(8).view(1, 2, 2, 2) % 3
    codes = space.codes(tokens)
    assert codes.shape == (1, 1, 2, 2, 2) and codes.flatten().tolist()[:3] == [-2.0, 0.5, 2.0]
    x = space.decode(codes)
    assert space.indices(x).equal(tokens)
    assert space.encode(x)[0].equal(codes) and not space.encode(x)[1].any()
    # What a denoiser leaves beside a code is decoded as that code.
    assert space.decode(codes + 0.3).equal(x)


def test_other_shapes_are_refused(case: tuple[Space, Tensor, bool]) -> None:
    space, x, _ = case
    sides = r"this space takes images of [0-9x ]+, not [0-9x ]+"
    with pytest.raises(ValueError, match=sides):
        space.encode(x[..., :-1])
    with pytest.raises(ValueError, match=sides):
        space.encode(x[0])
    z = torch.zeros(1, *space.facts.latent_shape)
    for bad in (z[..., :-1], z[:, :0], z[0]):
        with pytest.raises(ValueError, match="latents of this space are"):
            space.decode(bad)


@pytest.mark.parametrize("name", SPACES)
def test_other_channels_are_refused(name: str) -> None:
    facts, network = SPACES[name]
    with pytest.raises((ValueError, WeightsError), match=r"latents of this space are|facts promise"):
        make_space(facts, network).encode(torch.zeros(1, 5, *facts.shape))


def test_a_network_that_is_not_what_its_facts_say() -> None:
    facts = SpaceFacts("vae", (8, 8, 8), 1, factor=4)
    with pytest.raises(WeightsError, match=r"gives \(1, 1, 4, 4, 4\) where its facts promise \(B, 1, 2, 2, 2\)"):
        make_space(facts, Vae(2)).encode(torch.zeros(1, 1, 8, 8, 8))
    tokens = SpaceFacts("vq", (8, 8, 8), 1, factor=4)
    for space in (make_space(facts, Vae(4, extra=1)), VqSpace(tokens, Vq(4, extra=1))):
        with pytest.raises(WeightsError, match=r"gives \(1, 1, 8, 8, 9\)"):
            space.decode(torch.zeros(1, 1, 2, 2, 2))
    two = Vq(4, quantizer=Codebook(torch.zeros(3, 2)))
    with pytest.raises(WeightsError, match=r"facts promise \(B, 1, 2, 2, 2\)"):
        VqSpace(tokens, two).codes(torch.zeros(1, 2, 2, 2, dtype=torch.int64))


def test_networks_where_they_belong() -> None:
    with pytest.raises(WeightsError, match="kind vae needs"):
        make_space(SpaceFacts("vae", (8, 8), 1, factor=4))
    with pytest.raises(WeightsError, match="kind identity takes no"):
        make_space(SpaceFacts("identity", (8, 8), 1), Vae(4))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_padding_and_cropping_undo_each_other(data: st.DataObject) -> None:
    sides = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple))
    divisor = data.draw(st.integers(1, 5))
    kind, factor, bands = data.draw(st.sampled_from([("identity", 1, 1), ("wavelet", 2, 2 ** len(sides))]))
    facts = SpaceFacts(kind, sides, bands, factor, divisor)
    x = image(1, 1, *sides)
    mean, _ = make_space(facts).encode(x)
    assert all(side % divisor == 0 for side in mean.shape[2:])
    assert all(0 <= whole - side < factor * divisor for whole, side in zip(facts.padded, sides, strict=True))
    torch.testing.assert_close(make_space(facts).decode(mean), x, rtol=1e-13, atol=1e-13)


BAD_FACTS: dict[str, tuple[dict[str, Any], str]] = {
    "four sides": ({"shape": (4, 4, 4, 4)}, "2 or 3 sides"),
    "one side": ({"shape": (4,)}, "2 or 3 sides"),
    "a side beyond all scans": ({"shape": (4, 1 << 16, 4)}, "at most 65535"),
    "an empty side": ({"shape": (4, 0, 4)}, "1 or more"),
    "no channels": ({"channels": 0}, "1 or more"),
    "no factor": ({"factor": 0}, "1 or more"),
    "no divisor": ({"divisor": 0}, "1 or more"),
    "no scale": ({"scale": 0.0}, "scale must be above 0"),
    "scale not a number": ({"scale": math.nan}, "scale must be above 0"),
    "identity with a factor": ({"kind": "identity"}, "factor 1"),
    "identity with a scale": ({"kind": "identity", "factor": 1, "scale": 2.0}, "scale 1"),
    "wavelet with another factor": ({"kind": "wavelet", "channels": 8}, "factor 2"),
    "wavelet with too few bands": ({"kind": "wavelet", "channels": 4, "factor": 2}, "multiple of 8"),
}


@pytest.mark.parametrize("name", BAD_FACTS)
def test_facts_that_cannot_be(name: str) -> None:
    changes, message = BAD_FACTS[name]
    good: dict[str, Any] = {"kind": "vae", "shape": (8, 8, 8), "channels": 3, "factor": 4}
    SpaceFacts(**good)
    with pytest.raises(ValueError, match=message):
        SpaceFacts(**(good | changes))


def test_every_kind_has_2d_and_3d_cases() -> None:
    kinds = {(facts.kind, len(facts.shape)) for facts, _ in SPACES.values()}
    assert kinds == set(itertools.product(("identity", "wavelet", "vae", "vq"), (2, 3)))
