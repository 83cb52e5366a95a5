"""What the brain mask's network learns from: heads in any contrast and pose, with the brain where it truly is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cftools import weights
from cftools.errors import VolumeError
from cftools.heads import HEAD_GRID, BrainFinder
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.train import brainmask
from cftools.train.brainmask import (
    FIRST_MATERIAL,
    KEPT,
    CodedHead,
    Heads,
    coded_real,
    coded_simulated,
    look,
    real_head,
)
from cftools.volume import Volume


@pytest.fixture(scope="module")
def family() -> Family:
    return Family([template_anatomy()], load_law("normative"), varied=True)


def ball_head(letters: int = 1) -> tuple[Volume, Volume]:
    """A head of 18 cm with a brain of 12 cm, its labels hollow, stored from right to left where asked."""
    x, y, z = np.mgrid[-50:50, -55:55, -50:50] * 2.0
    radius = np.sqrt(x**2 + y**2 + z**2)
    image = np.select([radius < 60, radius < 70, radius < 90], [600.0, 50.0, 900.0], 0.0)
    labels = 7.0 * ((radius < 60) & (radius > 20))
    affine = np.diag([2.0 * letters, 2, 2, 1])
    return Volume.from_array(image[::letters], affine), Volume.from_array(labels[::letters], affine)


def litres(share: Tensor | np.ndarray) -> float:
    return float(share.sum()) * 8e-6


@pytest.mark.parametrize("letters", [1, -1])
def test_a_real_head_is_kept_with_its_brain_filled(letters: int) -> None:
    image, labels = ball_head(letters)
    head = real_head(image, labels)
    assert tuple(head.shape) == (2, *KEPT)
    assert litres(head[1]) == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)
    inside = head[0][head[1] > 0.5]
    assert inside.median() == pytest.approx(600 / 900, abs=0.02)
    coded = coded_real(head)
    assert coded.real and np.median(coded.codes[coded.brain]) == pytest.approx(170, abs=5)


def test_labels_on_another_grid_are_refused() -> None:
    image, labels = ball_head()
    with pytest.raises(VolumeError, match="is not on the grid of"):
        real_head(image, Volume.from_array(labels.array, np.diag([2.1, 2, 2, 1])))


def test_a_simulated_head_has_its_brain_inside_its_skull(family: Family) -> None:
    head = coded_simulated(family, 0, 0)
    assert 1.2 < litres(head.brain) < 3.0
    assert (head.codes[head.brain] < FIRST_MATERIAL).mean() > 0.99
    skull = head.codes < FIRST_MATERIAL
    assert 0.85 < head.brain.sum() / skull.sum() < 0.99, "without the fluid around it"
    assert len(np.unique(head.codes)) > 100  # partial volumes
    np.testing.assert_array_equal(coded_simulated(family, 0, 0).codes, head.codes)


def test_items_are_the_same_each_time_and_differ_from_each_other(family: Family) -> None:
    image, labels = ball_head()
    heads, same = (Heads(family, [real_head(image, labels)], 3, 1, 0.5) for _ in range(2))
    items = [heads[0], same[0], heads[1], heads[2]]
    shape = (1, 1, *HEAD_GRID.shape)
    for item in items:
        assert tuple(item["image"].shape) == shape and item["image"].dtype == torch.float32
        assert float(item["image"].min()) >= -0.2 and float(item["image"].max()) <= 1.5
        torch.testing.assert_close(item["fractions"].sum(1, keepdim=True), torch.ones(shape))
        assert 0.4 < litres(item["fractions"][:, 1]) < 3.0
    assert torch.equal(items[0]["image"], items[1]["image"])
    assert not torch.equal(items[1]["image"], items[2]["image"])


def test_the_brain_is_where_the_image_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and in a fixed contrast, a threshold finds it, however the head was turned."""
    image, labels = ball_head()
    head = coded_real(real_head(image, labels))
    monkeypatch.setattr(brainmask, "_real_lookup", lambda random: np.linspace(0, 1, 256, dtype=np.float32))
    monkeypatch.setattr(brainmask, "_scanned", lambda image, random: image)
    monkeypatch.setattr(brainmask, "normalised_head", lambda image: image)
    for seed in range(3):
        seen, brain = look(head, np.random.default_rng(seed))
        grey = (seen > 0.5) & (seen < 0.8)
        agree = 2 * (grey & (brain > 0.5)).sum() / (grey.sum() + (brain > 0.5).sum())
        assert agree > 0.9


def test_simulated_heads_come_smaller_than_mni152(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = ball_head()
    real = coded_real(real_head(image, labels))
    simulated = CodedHead(real.codes, real.brain, real.middle, real=False)
    ramp = np.linspace(0, 1, 256, dtype=np.float32)
    for name in ("_real_lookup", "_simulated_lookup"):
        monkeypatch.setattr(brainmask, name, lambda random: ramp)
    monkeypatch.setattr(brainmask, "_field_of_view", lambda shape, random: np.ones(tuple(shape), np.float32))
    sizes = {
        head.real: np.mean([litres(look(head, np.random.default_rng(seed))[1]) for seed in range(4)])
        for head in (real, simulated)
    }
    assert sizes[False] == pytest.approx(sizes[True] * np.exp(-3 * 0.11), rel=0.02)


def test_a_real_heads_air_stays_dark_in_every_contrast() -> None:
    for seed in range(10):
        lookup = brainmask._real_lookup(np.random.default_rng(seed))
        assert lookup[0] == 0 and lookup.min() >= 0 and lookup.max() <= 1.01
        simulated = brainmask._simulated_lookup(np.random.default_rng(seed))
        assert simulated[50] == pytest.approx((simulated[0] + simulated[100]) / 2, rel=1e-3)
        assert simulated[FIRST_MATERIAL] <= 0.05


def test_cf_train_makes_weights_that_find_brains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cftools.cli.train import main

    image, labels = ball_head()
    for name in ("sub-1", "sub-2"):
        (tmp_path / f"{name}/anat").mkdir(parents=True)
        image.save(tmp_path / f"{name}/anat/{name}_T1w.nii.gz")
    (tmp_path / "derivatives/truth2/sub-1/anat").mkdir(parents=True)
    labels.save(tmp_path / "derivatives/truth2/sub-1/anat/sub-1_desc-all_dseg.nii.gz")
    words = ["--preset", "brainmask", "--real", str(tmp_path), "--source", "balls", "--threads", "1", "--workers", "0"]
    small = ["--set", "network.channels=[2, 4]", "--set", "training.steps=2", "--set", "data.real=1.0"]
    assert main([*words, *small, "--real-label", "1", "--out", str(tmp_path / "run")]) == 0
    checkpoint = weights.load(tmp_path / "run/weights.safetensors", expect="segmenter")
    facts = checkpoint.facts
    assert (facts.grid.shape, facts.intensity, facts.skull_stripped) == (HEAD_GRID.shape, "head-percentile", False)
    assert facts.contrasts == ("T1w", "T2w", "FLAIR", "T1ce")
    assert BrainFinder(checkpoint).find(image).shape == image.array.shape
    capsys.readouterr()
    assert main([*words, *small, "--real-label", "2", "--out", str(tmp_path / "none")]) == 3
    message = capsys.readouterr().err
    assert "there is no mask of its brain" in message and "no head in it can be used" in message
