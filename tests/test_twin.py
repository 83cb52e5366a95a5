"""The twin flow: nothing asked is nothing done, unknown is not zero, and a step is a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from cftools import field
from cftools.condition import Condition
from cftools.errors import ConditionError, WeightsError
from cftools.methods import FlowMethod, ScalarReader, changed, integrate
from cftools.nets.regressor import PLACES, Regressor, RegressorArchitecture
from cftools.nets.twin import Flow, TwinArchitecture, TwinNet
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.deform import TARGETS
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM, Prepared
from cftools.train.kinds import variables_of
from cftools.train.recipes import grid_facts
from cftools.train.twin import AGED, TwinObjective, Twins, _growth, normalised
from cftools.volume import Volume
from cftools.weights import Checkpoint, Facts, TrainingFacts

SMALL = (4, 8, 8)


def facts(architecture: str, arguments: dict, variables: dict) -> Facts:
    training = TrainingFacts("cf-train", "none", 0, 0, 0.0, "2026-01-01")
    grid = grid_facts(GRID_2MM)
    return Facts(architecture, arguments, variables, grid, ("T1w",), "brain-percentile", training, "Apache-2.0")


def moving_net(residual: bool = True, velocity_mm: int = 4) -> TwinNet:
    """A network that has not learned anything but does something."""
    torch.manual_seed(1)
    net = TwinNet(TwinArchitecture(2, (0,), residual=residual, velocity_mm=velocity_mm, channels=SMALL))
    torch.nn.init.normal_(net.head, std=0.05)
    torch.nn.init.normal_(next(net.embed.parameters()), std=0.5)
    for name, weight in net.named_parameters():
        if name.endswith("film.weight"):
            torch.nn.init.normal_(weight, std=0.2)
    return net.eval()


def method(**options: object) -> FlowMethod:
    net = moving_net(**options)  # type: ignore[arg-type]
    arguments = {
        "variables": 2,
        "changes": [0],
        "channels": [4, 8, 8],
        "velocity_mm": net.architecture.velocity_mm,
        "residual": net.architecture.residual,
    }
    return FlowMethod(Checkpoint("test", dict(net.state_dict()), facts("twin", arguments, AGED), "0" * 64))


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    points = field.identity(GRID_2MM.shape)
    blob = (points.square().sum(0) < 60**2).float() * (0.6 + 0.4 * torch.sin(points[0] / 9) ** 2)
    image = blob.numpy()
    volume = Volume.from_array(image, GRID_2MM.affine)
    return Prepared(volume, image, GRID_2MM, np.eye(4), image > 0, 0.0, 1.0)


@pytest.fixture(scope="module")
def family() -> Family:
    return Family([template_anatomy(GRID_2MM)], load_law("normative"), varied=True)


@pytest.fixture(scope="module")
def pair(family: Family) -> dict[str, torch.Tensor]:
    """One subject at 29 and at 86."""
    with torch.no_grad():
        return Twins(family, 0)[1]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_nothing_asked_nothing_done(prepared: Prepared) -> None:
    here = Condition({"age": 40.0, "sex": "F"})
    for steps in (1, 3):
        edit = method().edit(prepared, here, here, steps)
        assert np.abs(edit.displacement).max() == 0
        assert edit.residual is not None and np.abs(edit.residual).max() == 0


def test_something_asked_something_done(prepared: Prepared) -> None:
    here = Condition({"age": 40.0, "sex": "F"})
    flow = method()
    older = flow.edit(prepared, here, here.do(age=70))
    assert older.displacement.shape == (3, *GRID_2MM.shape) and older.displacement.dtype == np.float32
    assert np.abs(older.displacement).max() > 0.05
    man = flow.edit(prepared, here.do(sex="M"), here.do(sex="M", age=70))
    unknown = flow.edit(prepared, here.do(sex=None), Condition({"age": 70.0}))
    assert not np.allclose(older.displacement, man.displacement, atol=1e-4)
    assert not np.allclose(older.displacement, unknown.displacement, atol=1e-4), "unknown is a token of its own"


def test_steps_are_composed_through_the_moved_scan(prepared: Prepared) -> None:
    flow = method(residual=False)
    first, half, last = (Condition({"age": age}) for age in (30.0, 45.0, 60.0))
    both = flow.edit(prepared, first, last, steps=2)
    one = flow.edit(prepared, first, half)
    u = torch.from_numpy(one.displacement)[None]
    there = field.warp(torch.from_numpy(prepared.image)[None, None], u)[0, 0].numpy()
    moved = Prepared(prepared.volume, there, GRID_2MM, np.eye(4), there > 0, 0.0, 1.0)
    two = flow.edit(moved, half, last)
    expected = field.compose(u, torch.from_numpy(two.displacement)[None])[0].numpy()
    assert np.abs(both.displacement - expected).mean() < 0.03 * np.abs(expected).mean()  # the surface is another
    assert np.abs(expected).max() > 0.2
    assert both.residual is None


def test_intensities_are_composed_too(prepared: Prepared) -> None:
    class Constant(torch.nn.Module):
        """Nothing moves; each call adds 0.1 and then multiplies what is asked of it."""

        def forward(self, image: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> Flow:
            seen.append(float(image.max()))
            residual = torch.tensor([0.1, 0.5]).view(1, 2, 1, 1, 1).expand(1, 2, 40, 48, 44)
            return Flow(torch.zeros(1, 3, 40, 48, 44), residual)

    seen: list[float] = []
    image = torch.from_numpy(prepared.image)[None, None]
    displacement, residual = integrate(Constant(), image, torch.zeros(1, 2), torch.ones(1, 2), steps=2)
    assert float(displacement.abs().max()) == 0
    assert seen[1] == pytest.approx(1.5 * seen[0] + 0.1)
    twice = changed(image, displacement, residual)[image > 0]
    torch.testing.assert_close(twice, 1.5 * (1.5 * image[image > 0] + 0.1) + 0.1)


def test_velocity_grid(prepared: Prepared) -> None:
    image = torch.from_numpy(prepared.image)[None, None]
    source, target = torch.tensor([[0.0, math.nan]]), torch.tensor([[0.5, math.nan]])
    assert moving_net(velocity_mm=4)(image, source, target).velocity.shape == (1, 3, 40, 48, 44)
    assert moving_net(velocity_mm=8)(image, source, target).velocity.shape == (1, 3, 20, 24, 22)


def test_changes_add_up(prepared: Prepared) -> None:
    net = moving_net()
    image = torch.from_numpy(prepared.image)[None, None]
    young, middle, old = (torch.tensor([[age, 1.0]]) for age in (-0.5, 0.1, 0.6))
    seen = net.look(image, young)
    whole, first, second = (net.flow(seen, a, b) for a, b in ((young, old), (young, middle), (middle, old)))
    assert float(whole.velocity.abs().max()) > 0.01
    torch.testing.assert_close(first.velocity + second.velocity, whole.velocity, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.residual + second.residual, whole.residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"velocity_mm": 2}, {"channels": (6, 8)}, {"channels": (8,)}])
def test_impossible_networks_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TwinArchitecture(2, (0,), **wrong)


def test_what_cannot_be_changed_is_refused(prepared: Prepared) -> None:
    here = Condition({"age": 40.0, "sex": "F"})
    with pytest.raises(ConditionError, match="cannot change sex"):
        method().edit(prepared, here, here.do(sex="M"))
    with pytest.raises(ConditionError, match="--from age"):
        method().edit(prepared, Condition({"sex": "F"}), here)


def test_tensors_of_another_shape_are_refused() -> None:
    arguments = {"variables": 2, "changes": [0], "channels": [4, 8], "velocity_mm": 4, "residual": True}
    wrong = Checkpoint("test", dict(moving_net().state_dict()), facts("twin", arguments, AGED), "0" * 64)
    with pytest.raises(WeightsError, match="do not fit"):
        FlowMethod(wrong)


def test_reader_reads_within_the_range(prepared: Prepared) -> None:
    torch.manual_seed(0)
    net = Regressor(RegressorArchitecture())
    known = {"age": AGED["age"]}
    reader = ScalarReader(
        Checkpoint("age", dict(net.state_dict()), facts("reader", {"fluid": [0.6, 0.95]}, known), "0" * 64)
    )
    with torch.no_grad():
        age = reader.read(prepared)
        reader.network.read.bias.fill_(50)
        assert 5 <= age <= 100 and reader.read(prepared) == 100
    assert math.isnan(reader.error)


def test_reader_sees_deep_fluid_and_neither_edge_nor_brightness() -> None:
    net = Regressor(RegressorArchitecture(depth=5))
    brain = torch.zeros(1, 1, *GRID_2MM.shape)
    brain[..., 8:72, 8:88, 8:80] = 1.0
    ventricle, sulcus = brain.clone(), brain.clone()
    ventricle[..., 36:44, 40:56, 40:48] = 0.3
    sulcus[..., 8:13, 8:88, 8:80] = 0.3
    assert float(net.fluid(brain).max()) == float(net.fluid(sulcus).max()) == 0
    seen = net.fluid(ventricle)
    assert seen.shape == (1, 1, *PLACES) and float(seen[..., 9:11, 10:14, 10:12].min()) == 1
    assert float(seen.sum()) == 2 * 4 * 2, "and nothing elsewhere"
    torch.testing.assert_close(net.fluid(1.3 * ventricle), seen)


@pytest.mark.slow
def test_a_short_training_beats_doing_nothing(family: Family, pair: dict[str, torch.Tensor]) -> None:
    twins, item = Twins(family, 0), {name: both[:1] for name, both in pair.items()}
    assert abs(item["source"] - item["goal"])[0, 0] > 0.8
    objective = TwinObjective(TwinArchitecture(2, (0,), SMALL), twins, 0, 1.0, 0.5, 0.0, (0.3,) * len(TARGETS), {})
    with torch.enable_grad():
        network = objective.network()
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        first = 0.0
        for _ in range(25):
            losses = objective.losses(network, item)
            first = first or float(losses["error"])
            optimiser.zero_grad()
            losses["loss"].backward()
            optimiser.step()
    assert losses["error"] < 0.75 * first


def test_training_pairs_are_what_a_scan_would_be(family: Family, pair: dict[str, torch.Tensor]) -> None:
    item = pair
    assert item["image"].shape == (2, 1, *GRID_2MM.shape)
    assert torch.equal(item["source"].nan_to_num(9), item["goal"].flip(0).nan_to_num(9))
    inside = item["image"] > 0
    assert float(item["image"].max()) <= 1.5 and float(item["image"][~inside].abs().max()) == 0
    assert float(item["target"][~inside].abs().max()) == 0, "nothing is asked outside the scan's own mask"
    moved = field.warp(item["image"], item["truth"])
    error = lambda image: float(((image - item["target"]).abs() * inside).sum())  # noqa: E731
    assert error(moved) < 0.8 * error(item["image"])
    assert torch.equal(item["image"], Twins(family, 0)[1]["image"])


def test_pairs_of_diagnoses_are_of_one_age(family: Family) -> None:
    variables = variables_of(("diagnosis",))
    twins = Twins(family, 1, variables=variables, changes=("diagnosis",))
    ages, told = [], []
    for index in range(3):
        item = twins[index]
        age, sex, diagnosis = item["source"].T
        assert item["source"].shape == (2, 3) and torch.equal(age.nan_to_num(9), age.flip(0).nan_to_num(9))
        assert torch.equal(sex.nan_to_num(9), sex.flip(0).nan_to_num(9)) and diagnosis[0] != diagnosis[1]
        ages.append(variables["age"].decode(float(age[0])) if not age[0].isnan() else None)
        told.append(diagnosis.tolist())
        # Whoever is worse has less hippocampus.
        growth = _growth(item["regions"], item["truth"])[0, TARGETS.index("hippocampus")]
        assert float(growth) * float(diagnosis[1] - diagnosis[0]) < 0
    assert any(age is None for age in ages) and all(age is None or 40 <= age <= 100 for age in ages)
    assert {code for pair in told for code in pair} == {-1.0, 0.0, 1.0}


def test_pairs_that_repeat_are_mirrored_whole(family: Family) -> None:
    twins = Twins(family, 0, cohort=1)
    items = [twins[index] for index in (0, 4, 5)]
    sideways = [float(item["truth"][0, 0].sum()) for item in items]
    assert [one * sideways[0] < 0 for one in sideways] == [False, True, False], "half are mirrored"
    for item in items:
        assert torch.equal(item["source"].nan_to_num(9), items[0]["source"].nan_to_num(9))
        inside = item["image"] > 0
        moved = field.warp(item["image"], item["truth"])
        left, nothing = (((one - item["target"]).abs() * inside).sum() for one in (moved, item["image"]))
        assert float(left) < 0.8 * float(nothing), "the truth is mirrored with its images"
        growth = _growth(item["regions"], item["truth"])
        torch.testing.assert_close(growth, _growth(items[0]["regions"], items[0]["truth"]), rtol=1e-3, atol=1e-3)
    assert torch.equal(items[-1]["image"], Twins(family, 0, cohort=1)[5]["image"]), "whatever was drawn before"


def test_growth_of_doing_nothing_is_none() -> None:
    regions = torch.rand(2, 3, 8, 8, 8)
    assert float(_growth(regions, torch.zeros(2, 3, 8, 8, 8)).abs().max()) < 1e-5


def test_subjects_that_are_read_repeat_in_a_cohort(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    from cftools.train import reader

    monkeypatch.setattr(reader, "SUBJECTS", 2)
    brains = reader.AgedBrains(family, 0, cohort=3)
    items = [brains[index] for index in range(6)]
    assert all(item["image"].shape == (4, 1, *GRID_2MM.shape) and item["value"].shape == (4,) for item in items)
    ages = {float(age) for item in items for age in item["value"]}
    assert len(ages) == 6, "three subjects at two ages each, and each of them is met"
    again = reader.AgedBrains(family, 0, cohort=3)[5]
    assert torch.equal(again["image"], items[5]["image"]) and torch.equal(again["value"], items[5]["value"])


def test_who_grows_from_a_scan_differs_from_the_average_only_as_the_scan_does() -> None:
    from cftools.train.reader import AgedBrains

    average = template_anatomy(GRID_2MM)
    for anatomy, spread in ((average, 1.0), (replace(average, name="sub-01"), 0.0)):
        family = Family([anatomy], load_law("normative"), varied=True)
        made = AgedBrains(family, 0)._subject(0)
        age = (float(made["value"][0]) + 1) / 2 * 95 + 5
        subject = family.draw(0, 0)
        expected = normalised(replace(subject, noise=spread * subject.noise).at(age))
        torch.testing.assert_close(made["image"][:1], expected.half(), rtol=0, atol=5e-3)
