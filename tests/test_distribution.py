"""Distances between sets and the diversity of one, against closed forms and torchmetrics."""

from __future__ import annotations

from dataclasses import astuple
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import _compute_fid

from cftools.errors import InputError, WeightsError
from cftools.nets.medicalnet import load_medicalnet
from cftools.score.distribution import fid, frechet_distance, kid
from cftools.score.diversity import all_pairs, mean_of_pairs
from cftools.score.image import MS_SSIM_BETAS, Pyramid, mean_absolute, ms_ssim_weights, ssim
from cftools.score.table import REFERENCE, Score, Value, averaged, reproduction, row


def names(count: int, each: int = 1) -> list[str]:
    return [f"sub-{number // each}" for number in range(count)]


def test_the_distance_of_gaussians_is_the_closed_form() -> None:
    random = np.random.default_rng(0)
    spread = np.array([1.0, 2.0, 0.5])
    first, second = random.normal(0, spread, (60_000, 3)), random.normal(1, 2 * spread, (60_000, 3))
    # Diagonal covariances commute: |m|^2 + sum (s_1 - s_2)^2.
    assert frechet_distance(first, second) == pytest.approx(3 + (spread**2).sum(), rel=0.03)


@pytest.mark.parametrize(("n", "m", "size"), [(40, 60, 8), (6, 9, 20), (30, 5, 12)])
def test_the_distance_is_torchmetrics(n: int, m: int, size: int) -> None:
    random = np.random.default_rng(n)
    sets = [random.normal(size=(count, size)) @ random.normal(size=(size, size)) for count in (n, m)]
    tensors = [torch.from_numpy(each) for each in sets]
    expected = _compute_fid(tensors[0].mean(0), tensors[0].T.cov(), tensors[1].mean(0), tensors[1].T.cov())
    assert frechet_distance(*sets) == pytest.approx(float(expected), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself() -> None:
    features = np.random.default_rng(0).normal(size=(12, 30)).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 1) == pytest.approx(30, rel=1e-5)
    with pytest.raises(InputError, match="FID needs 2 images"):
        frechet_distance(features, features[:1])


def test_fid_has_an_interval_over_people() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=(40, 5)), random.normal(0.7, size=(60, 5))
    found = fid(first, second, [names(40), names(60)])
    assert found.low < found.ours < found.high and found.ours == frechet_distance(first, second)
    # Three images of each of twenty people say less than sixty people do.
    shared = np.repeat(second[:20], 3, axis=0) + random.normal(0, 1e-3, (60, 5))
    wide, narrow = (fid(first, shared, [names(40), names(60, each)]) for each in (3, 1))
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)
    alone = fid(first, second, [names(40), ["sub-1"] * 60])
    assert alone.ours == found.ours and np.isnan([alone.low, alone.high]).all()


def test_the_intervals_cover() -> None:
    """Of the distance that sets of this size have on average, whose truth is measured on many."""
    random = np.random.default_rng(2)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        return random.normal(size=(40, 3)), random.normal(0.8, 1.2, size=(40, 3))

    expected = np.mean([frechet_distance(*draw()) for _ in range(400)])
    truth = kid_truth()
    covered: dict[str, list[bool]] = {"fid": [], "kid": []}
    for trial in range(60):
        first, second = draw()
        far = fid(first, second, [names(40), names(40)], trial)
        covered["fid"].append(bool(far.low <= expected <= far.high))
        near = kid(first, second, trial)
        covered["kid"].append(bool(near.low <= truth <= near.high))
    hits = {name: sum(each) for name, each in covered.items()}
    assert min(hits.values()) >= 51, hits  # of 60; at 95 % about 57, and under 51 once in a thousand


def kid_truth() -> float:
    """The kernel distance of those two Gaussians, from far more draws than any set has."""
    random = np.random.default_rng(3)
    first, second = random.normal(size=(4000, 3)), random.normal(0.8, 1.2, size=(4000, 3))

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one @ other.T / 3 + 1) ** 3

    inner = sum(
        (kernel(each, each).sum() - np.diag(kernel(each, each)).sum()) / (4000 * 3999) for each in (first, second)
    )
    return float(inner - 2 * kernel(first, second).mean())


def test_kid_is_unbiased() -> None:
    """Of two sets of one distribution it is 0 on average, however small they are; FID is not."""
    random = np.random.default_rng(4)
    found = [kid(random.normal(size=(10, 4)), random.normal(size=(14, 4)), trial).ours for trial in range(150)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error
    assert np.mean(found) + 3 * error < 0.3 < kid(random.normal(size=(20, 4)), random.normal(1, size=(20, 4))).ours
    with pytest.raises(InputError, match="KID needs 4 images"):
        kid(np.zeros((3, 4)), np.zeros((9, 4)))


def volumes(count: int, side: int = 24) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    shared = random.uniform(0, 80, (side,) * 3)
    return [(shared + random.uniform(0, 40, (side,) * 3)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize("room", [1 << 30, 1])  # all at once, and one in a block
def test_all_pairs_are_torchmetrics(room: int) -> None:
    images = volumes(4)
    largest = float(max(image.max() for image in images))
    loads: list[int] = []

    def load(index: int) -> np.ndarray:
        loads.append(index)
        return images[index]

    told: list[tuple[int, int]] = []
    found = all_pairs(load, 4, largest, room, lambda done, total: told.append((done, total)), threads=2)
    assert np.array_equal(found, all_pairs(images.__getitem__, 4, largest), equal_nan=True), "however many threads"
    betas = tuple(beta / sum(MS_SSIM_BETAS[:2]) for beta in MS_SSIM_BETAS[:2])
    assert ms_ssim_weights(images[0].shape) == betas
    for i, j in combinations(range(4), 2):
        one, other = (torch.from_numpy(images[k])[None, None] for k in (i, j))
        expected = multiscale_structural_similarity_index_measure(one, other, data_range=largest, betas=betas)
        assert found[i, j] == found[j, i] == pytest.approx(float(expected), abs=1e-4)
    assert np.isnan(np.diag(found)).all() and told[-1] == (6, 6)
    assert len(loads) == (5 if room > 1 else 1 + 4 + 6)
    with pytest.raises(InputError, match="2 images or more"):
        all_pairs(load, 1, largest)


def test_the_mean_of_pairs_counts_no_image_with_itself() -> None:
    table = np.array([[np.nan, 0.5, 0.7], [0.5, np.nan, 0.6], [0.7, 0.6, np.nan]])
    found = mean_of_pairs(table, names(3))
    assert found.ours == pytest.approx(0.6)
    assert 0.5 <= found.low <= found.ours <= found.high <= 0.7
    same = np.full((6, 6), 0.8)
    np.fill_diagonal(same, np.nan)
    assert astuple(mean_of_pairs(same, names(6, 2))) == pytest.approx((0.8, 0.8, 0.8))
    assert np.isnan(mean_of_pairs(table, ["a", "a", "b"]).low)
    alike = np.full((40, 40), 0.6)  # two images each of 20 people, who are like themselves
    for person in range(20):
        alike[2 * person : 2 * person + 2, 2 * person : 2 * person + 2] = 0.9
    np.fill_diagonal(alike, np.nan)
    found = mean_of_pairs(alike, names(40, 2))
    # 20 pairs of one person and 760 of two; the share hardly changes from one resample to the next.
    assert found.ours == pytest.approx((20 * 0.9 + 760 * 0.6) / 780)
    assert found.ours - 0.001 < found.low <= found.high < found.ours + 0.001


def test_ssim_is_torchmetrics() -> None:
    one, other = volumes(2)
    expected = structural_similarity_index_measure(
        torch.from_numpy(one)[None, None], torch.from_numpy(other)[None, None], sigma=1.5, data_range=100.0
    )
    assert isinstance(expected, torch.Tensor)
    assert ssim(Pyramid.of(one), Pyramid.of(other), 100.0) == pytest.approx(float(expected), abs=1e-4)
    assert ssim(Pyramid.of(one), Pyramid.of(one), 100.0) == pytest.approx(1, abs=1e-6)
    assert mean_absolute(one, one + np.float32(2)) == pytest.approx(2, rel=1e-5)


def published(path: Path, depth: str = "basic", kind: str = "B", bias: bool = False) -> ResNet:
    """A random network in a file that looks like MedicalNet's: another prefix, and the head of its segmentation."""
    torch.manual_seed(0)
    network = ResNet(
        depth, [1, 1, 1, 1], [64, 128, 256, 512], n_input_channels=1, shortcut_type=kind, bias_downsample=bias,
        feed_forward=False,
    )  # fmt: skip
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": {**state, "module.conv_seg.0.weight": torch.zeros(2)}, "epoch": 3}, path)
    return network.eval()


@pytest.mark.parametrize(
    ("depth", "kind", "bias", "size"),
    [("basic", "B", False, 512), ("basic", "A", False, 512), ("bottleneck", "B", False, 2048)],
)
def test_published_keys_of_medicalnet_load(depth: str, kind: str, bias: bool, size: int, tmp_path: Path) -> None:
    path = tmp_path / "resnet_10_23dataset.pth"
    expected = published(path, depth, kind, bias)
    network = load_medicalnet(path)
    # The authors' strides and dilations, by hand on MONAI's own blocks: an eighth of each side from level 2 on.
    image = torch.rand(1, 1, 33, 40, 32)
    with torch.inference_mode():
        found = network(image)
        x = torch.conv3d(image, expected.conv1.weight, stride=2, padding=3)
        x = expected.layer2(expected.layer1(expected.maxpool(expected.act(expected.bn1(x)))))
        for level, dilation in ((expected.layer3, 2), (expected.layer4, 4)):
            x = by_hand(level[0], x, dilation)
        assert x.shape[2:] == (5, 5, 4)
    assert found.shape == (1, size) and torch.allclose(found, x.mean((2, 3, 4)), rtol=1e-4, atol=1e-5)


def by_hand(block: Any, x: Tensor, dilation: int) -> Tensor:
    """One residual block without a stride, its convolutions of 3 voxels dilated."""
    convolutions = [
        (getattr(block, f"conv{n}"), getattr(block, f"bn{n}")) for n in (1, 2, 3) if hasattr(block, f"conv{n}")
    ]
    y = x
    for number, (layer, norm) in enumerate(convolutions):
        reach = dilation if layer.kernel_size[0] == 3 else 0
        y = norm(torch.conv3d(y, layer.weight, padding=reach, dilation=max(reach, 1)))
        y = torch.relu(y) if number + 1 < len(convolutions) else y
    if isinstance(block.downsample, nn.Sequential):
        shortcut: list[Any] = list(block.downsample.children())
        convolution, norm = shortcut
        short = norm(torch.conv3d(x, convolution.weight, convolution.bias))
    else:
        short = torch.cat([x, x.new_zeros(1, y.shape[1] - x.shape[1], *x.shape[2:])], dim=1)
    return torch.relu(y + short)


def test_what_is_no_file_of_medicalnet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    with pytest.raises(WeightsError, match="no such file"):
        load_medicalnet(path)
    path.write_bytes(b"not torch")
    with pytest.raises(WeightsError, match="no file of PyTorch tensors"):
        load_medicalnet(path)
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match="holds no ResNet"):
        load_medicalnet(path)
    published(path)
    whole = torch.load(path, weights_only=True)
    whole["state_dict"]["module.bn1.weight"] = torch.zeros(3)
    torch.save(whole, path)
    with pytest.raises(WeightsError, match="not those of MedicalNet"):
        load_medicalnet(path)
    torch.save({"run": Path("anything")}, path)
    with pytest.raises(WeightsError, match="no file of PyTorch tensors"):
        load_medicalnet(path)


def test_means_go_by_change_and_person() -> None:
    values = [
        Value(f"sub-{person}", setting, "age_mae", person + step, 10.0)
        for person in range(4)
        for step, setting in enumerate(["agePlus10", "ageMinus60", "agePlus2p5"])
    ]
    values.append(Value("sub-9", "agePlus10", "age_mae", float("nan")))
    rows = averaged("mine", values)
    assert [one.setting for one in rows] == ["ageMinus60", "agePlus2p5", "agePlus10", "overall"]
    assert [one.ours for one in rows] == pytest.approx([2.5, 3.5, 1.5, 2.5])
    assert all(one.low < one.ours < one.high and one.nothing == 10 and one.n == 4 for one in rows)
    only = averaged("mine", [Value("sub-0", REFERENCE, "sex_accuracy", 1.0)])
    assert len(only) == 1 and np.isnan(only[0].low) and np.isnan(only[0].nothing)


def test_a_reproduction_has_one_shape() -> None:
    score = Score("folder", "agePlus30", "age_mae", 3.0, float("nan"), 4.0, 9.0, 12)
    facts = reproduction("make reproduce-cdm", {"seed": 3, "n": 12}, [row("2", score, 9.97, method="cdm")], "2 cores")
    assert list(facts) == ["command", "date", "machine", "cohort", "rows"]
    assert facts["rows"] == [
        {
            "table": "2",
            "method": "cdm",
            "setting": "agePlus30",
            "metric": "age_mae",
            "ours": 3.0,
            "low": None,
            "high": 4.0,
            "paper": 9.97,
        }
    ]
