"""Deformations: what they must satisfy whatever the field."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cftools import field

SHAPE = (40, 48, 44)


@pytest.fixture(scope="module")
def velocity() -> torch.Tensor:
    noise = torch.randn((1, 3, *SHAPE), generator=torch.Generator().manual_seed(0))
    smooth = field.blur(noise, 14.0)
    return smooth * (2.5 / smooth.std())


def inner(image: torch.Tensor) -> torch.Tensor:
    return image[..., 6:-6, 6:-6, 6:-6]


def test_grids_of_one_box_share_a_field() -> None:
    coarse, fine = field.identity(SHAPE), field.identity((80, 96, 88))
    torch.testing.assert_close(torch.nn.functional.avg_pool3d(fine[None], 2)[0], coarse, atol=1e-4, rtol=0)


def test_zero_field_changes_nothing() -> None:
    image = torch.rand((1, 2, *SHAPE))
    torch.testing.assert_close(field.warp(image, torch.zeros(1, 3, *SHAPE)), image, atol=1e-5, rtol=0)


def test_warp_pulls_back_in_millimetres() -> None:
    image = torch.rand((1, 1, *SHAPE))
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 1] = 8.0  # two voxels of 4 mm along y
    torch.testing.assert_close(field.warp(image, shift)[..., :-2, :], image[..., 2:, :], atol=1e-4, rtol=0)


def test_compose_is_one_warp_after_the_other(velocity: torch.Tensor) -> None:
    first, then = field.exponential(velocity), field.exponential(-0.5 * velocity.flip(1))
    image = field.blur(torch.rand((1, 1, *SHAPE)), 10.0)
    once = field.warp(image, field.compose(first, then))
    twice = field.warp(field.warp(image, first), then)
    assert (inner(once - twice)).abs().max() < 0.02 * (image.max() - image.min())


def test_exponential_of_the_negative_is_the_inverse(velocity: torch.Tensor) -> None:
    left = field.compose(field.exponential(velocity), field.exponential(-velocity))
    assert inner(left).abs().mean() < 0.05
    assert inner(field.exponential(velocity)).abs().max() > 3


def test_exponential_is_a_flow(velocity: torch.Tensor) -> None:
    half = field.exponential(velocity / 2)
    assert inner(field.compose(half, half) - field.exponential(velocity)).abs().max() < 0.1


def test_jacobian_of_an_affine() -> None:
    points = field.identity(SHAPE)
    scale = torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1, 1)
    determinant = field.jacobian((points * scale)[None])
    np.testing.assert_allclose(determinant.numpy(), 1.1 * 0.8 * 1.3, rtol=1e-4)


def test_blur_keeps_the_sum_and_has_its_width() -> None:
    image = torch.zeros(1, 1, *SHAPE)
    image[0, 0, 20, 24, 22] = 1
    blurred = field.blur(image, 8.0)
    x = (torch.arange(40) - 20) * 4.0
    along = blurred.sum((3, 4))[0, 0]
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-3)
    assert float((along * x**2).sum()) == pytest.approx(64, rel=0.02)
