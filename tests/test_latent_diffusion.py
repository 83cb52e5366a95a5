"""Latent diffusion in pieces: what is trained, and encode, invert, resample, decode on stand-in networks, 16-cubed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cftools.condition import Condition
from cftools.diffuse import DiffusionModel
from cftools.diffusion import denoiser
from cftools.diffusion.denoiser import Inputs, NetworkDenoiser
from cftools.diffusion.path import make_path
from cftools.errors import LatentError
from cftools.facts import DiffusionFacts, GridFacts, ScanFacts, SpaceFacts, Target, WeightsUsed
from cftools.latent import Latent
from cftools.nets.autoencoder import Adversaries, Autoencoder, AutoencoderArchitecture, Critic
from cftools.nets.standard import LEAST_GAIN, Standard, gains
from cftools.nets.unet import UNet, UNetArchitecture
from cftools.piping import model_of
from cftools.planning import on_device, plan
from cftools.prepare import GRID_2MM
from cftools.preset import DiffusionSampling, Preset, load_preset
from cftools.schema import plain, read
from cftools.space import VaeSpace
from cftools.train.autoencoder import AutoencoderObjective, Patches
from cftools.train.diffusion import DiffusionObjective, Latents
from cftools.train.images import Encoder
from cftools.train.loop import Schedule, train
from cftools.train.people import Cohort, Portrait
from cftools.train.twin import AGED
from cftools.weights import Facts, TrainingFacts

SIDE = 16
AFFINE = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
GRID = GridFacts("toy", (SIDE,) * 3, AFFINE)
SMALL = AutoencoderArchitecture((8, 16), latent_channels=2, wavelet=True)
SPACE = SpaceFacts("vae", (SIDE,) * 3, 2, 4, 2)


def blob(number: int) -> torch.Tensor:
    """A ball of a radius and brightness of its own, (1, 16, 16, 16)."""
    random = np.random.default_rng(number)
    axis = torch.arange(SIDE) - 7.5 - float(random.normal(0, 1))
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return torch.sigmoid(float(random.uniform(4, 7)) - distance)[None] * float(random.uniform(0.6, 1))


def objective(**weights: float) -> AutoencoderObjective:
    patches = Patches(blob, 0, cohort=8, side=12, count=2)
    terms = {"l1": 1.0, "kl": 1e-7, "adversarial": 0.005, **weights}
    return AutoencoderObjective(SMALL, patches, blob, (SIDE,) * 3, 0, terms, {}, divisor=2)


def crowd(size: int) -> Cohort:
    """So many people, of whom nothing is known."""
    return Cohort([Portrait(torch.zeros(1, 1, 1, 1), Condition())] * size, {})


def test_patches_are_cut_from_a_cohort_that_fills_up() -> None:
    made: list[int] = []

    def counted(number: int) -> torch.Tensor:
        made.append(number)
        return blob(number)

    patches = Patches(counted, 0, cohort=3, side=8, count=2)
    items = [patches[index]["image"] for index in range(12)]
    assert all(item.shape == (2, 1, 8, 8, 8) for item in items)
    assert sorted(made) == [0, 1, 2], "each image is made once"
    assert torch.equal(items[7], Patches(blob, 0, cohort=3, side=8, count=2)[7]["image"])


def test_the_critic_is_taught_by_its_own_loss_alone() -> None:
    pair = Adversaries(Autoencoder(SMALL), Critic())
    y = pair.kept.decode(pair.kept.encode(blob(0)[None])[0])
    pair.judged(y).sum().backward()
    assert all(parameter.grad is None for parameter in pair.critic.parameters())
    assert any(parameter.grad is not None for parameter in pair.kept.parameters())


def test_an_autoencoder_learns_and_is_kept_without_its_critic(tmp_path: Path) -> None:
    made = objective()
    network, _ = train(made, Schedule(60, learning_rate=3e-3, workers=0, ema=0.9, log_every=10), tmp_path)
    product = made.product(network)
    assert not any("critic" in name for name in product.network.state_dict())
    x = torch.stack([blob(number) for number in range(4)])
    kept = product.network
    assert isinstance(kept, Autoencoder) and product.space is not None
    with torch.inference_mode():
        before = made.network().kept
        errors = [float((net.decode(net.encode(x)[0]) - x).abs().mean()) for net in (before, kept)]
        spread = VaeSpace(product.space, kept).encode(x)[0].std()
    assert errors[1] < 0.5 * errors[0]
    assert 0.5 < float(spread) < 2, "the scale brings latents to unit spread"


@pytest.mark.parametrize("prediction", ["eps", "v", "flow", "x0"])
def test_a_denoiser_learns_what_its_condition_says(prediction: Any, tmp_path: Path) -> None:
    """Latents that are +1 or -1 throughout, as the condition says; flow takes longest to learn it."""

    def encoded(number: int) -> dict[str, torch.Tensor]:
        sign = 1.0 if number % 2 else -1.0
        mean = torch.full((1, 2, 8, 8, 8), sign)
        return {"mean": mean, "std": torch.full_like(mean, 0.01), "context": torch.tensor([[sign]])}

    path = make_path("rectified-flow") if prediction == "flow" else make_path("scaled-linear")
    unet = UNetArchitecture(2, 2, (8, 16), (False, True), 1, heads=8)
    latents = Latents(encoded, crowd(4), 0, batch=8)
    made = DiffusionObjective(unet, latents, path, prediction, 0.2, 0, {}, SPACE)
    steps, rate = (60, 5e-3) if prediction == "flow" else (30, 1e-2)
    schedule = Schedule(steps, learning_rate=rate, workers=0, ema=0.8, log_every=60, dtype="float32")
    network, _ = train(made, schedule, tmp_path)
    x = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = NetworkDenoiser(network, path, prediction)

    def guess(time: float, context: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return denoiser(x[:1].expand(2, -1, -1, -1, -1), time, Inputs(context=context)).x0

    old, young = guess(0.9, torch.tensor([[1.0], [-1.0]]))
    # A step's error of eps counts that of x_0 by (alpha / sigma)^2, next to nothing there: eps learns it last.
    if prediction != "eps":
        assert float((old - young).mean()) > 0.5, "where all is noise the condition alone says which"
    assert torch.isfinite(guess(0.9, torch.full((2, 1), torch.nan))).all()
    product = made.product(network)
    assert product.diffusion is not None and product.diffusion.prediction == prediction
    recorded = read(DiffusionFacts, json.loads(json.dumps(plain(product.diffusion))), "facts", LatentError)
    assert make_path(recorded.path, **recorded.settings) == path, "also once it stood in a file"


def test_latents_meet_everyone_and_are_drawn_anew() -> None:
    def encoded(number: int) -> dict[str, torch.Tensor]:
        mean = torch.full((3, 1, 2, 2, 2), float(number))
        context = torch.tensor([[number / 10], [number / 10 + 0.01], [number / 10 + 0.02]])
        return {"mean": mean, "std": torch.full_like(mean, 0.1), "context": context}

    latents = Latents(encoded, crowd(3), 0, batch=4, ages=2, every=2)
    items = [latents[index] for index in range(12)]
    assert items[0]["latent"].shape == (2, 2, 1, 2, 2, 2) and items[0]["context"].shape == (2, 2, 1)
    met = [{round(float(value), 1) for value in item["context"].flatten()} for item in items]
    assert met[0] == met[1] == {0.0} and 0.1 in met[2] and 0.2 in met[4], "another joins every second step"
    assert set().union(*met[:4]) == {0.0, 0.1} and set().union(*met) == {0.0, 0.1, 0.2}
    for item in items:
        assert (item["context"][:, 0] != item["context"][:, 1]).all(), "two ages of each, not the same"
        assert torch.equal(item["context"][:, 0].mul(10).round(), item["context"][:, 1].mul(10).round())
    assert not torch.equal(items[5]["latent"], items[6]["latent"])
    again = Latents(encoded, crowd(3), 0, batch=4, ages=2, every=2)[5]
    assert torch.equal(again["latent"], items[5]["latent"])


def test_a_cohort_is_encoded_before_it_is_met_where_that_is_fast() -> None:
    made: list[int] = []

    def fast(number: int) -> dict[str, torch.Tensor]:
        made.append(number)
        return {
            "mean": torch.full((1, 1, 2, 2, 2), number),
            "std": torch.zeros(1, 1, 2, 2, 2),
            "context": torch.zeros(1, 1),
        }

    def slow(number: int) -> dict[str, torch.Tensor]:
        raise AssertionError("a worker encodes")

    latents = Latents(slow, crowd(3), 0, batch=1)
    unet = UNetArchitecture(1, 1, (8,), (True,), 1, heads=8)
    told = DiffusionObjective(unet, latents, make_path("scaled-linear"), "v", 0.0, 0, {}, SPACE)
    objective = replace(told, fill=lambda device: latents.fill(fast))
    objective.prepare(torch.device("cpu"))
    assert made == [], "on the processor workers do it as they go"
    objective.prepare(torch.device("cuda"))
    objective.prepare(torch.device("cuda"))
    assert made == [0, 1, 2] and {float(latents[index]["latent"].mean()) for index in range(8)} == {0.0, 1.0, 2.0}
    told.prepare(torch.device("cuda"))  # simulated people are made as the training goes


def test_ages_of_a_subject_share_time_and_noise() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            seen.append((x, time))
            return torch.zeros_like(x)

    unet = UNetArchitecture(2, 2, (8, 16), (False, True), 1, heads=8)
    latents = Latents(lambda number: {}, crowd(1), 0, batch=1)
    made = DiffusionObjective(unet, latents, make_path("scaled-linear"), "v", 0.0, 0, {}, SPACE)
    same = torch.zeros(2, 3, 2, 8, 8, 8)
    made.losses(Spy(), {"latent": same, "context": torch.zeros(2, 3, 1)})
    x, time = seen[0][0].unflatten(0, (2, 3)), seen[0][1].unflatten(0, (2, 3))
    assert (x == x[:, :1]).all() and (time == time[:, :1]).all(), "one subject's ages: one noise, one time"
    assert not torch.equal(x[0], x[1]) and not torch.equal(time[0], time[1]), "subjects: each its own"


def test_what_differs_between_ages_weighs_more_where_the_condition_is_told() -> None:
    class Says(torch.nn.Module):
        """One answer for all of a subject, or for each age its own."""

        def __init__(self, answers: torch.Tensor) -> None:
            super().__init__()
            self.answers = answers

        def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            return self.answers.view(-1, 1, 1, 1, 1).expand_as(x)

    unet = UNetArchitecture(1, 1, (8, 16), (False, True), 1, heads=8)
    latents = Latents(lambda number: {}, crowd(1), 0, batch=1)
    flow = make_path("rectified-flow")
    item = {"latent": torch.zeros(1, 2, 1, 8, 8, 8), "context": torch.zeros(1, 2, 1)}
    item["latent"][0, 1] = 1.0

    def losses(answers: list[float], dropout: float = 0.0) -> dict[str, float]:
        made = DiffusionObjective(unet, latents, flow, "x0", dropout, 0, {}, SPACE, twin=3.0)
        found = made.losses(Says(torch.tensor(answers)), item)
        return {name: float(value) for name, value in found.items()}

    told, same = losses([0.5, 1.5]), losses([0.5, 0.5])
    assert told == pytest.approx({"all": 0.25, "apart": 0.0, "loss": 0.25}), "both off alike: their difference is right"
    assert same == pytest.approx({"all": 0.25, "apart": 0.25, "loss": 1.0})
    assert losses([0.5, 0.5], dropout=1.0)["apart"] == 0, "who is not told the age need not know it"


@pytest.mark.parametrize("timed", [False, True])
def test_a_condition_beside_the_time_is_heard_at_once(timed: bool) -> None:
    """MONAI's attention begins at zero, so what it is told is heard late; beside the time it is heard early."""
    torch.manual_seed(0)
    network = UNet(UNetArchitecture(2, 2, (8, 16), (False, True), 2, heads=8, timed=timed)).eval()
    for name, parameter in network.body.named_parameters():  # MONAI's last layers, of blocks too, start at zero
        if "proj_out" not in name and not parameter.any():
            torch.nn.init.normal_(parameter)
    x, time = torch.randn(1, 2, 8, 8, 8), torch.zeros(1)
    with torch.inference_mode():
        said = [network(x, time, torch.tensor([values])) for values in ([-1.0, 0.0], [1.0, 0.0], [torch.nan, 0.0])]
    assert all((float((one - said[0]).abs().max()) > 1e-3) == timed for one in said[1:])


def test_an_atlas_tells_places_apart() -> None:
    """A network of convolutions with nothing to see says the same everywhere but at the border."""
    torch.manual_seed(0)
    architecture = UNetArchitecture(2, 2, (8, 16), (False, True), 1, heads=8, atlas=1, sides=(8, 8, 8))
    network = UNet(architecture).eval()
    assert network.atlas is not None and not network.atlas.any()
    for parameter in network.body.parameters():  # MONAI's last layer starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    x, time, context = torch.zeros(2, 2, 8, 8, 8), torch.zeros(2), torch.zeros(2, 1)
    blank = network(x, time, context)
    with torch.no_grad():
        network.atlas[0, 0, 3, 4, 5] = 3.0
    marked = network(x, time, context)
    change = (marked - blank).detach().abs().sum(dim=(0, 1))
    near, far = change[2:5, 3:6, 4:7].mean(), change[7, 0, 0]
    assert float(near) > 3 * float(far)
    with pytest.raises(ValueError, match="sides"):
        UNetArchitecture(2, 2, (8, 16), (False, True), 1, heads=8, atlas=1)


def test_a_shortcut_is_a_coarser_image_before_training() -> None:
    """What varies slowly comes back from the start, and an average and its details are told apart."""
    architecture = AutoencoderArchitecture((8, 16), latent_channels=8, wavelet=True, shortcut=True)
    network = Autoencoder(architecture).eval()
    places = torch.linspace(-3, 3, 48)
    axes = torch.stack(torch.meshgrid(places, places, places, indexing="ij"))
    blob = torch.exp(-axes.square().sum(0))[None, None]
    with torch.inference_mode():
        mean, std = network.encode(blob)
        back = network.decode(mean)
        flat, _ = network.encode(torch.ones(1, 1, 48, 48, 48))
    assert mean.shape == (1, 8, 12, 12, 12) and float(std.max()) < 0.1
    assert float((back - blob).abs().max()) < 0.01
    inner = flat[0, :, 3:-3, 3:-3, 3:-3].abs()
    assert float(inner[0].min()) > 1 and float(inner[1:].max()) < 0.02, "an even image is all average"
    flatter = AutoencoderArchitecture((8, 8, 8), latent_channels=4, shortcut=True, dimensions=2)
    assert Autoencoder(flatter).encode(torch.zeros(1, 1, 16, 16))[0].shape == (1, 4, 4, 4)
    for wrong in (
        {"channels": (8, 8), "latent_channels": 4, "wavelet": True},
        {"channels": (8,), "latent_channels": 8, "wavelet": True},
    ):
        with pytest.raises(ValueError, match="a shortcut has"):
            AutoencoderArchitecture(shortcut=True, **wrong)  # type: ignore[arg-type]


class Wish(torch.nn.Module):
    """Stands in for a denoiser: says the noise under which x_0 is a volume of the condition's value."""

    def __init__(self) -> None:
        super().__init__()
        self.path = make_path("scaled-linear")

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        assert context is not None
        alpha, sigma = self.path.at(float(time[0] + 1) / 1000)
        wish = 0.5 * context.nan_to_num()[:, :1, None, None, None]
        eps: torch.Tensor = (x - alpha * wish) / (sigma + 0.3 * alpha)
        return eps


def model(start: str = "inverted", solver: str = "ddim", steps: int = 10, **sampling: Any) -> DiffusionModel:
    torch.manual_seed(0)
    chosen = DiffusionSampling(start, solver, steps, sampling.pop("noise", "zero"), **sampling)  # type: ignore[arg-type]
    names = {"denoiser": ("toy",), "space": ("toy-ae",)}
    preset = Preset("toy", "toy", "toy", "diffusion", ("edit",), names, chosen, "replace")
    facts = Facts(
        architecture="diffusion-unet",
        architecture_arguments={},
        variables=AGED,
        grid=GRID,
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=TrainingFacts("", "", 0, 1, 1.0, "2026-01-01"),
        licence="Apache-2.0",
        space=SPACE,
        diffusion=DiffusionFacts("scaled-linear", "eps"),
    )
    used = {"denoiser": WeightsUsed("toy", "1" * 64), "space": WeightsUsed("toy-ae", "2" * 64)}
    space = VaeSpace(SPACE, Autoencoder(SMALL).eval().requires_grad_(False))
    return DiffusionModel(preset, Wish(), facts, space, used, torch.device("cpu"))


SCAN = ScanFacts("scan", "T1w", (SIDE,) * 3, AFFINE, "0" * 64, AFFINE, 0.0, 1.0)
SOURCE = Condition({"age": 40.0, "sex": "F"})


def encoded(chosen: DiffusionModel) -> Latent:
    return chosen.encode(blob(1)[0].numpy(), SCAN, SOURCE, seed=3)


STARTS: dict[str, dict[str, Any]] = {
    "inverted": {},
    "fixed point": {"inversion_iterations": 6, "inversion_tolerance": 1e-2},
    "noised": {"start": "noised", "solver": "ddpm", "noise": "fresh", "start_time": 0.5},
    "recorded": {"start": "recorded", "solver": "ddpm", "noise": "tape"},
}


@pytest.mark.parametrize("name", STARTS)
def test_the_pieces_through_files_give_what_they_give_in_memory(name: str, tmp_path: Path) -> None:
    chosen = model(**STARTS[name])
    targets = [Target(SOURCE.do(age=age), f"age{age:.0f}") for age in (60.0, 80.0)]
    first = chosen.resample(chosen.invert(encoded(chosen)), targets)
    latent = encoded(chosen)
    for step in (chosen.invert, lambda one: chosen.resample(one, targets)):
        latent = step(Latent.from_bytes(latent.to_bytes()))
    assert latent.to_bytes() == first.to_bytes()
    assert latent.facts.state is not None and latent.facts.state.start == chosen.sampling.start
    images = [chosen.decode(edit) for edit in latent.edited]
    assert images[0].shape == (SIDE,) * 3 and np.abs(images[0] - images[1]).max() > 0


@pytest.mark.parametrize("name", STARTS)
def test_no_change_asked_is_no_change_made(name: str) -> None:
    chosen = model(**STARTS[name], guidance=2.0 if name == "noised" else 1.0)
    state = chosen.invert(encoded(chosen))
    latent = chosen.resample(state, [Target(SOURCE, "age40")])
    np.testing.assert_array_equal(latent.edited[0], latent.tensors["factual"])
    if name in ("fixed point", "recorded"):
        np.testing.assert_allclose(latent.edited[0], state.tensors["mean"], atol=2e-3)


def test_an_edit_goes_where_its_condition_pulls() -> None:
    chosen = model()
    targets = [Target(SOURCE.do(age=age)) for age in (10.0, 90.0)]
    young, old = chosen.resample(chosen.invert(encoded(chosen)), targets).edited
    assert old.mean() > young.mean() + 0.1


def test_a_network_in_bfloat16_makes_almost_the_same_edit() -> None:
    """Its products alone lose digits; the run itself has them all."""
    torch.manual_seed(0)
    shape = model().space.facts.latent_shape
    network = UNet(UNetArchitecture(shape[0], shape[0], (8, 16), (False, True), 1, heads=8)).eval()
    network.requires_grad_(False)
    for parameter in network.body.parameters():  # MONAI's last layers start at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.01)
    seen: list[torch.dtype] = []
    network.body.conv_in.register_forward_hook(lambda _, __, output: seen.append(output.dtype))

    def made(dtype: str) -> tuple[np.ndarray, np.ndarray]:
        seen.clear()
        chosen = replace(model(solver="bdia", start_time=0.5, guidance=2.0, dtype=dtype), network=network)
        state = chosen.invert(encoded(chosen))
        edit = chosen.resample(state, [Target(SOURCE.do(age=80.0))]).edited[0]
        assert {*seen} == {getattr(torch, dtype)} and edit.dtype == np.float32
        return state.tensors["x_t"], edit

    for exact, near in zip(made("float32"), made("bfloat16"), strict=True):
        assert 0 < np.abs(near - exact).max() < 0.02 * np.abs(exact).max()


def test_what_a_device_cannot_compute_is_not_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 that is emulated is slower than float32; what is recorded is what was computed."""
    chosen = plan(load_preset("ldm"), [], Condition())
    assert chosen.preset.sampling.dtype == "bfloat16"  # type: ignore[union-attr]  # a diffusion's
    assert not denoiser.computes_bfloat16(torch.device("mps"))
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    able = torch.device("cpu")
    assert not denoiser.computes_bfloat16(able)
    assert on_device(chosen, able).preset.sampling.dtype == "float32"  # type: ignore[union-attr]
    assert model_of(chosen, lambda: able).sampling.dtype == "float32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert denoiser.computes_bfloat16(able) and on_device(chosen, able) is chosen
    twin = plan(load_preset("twin"), [], Condition())
    assert on_device(twin, torch.device("mps")) is twin


def test_latents_are_decoded_where_they_are_and_encoded_on_the_processor() -> None:
    """Workers are forked, which a GPU does not survive."""
    encoder = Encoder.of("ae-2mm")
    images = encoder.decode(torch.zeros(2, *encoder.facts.latent_shape, device="meta"))
    assert images.device.type == "meta" and images.shape == (2, 1, *GRID_2MM.shape)
    assert encoder.decode(torch.zeros(1, *encoder.facts.latent_shape)).device.type == "cpu"


def test_a_centred_denoiser_edits_and_makes_latents_of_its_space() -> None:
    """As a plain one would on centred latents, and nobody outside sees them."""
    plain_model, centred = model(), model()
    shape = plain_model.space.facts.latent_shape
    standard = Standard(shape[0], shape[1:])
    standard.learn(3 * torch.randn(16, *shape) * torch.rand(1, *shape) + torch.randn(1, *shape))
    centred.network.standard = standard
    latent, targets = encoded(centred), [Target(SOURCE.do(age=80.0))]
    mean = torch.from_numpy(latent.tensors["mean"])
    moved = replace(latent, tensors={**latent.tensors, "mean": standard.of(mean).numpy()})
    expected = plain_model.resample(plain_model.invert(moved), targets)
    state = centred.invert(latent)
    np.testing.assert_array_equal(state.tensors["mean"], latent.tensors["mean"])
    found = centred.resample(state, targets)
    for name in ("edited.0", "factual"):
        wanted = standard.back(torch.from_numpy(expected.tensors[name]))
        np.testing.assert_allclose(found.tensors[name], wanted, rtol=1e-4, atol=1e-4)
    made, plain_made = (one.synthesise(targets, 0, 0).edited[0] for one in (centred, plain_model))
    np.testing.assert_allclose(made, standard.back(torch.from_numpy(plain_made)), rtol=1e-4, atol=1e-4)


def test_what_is_usual_is_learned_before_the_first_step() -> None:
    """Latents have no mean at any place then, unit variance over all, and channels weigh as in the image."""
    centre, spread = torch.randn(1, 2, 8, 8, 8), torch.tensor([1.0, 5.0]).view(1, 2, 1, 1, 1)

    def typical() -> torch.Tensor:
        return centre + spread * torch.randn((400, 2, 8, 8, 8), generator=torch.Generator().manual_seed(0))

    def encoded_as(number: int) -> dict[str, torch.Tensor]:
        mean = typical()[number : number + 1]
        return {"mean": mean, "std": torch.zeros_like(mean), "context": torch.zeros(1, 1)}

    def decode(latent: torch.Tensor) -> torch.Tensor:
        return 10 * latent[:, :1] + latent[:, 1:]

    unet = UNetArchitecture(2, 2, (8, 16), (False, True), 1, heads=8, sides=(8, 8, 8), centred=True)
    latents = Latents(encoded_as, crowd(400), 0, batch=32)
    path = make_path("scaled-linear")
    made = DiffusionObjective(unet, latents, path, "v", 0.2, 0, {}, SPACE, decode=decode, typical=typical)
    network = made.network()
    made.settle(network)
    clean = made.drawn(network, latents[400]).clean
    assert float(clean.mean().abs()) < 0.02
    # In the image the channels' spreads are 10 x 1 and 1 x 5, and 1.6 and 0.4 have a mean of 1.
    assert clean.var(dim=(0, 2, 3, 4)).tolist() == pytest.approx([1.6, 0.4], rel=0.05)
    torch.testing.assert_close(network.standard.back(network.standard.of(centre)), centre)  # type: ignore[operator,union-attr]
    assert {"standard.centre", "standard.spread"} <= network.state_dict().keys(), "they are kept with the weights"
    tuned = replace(made, typical=None).network()
    tuned.load_state_dict(network.state_dict())
    torch.testing.assert_close(tuned.standard.centre, network.standard.centre)  # type: ignore[union-attr]
    others = replace(made, typical=lambda: typical() + 7, latents=latents)
    tuned = others.network()
    tuned.load_state_dict(network.state_dict())
    others.settle(tuned)
    moved = tuned.standard.centre - network.standard.centre  # type: ignore[union-attr,operator]
    torch.testing.assert_close(moved, torch.full_like(moved, 7.0))  # other people, another average
    unseen = replace(made, decode=None)
    undecoded = unseen.network()
    unseen.settle(undecoded)
    alike = made.drawn(undecoded, latents[400]).clean.var(dim=(0, 2, 3, 4)).tolist()
    assert alike == pytest.approx([2 / 26, 50 / 26], rel=0.05), "nobody says that one matters more"


def test_a_channel_that_no_image_shows_is_not_blown_up() -> None:
    gain = gains(lambda latent: 3 * latent[:, :1], torch.zeros(1, 2, 4, 4, 4), torch.tensor([0.5, 2.0]))
    assert float(gain[1]) == pytest.approx(LEAST_GAIN * float(gain[0]))
    assert 2.0 < float(gain[0]) < 4.0


def test_latents_of_others_are_refused() -> None:
    chosen = model()
    latent = encoded(chosen)
    state = chosen.invert(latent)
    target = [Target(SOURCE.do(age=70.0))]
    with pytest.raises(LatentError, match="cf-invert"):
        chosen.resample(latent, target)
    with pytest.raises(LatentError, match="other settings"):
        model(steps=12).resample(state, target)
    others = replace(chosen, used={**chosen.used, "denoiser": WeightsUsed("other", "3" * 64)})
    with pytest.raises(LatentError, match="denoiser weights were toy"):
        others.resample(state, target)
    elsewhere = replace(chosen, used={**chosen.used, "space": WeightsUsed("other", "4" * 64)})
    with pytest.raises(LatentError, match="space weights were toy-ae"):
        elsewhere.invert(latent)


def test_new_samples_end_where_the_prior_says() -> None:
    chosen, walked = model("prior"), []
    early = replace(chosen, preset=chosen.preset.override(steps=6, end_time=0.5))
    early.synthesise(
        [Target(Condition({"age": 20.0, "sex": "F"}))], seed=1, sample=0, record=lambda m, x: walked.append(m)
    )
    assert [round(move.t, 3) for move in walked] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5] and walked[-1].s == 0


def test_new_samples_share_their_noise_whatever_the_condition() -> None:
    chosen = model("prior")
    young, old = (Target(Condition({"age": age, "sex": "F"})) for age in (20.0, 80.0))
    both = chosen.synthesise([young, old], seed=1, sample=0).edited
    alone = chosen.synthesise([old], seed=1, sample=0).edited
    np.testing.assert_array_equal(both[1], alone[0])
    other = chosen.synthesise([old], seed=1, sample=1).edited
    assert np.abs(other[0] - alone[0]).mean() > 0.1
