"""The networks that score sets of images: what they are shown, and that they learn from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.errors import PresetError
from cftools.nets.convolutional import ConvolutionalArchitecture, ConvolutionalReader
from cftools.preset import load_preset
from cftools.train.looks import CUT, DAMAGES, bent, blurred, cut_back, damaged
from cftools.train.loop import Schedule, train
from cftools.train.recipes import check, usual
from cftools.train.regressor import CategoryObjective, FeaturesObjective, NumberObjective, layout, places_of

SIDE = 16
TINY = ConvolutionalArchitecture(channels=(4, 8))


def ball(radius: float, core: float = 0.0, inside: float = 0.2) -> Tensor:
    """A ball of 0.8 with a core of another intensity in a background of 0, (1, SIDE, SIDE, SIDE)."""
    distance = np.linalg.norm(np.indices((SIDE,) * 3) - (SIDE - 1) / 2, axis=0)
    return torch.from_numpy(np.where(distance < core, inside, np.where(distance < radius, 0.8, 0))).float()[None]


class Balls(Dataset[dict[str, Tensor]]):
    """Balls with cores as large as their first code says, darker or not by the second; told of both, or of one."""

    def __init__(self, told: slice = slice(2)) -> None:
        self.told = told

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng(index)
        size, shade = random.uniform(-1, 1, 8), random.choice([-1.0, 1.0], 8)
        images = torch.stack([ball(7, 3 + 2 * s, 0.3 + 0.25 * d) for s, d in zip(size, shade, strict=True)])
        context = torch.tensor(np.stack([size, shade], 1), dtype=torch.float32)
        return {"image": images[:, None], "context": context[:, None, self.told]}


AGED, SEXED = Balls(slice(1)), Balls(slice(1, 2))
BOTH = Balls()


@torch.no_grad()
def test_a_reader_that_pools_sees_averages() -> None:
    torch.manual_seed(0)
    near, far = (ConvolutionalReader(ConvolutionalArchitecture(channels=(4, 8), pooled=side)) for side in (1, 2))
    far.load_state_dict(near.state_dict())
    image = torch.rand(2, 1, SIDE, SIDE, SIDE)
    means = image.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean((-3, -2, -1))
    torch.testing.assert_close(far(image), near(means))
    torch.testing.assert_close(far.features(image), near.features(means))
    with pytest.raises(ValueError, match="pooled 0"):
        ConvolutionalArchitecture(pooled=0)


@torch.no_grad()
def losses(objective: Any, network: nn.Module) -> dict[str, float]:
    """On what no training saw."""
    torch.manual_seed(0)
    items = [objective.dataset()[10_000 + index] for index in range(8)]
    item = {name: torch.cat([one[name] for one in items]) for name in items[0]}
    return {name: float(value) for name, value in objective.losses(network, item).items()}


def learned(objective: Any, tmp_path: Path) -> dict[str, float]:
    schedule = Schedule(300, learning_rate=3e-3, ema=0.97, dtype="float32", workers=0)
    return losses(objective, train(objective, schedule, tmp_path)[0])


def test_age_and_sex_are_learned_whatever_the_look(tmp_path: Path) -> None:
    age = learned(NumberObjective(TINY, AGED, 0, {}), tmp_path / "age")
    assert age["years"] < 17  # 24 without looking
    sex = learned(CategoryObjective(replace(TINY, outputs=2), SEXED, 0, {}), tmp_path / "sex")
    assert sex["accuracy"] > 0.65  # half without looking


def test_a_pair_is_seen_under_one_look() -> None:
    """What tells two apart who are alike but for their sex is their sex, not noise and brightness."""
    seen: list[Tensor] = []

    class Looks(Fixed):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return super().forward(image)

    same = {"image": ball(6).expand(2, 4, 1, SIDE, SIDE, SIDE), "context": torch.tensor([[[-1.0], [1.0]] * 2] * 2)}
    torch.manual_seed(0)
    CategoryObjective(replace(TINY, outputs=2), SEXED, 0, {}, alike=2).losses(Looks(), same)
    CategoryObjective(replace(TINY, outputs=2), SEXED, 0, {}).losses(Looks(), same)
    pairs, alone = (image.unflatten(0, (4, 2)) for image in seen)
    assert torch.equal(pairs[:, 0], pairs[:, 1]) and not torch.equal(pairs[0, 0], pairs[1, 0])
    assert not torch.equal(alone[:, 0], alone[:, 1])


def test_features_are_learned_from_brain_and_damage_alike(tmp_path: Path) -> None:
    outputs = 3 + len(DAMAGES) + places_of((SIDE,) * 3)
    objective = FeaturesObjective(ConvolutionalArchitecture(outputs, (4, 8)), BOTH, 0, {})
    before = losses(objective, objective.network())
    after = learned(objective, tmp_path)
    assert set(after) == {"loss", "years", "accuracy", "damage", "layout"}
    assert after["loss"] < 0.6 * before["loss"] and after["layout"] < 0.6 * before["layout"]


def test_who_is_of_unknown_age_or_sex_teaches_nothing() -> None:
    item = BOTH[0]
    part = {name: values[:2].clone() for name, values in item.items()}
    unknown = {name: values.clone() for name, values in item.items()}
    unknown["context"][2:] = torch.nan
    for objective in (
        NumberObjective(TINY, AGED, 0, {}),
        CategoryObjective(replace(TINY, outputs=2), SEXED, 0, {}),
    ):
        network = Fixed()
        known, all_in_all = (objective.losses(network, one)["loss"] for one in (part, unknown))
        assert torch.isfinite(all_in_all) and known == pytest.approx(float(all_in_all))
    unknown["context"][:] = torch.nan
    assert float(NumberObjective(TINY, AGED, 0, {}).losses(Fixed(), unknown)["loss"]) == 0


class Fixed(nn.Module):
    """Says the same of every image."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.tensor([[0.25, -0.5]]).expand(len(image), -1)


def test_a_look_changes_what_it_says_and_nothing_else() -> None:
    images = torch.stack([ball(6)] * 64)
    torch.manual_seed(0)
    shown = bent(images)
    assert torch.equal(shown == 0, images == 0) and shown.std(0).max() > 0.05
    sizes = (cut_back(images) > 0).sum((1, 2, 3, 4))
    assert len(sizes.unique()) == CUT + 1 and sizes.max() == (images[0] > 0).sum()
    seen, parts = damaged(images)
    assert seen.min() == 0 and not seen[images == 0].any()
    assert parts.shape == (64, len(DAMAGES)) and 0.3 < (parts == 0).float().mean() < 0.7
    sound = (parts == 0).all(1)
    assert sound.any() and torch.allclose(seen[sound], images[sound], atol=1e-6)
    only = [(parts[:, k] > 0) & (parts.sum(1) == parts[:, k]) for k in range(3)]
    roughness = seen[:, 0, 6:10, 6:10, 6:10].flatten(1).std(1)
    for kind, scale in ((1, 0.1), (2, 0.1)):  # noise and checkers, by their own standard deviations
        assert torch.allclose(roughness[only[kind]], parts[only[kind], kind] * scale, rtol=0.4, atol=2e-3)
    assert only[0].any() and not torch.allclose(seen[only[0]], images[only[0]], atol=0.01)


def test_a_blur_has_the_width_that_is_asked() -> None:
    image = torch.zeros(2, 1, 17, 17, 17)
    image[:, 0, 8, 8, 8] = 1
    seen = blurred(image, torch.tensor([0.0, 1.2]))
    assert torch.equal(seen[0], image[0])
    places = torch.arange(17.0) - 8
    profile = seen[1, 0].sum((1, 2))
    assert profile.sum() == pytest.approx(1, abs=1e-5)
    assert (profile * places**2).sum() == pytest.approx(1.2**2, rel=0.02)


def test_the_layout_says_what_is_where() -> None:
    image = torch.zeros(1, 1, 32, 16, 16)
    image[:, :, :16] = 0.5
    image[:, :, 16::2] = 1
    mean, spread = layout(image).view(2, 2)
    assert mean.tolist() == pytest.approx([0.5, 0.5]) and spread.tolist() == pytest.approx([1e-3, 0.5], abs=1e-5)
    assert places_of((32, 16, 16)) == 4


def test_a_network_has_the_papers_shape() -> None:
    network = ConvolutionalReader(check(load_preset("score-age").recipe_for(), ("age",)))
    kinds = [type(layer).__name__ for layer in network.body]
    assert kinds == (["Conv3d", "GroupNorm", "ReLU"] * 2 + ["MaxPool3d"]) * 4
    with torch.inference_mode():
        assert network(torch.rand(2, 1, 80, 96, 88)).shape == (2, 1)
        levels = network.levels(torch.rand(1, 1, 32, 32, 32))
        assert [level.shape[1] for level in levels] == [12, 24, 48, 96]
        assert network.features(torch.rand(1, 1, 32, 32, 32)).shape == (1, 180)


@pytest.mark.parametrize("name", ["score-age", "sex", "features"])
def test_bundled_sizes_keep_to_the_budget(name: str) -> None:
    recipe = load_preset(name).recipe_for()
    network = ConvolutionalReader(check(recipe, usual(recipe)))
    assert sum(each.numel() for each in network.parameters()) < 1_000_000


@pytest.mark.parametrize(
    ("name", "conditions", "channels", "reason"),
    [
        ("features", ("age",), (4,), "learned from age and sex"),
        ("sex", ("sex",), (), "one width or more"),
        ("score-age", ("age",), (4, 0), "each 1 or more"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    name: str, conditions: tuple[str, ...], channels: tuple[int, ...], reason: str
) -> None:
    recipe = load_preset(name).recipe_for()
    network = replace(recipe.network, arguments={"channels": list(channels)})
    with pytest.raises(PresetError, match=reason):
        check(replace(recipe, network=network), conditions)
