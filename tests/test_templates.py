"""Templates of a denoiser: what they begin with, whom a latent is taken for, and where."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from cftools import weights
from cftools.condition import Condition
from cftools.diffusion.denoiser import Inputs, solved
from cftools.diffusion.path import make_path
from cftools.errors import PresetError
from cftools.facts import DiffusionFacts
from cftools.nets.autoencoder import Autoencoder, AutoencoderArchitecture
from cftools.nets.standard import knowing
from cftools.nets.unet import UNet, UNetArchitecture
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.preset import DiffusionSampling, load_preset
from cftools.sampling import Sampler, Scene
from cftools.schema import FrozenMapping
from cftools.train.diffusion import DiffusionObjective, Latents
from cftools.train.kinds import OBJECTIVES
from cftools.train.people import Cohort, Portrait, Simulated

SIDES = (8, 8, 8)
PATH = make_path("scaled-linear")


def architecture(**changes: Any) -> UNetArchitecture:
    usual = {"sides": SIDES, "heads": 8, "centred": True, "templates": 3, "looks": (8, 8), "path": "scaled-linear"}
    return UNetArchitecture(8, 8, (8, 8), (False, True), 1, **{**usual, **changes})


def picture(seed: int, shift: float = 0.0) -> Tensor:
    """A smooth image of templates' voxels, (1, 1, 16, 16, 16), moved by some voxels along the first axis."""
    coarse = torch.randn((1, 1, 4, 4, 4), generator=torch.Generator().manual_seed(seed))
    theta = torch.eye(3, 4)[None].clone()
    theta[0, 2, 3] = 2 * shift / 16  # grid_sample's last coordinate is the first axis
    return functional.grid_sample(
        functional.interpolate(6 * coarse, size=(16,) * 3, mode="trilinear"),
        functional.affine_grid(theta, [1, 1, 16, 16, 16], align_corners=False),
        padding_mode="border",
        align_corners=False,
    )


def with_pictures(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    network = UNet(architecture())
    assert network.templates is not None
    network.templates.learn(torch.cat([network.templates.blocks(picture(number)) for number in range(3)]))
    return network


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_block_of_an_image_is_the_latent_of_a_shortcut(axis: int) -> None:
    """Up to the gains, which `Standard` undoes; and nothing is lost."""
    templates = with_pictures().templates
    assert templates is not None
    image = picture(7)
    torch.testing.assert_close(templates.image(templates.blocks(image)), image)
    shortcut = Autoencoder(AutoencoderArchitecture((8, 16, 16), latent_channels=8, shortcut=True)).shortcut
    assert shortcut is not None and shortcut.factor == 4
    places = torch.arange(32.0) + 0.5
    slope = places.view(-1, *[1] * (2 - axis)).expand(32, 32, 32)[None, None] * 1.0
    coded = shortcut.encode(slope)[0, :, 4, 4, 4]
    blocks = templates.blocks(functional.avg_pool3d(slope, 2))[0, :, 4, 4, 4]
    gains = torch.tensor([1.0, 2, 2, 2, 3, 3, 3, 4])
    # Channels are orthonormal in voxels, of which the shortcut's has eight.
    torch.testing.assert_close(coded / gains, blocks * 8**0.5, rtol=1e-3, atol=1e-2)


def test_levels_are_the_paths() -> None:
    templates = with_pictures().templates
    assert templates is not None
    times = [0.001, 0.1234, 0.7, 1.0]
    alpha, sigma = templates.levels(torch.tensor([PATH.network_time(t) for t in times]))
    wanted = torch.tensor([PATH.at(t) for t in times])
    torch.testing.assert_close(torch.stack([alpha.flatten(), sigma.flatten()], 1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [0.5, 0.8])
def test_a_noisy_latent_is_taken_for_the_template_that_it_shows(t: float) -> None:
    """Before anything is learned."""
    network = with_pictures()
    templates, standard = network.templates, network.standard
    assert templates is not None and standard is not None
    standard.centre.copy_(templates.blocks(picture(9)))
    alpha, sigma = PATH.at(t)
    told = torch.full((1,), PATH.network_time(t))
    with torch.inference_mode():
        for number in range(3):
            clean = templates.blocks(picture(number)) - standard.centre
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number))
            tokens = network.tokens(torch.zeros(1, 1)) if network.tokens else None
            brought, _ = templates(alpha * clean + sigma * noise, standard.centre, told, tokens, None)
            torch.testing.assert_close(brought, clean, rtol=1e-3, atol=1e-3)


def test_a_scan_keeps_its_template_whatever_the_noise_looks_like() -> None:
    """All noise says nothing of whose it is; who edits a scan knows."""
    network = with_pictures()
    templates, standard = network.templates, network.standard
    assert templates is not None and standard is not None
    for number in range(3):
        clean = templates.blocks(picture(number)) - standard.centre
        share = network.recognised(clean)
        assert share is not None and share.shape == (1, 3) and float(share[0, number]) > 0.99
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number + 5))
        told, context = torch.full((1,), PATH.network_time(0.95)), torch.zeros(1, 1)
        scene = Scene(clean)
        known = knowing(network, clean)
        with torch.inference_mode():
            ours, plain = known(noise, told, context), network(noise, told, context)
            expected = network(noise, told, context, share=share)
        torch.testing.assert_close(ours, expected)
        assert not torch.allclose(ours, plain, atol=1e-3)
        sampler = Sampler(
            DiffusionSampling("inverted", "ddim", 4, "zero"), DiffusionFacts("scaled-linear", "v"), network
        )
        inputs = Inputs(context=context)
        with torch.inference_mode():
            by_scan = sampler.denoise(scene, inputs, 1.0)(noise, 0.95).x0
            by_noise = sampler.denoise(Scene(), inputs, 1.0)(noise, 0.95).x0
        assert not torch.allclose(by_scan, by_noise, atol=1e-3), (
            "a run from a scan keeps to it, one from noise does not"
        )


def test_a_network_without_templates_is_asked_as_it_is() -> None:
    network = UNet(architecture(templates=0, looks=(), path=""))
    clean = torch.zeros(1, 8, *SIDES)
    assert network.recognised(clean) is None and knowing(network, clean) is network


def test_what_is_left_begins_as_a_share_of_what_tells_templates_apart() -> None:
    """Where they are all alike next to nothing is; more of a channel that shows detail than of the coarse one."""
    templates = with_pictures().templates
    assert templates is not None
    latents = torch.zeros(3, 8, *SIDES)
    latents[:, :, 2:6, 2:6, 2:6] = torch.randn((3, 8, 1, 1, 1), generator=torch.Generator().manual_seed(1))
    templates.learn(latents)
    left = templates.left.detach().exp()[0]
    apart = latents[:, :, 4, 4, 4].var(0, correction=0)
    share = left[:, 4, 4, 4] / apart
    assert ((share[1:] > share[0]) & (share[1:] < 1)).all() and share[7] == share.max()
    assert templates.left.isfinite().all(), "never nothing"
    assert float(left[:, 7, 7, 7].max()) < 0.01 * float(left[:, 4, 4, 4].mean())


def test_an_estimate_weighs_latent_and_template_by_their_noise() -> None:
    """The mean of x_0 given x_t, where x_0 is the template and a remainder of known variance: N(brought, left)."""
    templates = with_pictures().templates
    assert templates is not None
    draw = torch.Generator().manual_seed(3)
    brought, x = (torch.randn((2, 8, *SIDES), generator=draw) for _ in range(2))
    times = [0.2, 0.9]
    told = torch.tensor([PATH.network_time(t) for t in times])
    left = templates.left.detach().exp()[0]
    for prediction in ("v", "eps", "x0"):
        said = templates.expected(prediction, x, brought, told).detach()
        for one, t in enumerate(times):
            alpha, sigma = PATH.at(t)
            precision = 1 / left + alpha**2 / sigma**2
            wanted = (brought[one] / left + alpha * x[one] / sigma**2) / precision
            found = solved(prediction, said[one], x[one], alpha, sigma).x0
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_it_learns_where_things_are() -> None:
    """On one image, moved by up to two voxels: nearer than any image that stays where it is."""
    network = with_pictures()
    templates, standard = network.templates, network.standard
    assert templates is not None and standard is not None
    alpha, sigma = PATH.at(0.4)

    def batch(count: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        shifts = 4 * torch.rand(count, generator=random) - 2
        clean = torch.cat([templates.blocks(picture(0, float(shift))) for shift in shifts])
        noise = torch.randn(clean.shape, generator=random)
        return clean, alpha * clean + sigma * noise, torch.full((count,), PATH.network_time(0.4))

    random = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        clean, noisy, told = batch(4, random)
        estimate = solved("v", network(noisy, told, torch.zeros(4, 1)), noisy, alpha, sigma).x0
        optimiser.zero_grad()
        (estimate - clean).square().mean().backward()
        optimiser.step()
    clean, noisy, told = batch(16, torch.Generator().manual_seed(2))
    with torch.inference_mode():
        tokens = network.tokens(torch.zeros(16, 1)) if network.tokens else None
        brought, _ = templates(noisy, standard.centre, told, tokens, None)
    standing = (clean.mean(0) - clean).square().mean()
    assert float((brought - clean).square().mean()) < 0.6 * float(standing)


def test_all_of_it_learns_from_the_loss_alone() -> None:
    network = with_pictures()
    assert network.templates is not None
    noisy, told = torch.randn(2, 8, *SIDES), torch.full((2,), 990.0)  # noise that any of the three may be under
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(4):  # MONAI's last layers start at zero, of blocks too: what is before them hears of it in turn
        optimiser.zero_grad()
        network(noisy, told, torch.tensor([[0.5], [torch.nan]])).square().mean().backward()
        optimiser.step()
    parameters = dict(network.templates.named_parameters())
    silent = {name for name, one in parameters.items() if one.grad is None or not one.grad.any()}
    # One token has one weight, whatever is asked of it: neither key nor question matters.
    assert not {name for name in silent if not any(part in name for part in ("attn2.to_q", "attn2.to_k", ".norm2."))}


def test_a_network_in_bfloat16_says_almost_the_same() -> None:
    network = with_pictures().eval()
    noisy, told = 2 * torch.randn(1, 8, *SIDES), torch.full((1,), 300.0)
    with torch.inference_mode():
        exact = network(noisy, told, torch.zeros(1, 1))
        with torch.autocast("cpu", torch.bfloat16):
            half = network(noisy, told, torch.zeros(1, 1))
    assert float((half - exact).std()) < 0.02 * float(exact.std())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"looks": ()}, "both, two widths"),
        ({"templates": 0}, "both, two widths"),
        ({"templates": 1}, "2 or more"),
        ({"looks": (8, 12)}, "multiples"),
        ({"centred": False, "sides": SIDES, "atlas": 1}, "centred"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        architecture(**changes)


def test_a_path_without_times_is_refused() -> None:
    with pytest.raises(ValueError, match="rectified-flow"):
        architecture(path="rectified-flow")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"looks": 16}, "looks must be a list, not 16"),
        ({"channels": 32}, "channels must be a list"),
        ({"heads": 0}, "heads 0: at least 1"),
        ({"groups": 0}, "groups 0: at least 1"),
        ({"atlas": 1.5}, "atlas must be a whole number"),
        ({"inputs": 3}, r"network\.inputs: follows"),
        ({"chanels": [32]}, "did you mean channels"),
    ],
)
def test_settings_of_another_kind_are_refused(changes: dict[str, Any], reason: str) -> None:
    recipe = load_preset("ldm").recipe_for()
    arguments = FrozenMapping({**recipe.network.arguments, **changes})
    with pytest.raises(PresetError, match=reason):
        OBJECTIVES["diffusion"].architecture(
            replace(recipe, network=replace(recipe.network, arguments=arguments)), ("age", "sex")
        )


def test_a_prediction_that_is_none_is_refused() -> None:
    recipe = load_preset("ldm").recipe_for()
    with pytest.raises(PresetError, match="prediction: w: one of eps"):
        recipe = replace(recipe, data=FrozenMapping({**recipe.data, "prediction": "w"}))
        OBJECTIVES["diffusion"].architecture(recipe, ("age", "sex"))


def test_only_a_space_of_blocks_can_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_preset("ldm").recipe_for()
    made = OBJECTIVES["diffusion"].architecture(recipe, ("age", "sex"))
    assert (made.templates, made.path, made.prediction) == (26, "scaled-linear", "v")
    deep = FrozenMapping({**recipe.network.arguments, "looks": (16, 32, 32, 32)})
    with pytest.raises(PresetError, match=r"network\.looks: this space's latents can be halved 2 times"):
        deeper = replace(recipe, network=replace(recipe.network, arguments=deep))
        OBJECTIVES["diffusion"].architecture(deeper, ("age", "sex"))
    known = weights.facts_of("ae-2mm")
    plain = {**known.architecture_arguments, "shortcut": False}
    monkeypatch.setattr(weights, "facts_of", lambda _name: replace(known, architecture_arguments=plain))
    with pytest.raises(PresetError, match="shortcut"):
        OBJECTIVES["diffusion"].architecture(recipe, ("age", "sex"))


def test_training_begins_with_people_unlike_one_another() -> None:
    """In units of the image, with their average in them, whatever is taken off of latents."""
    clean = torch.randn((6, 8, *SIDES), generator=torch.Generator().manual_seed(0)) + 5

    def encoded(number: int) -> dict[str, Tensor]:
        return {"mean": clean[number : number + 1], "std": torch.zeros(1, 8, *SIDES), "context": torch.zeros(1, 1)}

    people = Cohort([Portrait(torch.zeros(1, 2, 2, 2), Condition({"age": 30.0}))] * 6, {})
    objective = DiffusionObjective(
        architecture(),
        Latents(encoded, people, 0, batch=2),
        PATH,
        "v",
        0.0,
        0,
        {},
        None,  # type: ignore[arg-type]
        typical=lambda: clean,
        unlike=lambda count: clean[:count],
    )
    network = objective.network()
    objective.settle(network)
    standard: Any = network.standard
    templates: Any = network.templates
    brought = templates.blocks(templates.images[:, None]) - standard.centre / standard.spread
    torch.testing.assert_close(brought.detach(), standard.of(clean[:3]), rtol=1e-4, atol=1e-4)


def test_simulated_people_begin_with_the_anatomies() -> None:
    family = Family([template_anatomy()], load_law("normative"), registered=True)
    people = Simulated(family, seed=0, size=3, pooled=2)
    scans = people.unlike(3)
    assert scans.shape == (3, 1, 40, 48, 44) and scans.dtype == torch.float16
    (base,) = family.bases()
    tissues = functional.avg_pool3d(base.anatomy.tissues, 2)
    fluid, white = tissues[0, 0] > 0.9, tissues[0, 2] > 0.98
    first = scans[0, 0].float()
    assert 3 * float(first[fluid].mean()) < float(first[white].mean()), "dark fluid, bright white matter"
    assert float(first[white].std()) < 0.03 * float(first[white].mean()), "no noise, no shading"
    torch.testing.assert_close(scans[1], people.scans(0)["image"][0])
    torch.testing.assert_close(scans[2], people.scans(1)["image"][0])


def test_a_cohort_begins_with_people_of_all_ages() -> None:
    ages = [50.0, 20.0, None, 80.0, 30.0]
    portraits = [
        Portrait(torch.full((1, 2, 2, 2), age or 0.0), Condition({} if age is None else {"age": age})) for age in ages
    ]
    cohort = Cohort(portraits, {})

    def values(count: int) -> list[float]:
        return [float(scan.mean()) for scan in cohort.unlike(count)]

    assert values(5) == [20.0, 30.0, 50.0, 80.0, 0.0]
    assert values(2) == [20.0, 50.0]
    assert values(7) == [20.0, 30.0, 50.0, 80.0, 0.0, 20.0, 30.0]
