"""VAE-GAN, alpha-GAN and VQVAE-AR: what each loss moves, tokens and the order they are drawn in, and toys, 16-cubed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools import weights
from cftools.autoregress import TokenMethod, gumbel, kept
from cftools.condition import Condition
from cftools.diffusion.noise import Draws
from cftools.errors import PresetError, WeightsError
from cftools.facts import GridFacts, SpaceFacts
from cftools.generate import GeneratorMethod
from cftools.nets.critic import CodeCritic, ImageCritic, unmoved
from cftools.nets.generator import Generator, GeneratorArchitecture
from cftools.nets.tokens import TokenTransformer, TransformerArchitecture, VqArchitecture, VqAutoencoder
from cftools.prepare import Grid, Prepared
from cftools.preset import load_preset
from cftools.space import VqSpace
from cftools.train.adversarial import AlphaGanObjective, VaeGanObjective, balance, gradient_penalty
from cftools.train.loop import Schedule, train
from cftools.train.store import Store
from cftools.train.tokens import Sequences, TransformerObjective, VqObjective, tokens_of
from cftools.train.twin import AGED
from cftools.volume import Volume

SIDE = 16
CPU = torch.device("cpu")
SMALL = GeneratorArchitecture((SIDE,) * 3, (8, 16), variables=2, code=6, spatial=4, groups=4)
SMALL_VQ = VqArchitecture((SIDE,) * 3, (16,), codes=32, code=4)
SMALL_TRANSFORMER = TransformerArchitecture(codes=32, length=64, variables=2, width=16, depth=2, heads=2, dropout=0.0)
WEIGHTS = {"l1": 1.0, "features": 0.1, "kl": 1e-3, "adversarial": 0.5, "code": 1.0, "gradient_penalty": 10.0}
LOSSES = {"l1": 1.0, "spectral": 1.0, "adversarial": 0.2}
GANS: dict[str, Any] = {"vae-gan": VaeGanObjective, "alpha-gan": AlphaGanObjective}


def ball(radius: float, centre: float) -> Tensor:
    axis = torch.arange(SIDE) - 7.5 - centre
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    return torch.sigmoid(2 * (radius - distance))[None]


class Balls(Dataset[dict[str, Tensor]]):
    """Balls of a radius that the first variable says, where nobody says: image (4, 1, 1, ...), context (4, 1, 2).

    People too: each number is one, at four ages.
    """

    size = 8
    spans = ((-1.0, 1.0),) * 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng(index)
        told = torch.from_numpy(random.uniform(-1, 1, (4, 1, 2))).float()
        images = [ball(5 + 1.5 * float(one[0, 0]), float(random.normal(0, 0.7))) for one in told]
        return {"image": torch.stack(images)[:, None], "context": told}

    def scans(self, number: int) -> dict[str, Tensor]:
        item = self[number]
        return {"image": item["image"][:, 0].half(), "context": item["context"][:, 0]}

    def pick(self, random: np.random.Generator, known: int) -> int:
        return int(random.integers(known))


def gan(name: str, **changed: float) -> Any:
    kind = GANS[name]
    architecture = replace(SMALL, variational=kind.VARIATIONAL)
    return kind(architecture, Balls(), (8, 16), 0.1, 0, {**WEIGHTS, **changed}, {})


def trained(objective: Any, steps: int, out: Path, rate: float = 3e-3) -> tuple[Any, list[dict[str, float]]]:
    schedule = Schedule(steps, learning_rate=rate, ema=0.9, workers=0, log_every=5, dtype="float32")
    network, _ = train(objective, schedule, out)
    return objective.product(network), [json.loads(line) for line in (out / "log.jsonl").open()]


def checkpoint(objective: Any, product: Any, architecture: str, path: Path) -> weights.Checkpoint:
    """What was trained, through the file that holds it."""
    affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    facts = weights.Facts(
        architecture=architecture,
        architecture_arguments=asdict(objective.architecture),
        variables=AGED,
        grid=GridFacts("toy", (SIDE,) * 3, affine),
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=weights.TrainingFacts("cf-train", "balls", 0, 1, 1.0, "2026-01-31"),
        licence="Apache-2.0",
        space=product.space,
        tokens=product.tokens,
    )
    weights.save(path, product.network.state_dict(), facts)
    return weights.load(path)


def told(age: float) -> Condition:
    return Condition({"age": age, "sex": "F"})


# Critics


def test_what_a_critic_says_reaches_what_it_judges_and_not_the_critic() -> None:
    context = torch.zeros(2, 2)
    for critic in (ImageCritic((8, 16), 2), ImageCritic((8, 16), 2, spectral=True)):
        x = torch.rand(2, 1, SIDE, SIDE, SIDE, requires_grad=True)
        unmoved(critic, x, context)[0].sum().backward()
        assert x.grad is not None and float(x.grad.abs().sum()) > 0
        assert all(parameter.grad is None for parameter in critic.parameters())
    codes, z = CodeCritic(6, 2), torch.randn(2, 6, requires_grad=True)
    unmoved(codes, z, context).sum().backward()
    assert z.grad is not None and all(parameter.grad is None for parameter in codes.parameters())


@pytest.mark.parametrize("name", GANS)
def test_each_side_is_moved_by_its_own_losses_alone(name: str) -> None:
    """Other weights of one side's losses leave the other side's gradients as they are."""

    def gradients(**changed: float) -> dict[str, Tensor]:
        objective = gan(name, **changed)
        network = objective.network()
        torch.manual_seed(1)
        objective.losses(network, Balls()[0])["loss"].backward()
        return {one: p.grad for one, p in network.named_parameters() if p.grad is not None}

    usual, generous, strict = gradients(), gradients(l1=5.0), gradients(gradient_penalty=50.0)
    kept = [one for one in usual if one.startswith("kept.")]
    critics = [one for one in usual if not one.startswith("kept.")]
    for one in critics:
        torch.testing.assert_close(generous[one], usual[one], msg=one)
    for one in kept:
        torch.testing.assert_close(strict[one], usual[one], msg=one)
    assert any(not torch.allclose(generous[one], usual[one]) for one in kept)
    assert any(not torch.allclose(strict[one], usual[one]) for one in critics) == (name == "alpha-gan")


@pytest.mark.parametrize("name", GANS)
def test_a_first_stage_meets_no_critic_of_images(name: str) -> None:
    objective = gan(name, adversarial=0.0, features=0.0)
    network = objective.network()
    losses = objective.losses(network, Balls()[0])
    losses["loss"].backward()
    moved = {one.split(".")[0] for one, p in network.named_parameters() if p.grad is not None}
    assert moved == ({"kept"} if name == "vae-gan" else {"kept", "codes"})
    assert losses.keys().isdisjoint({"fooled", "distance", "critic", "scale"})


def test_the_penalty_of_a_linear_critic_is_its_closed_form() -> None:
    """Its gradient is its weight, wherever: (|w| - 1)^2."""
    weight = torch.tensor([3.0, 4.0, 12.0], requires_grad=True)
    real, fake = torch.randn(5, 3), torch.randn(5, 3)
    penalty = gradient_penalty(lambda x: x @ weight, real, fake)
    assert float(penalty.detach()) == pytest.approx((13 - 1) ** 2, rel=1e-5)
    penalty.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * 12 * weight.detach() / 13, rtol=1e-4, atol=1e-4)
    flat = torch.zeros(3, requires_grad=True)
    gradient_penalty(lambda x: x @ flat, real, fake).backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all(), "a critic that says nothing has a gradient too"


def test_a_balanced_critic_is_as_strong_as_the_reconstruction() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    reconstruction, adversarial = x.square().mean(), 1000 * x.sum()
    scale = balance(reconstruction, adversarial, x)
    one, other = (torch.autograd.grad(loss, x)[0].norm() for loss in (reconstruction, scale * adversarial))
    torch.testing.assert_close(one, other)


def test_a_group_of_the_optimiser_learns_at_its_own_rate(tmp_path: Path) -> None:
    """A factor of 0 leaves the critics where they began, while the generator learns."""

    class Still(AlphaGanObjective):
        def groups(self, network: nn.Module) -> list[dict[str, Any]]:
            kept, critics = super().groups(network)
            return [kept, {**critics, "factor": 0.0}]

    objective = gan("alpha-gan")
    still = Still(**{name: getattr(objective, name) for name in objective.__dataclass_fields__})
    train(still, Schedule(2, ema=0.0, workers=0, dtype="float32"), tmp_path)
    state, begun = load_file(tmp_path / "state.safetensors"), objective.network().state_dict()
    moved = {name for name, value in begun.items() if not torch.equal(state[f"network.{name}"], value)}
    assert moved and all(name.startswith("kept.") for name in moved)


# Generators


@pytest.mark.parametrize(
    ("sides", "wavelets"), [((16, 16, 16), 1), ((12, 16, 20), 1), ((10, 6, 18), 1), ((12, 16, 20), 2)]
)
def test_a_generator_gives_images_of_its_sides(sides: tuple[int, int, int], wavelets: int) -> None:
    network = Generator(replace(SMALL, sides=sides, channels=(8, 16, 16), wavelets=wavelets))
    x, context = torch.rand(2, 1, *sides), torch.tensor([[0.3, torch.nan], [torch.nan, -1.0]])
    mean, std = network.encode(x, context)
    assert mean.shape == (2, 6) and not std.any()
    y = network.decode(mean, context)
    assert y.shape == x.shape and torch.isfinite(y).all()


@pytest.mark.parametrize("name", GANS)
def test_a_generator_learns_edits_and_samples(name: str, tmp_path: Path) -> None:
    """After a few steps balls are as large as it is told; the same code under the same condition is the same image."""
    made = gan(name)
    product, log = trained(made, 60, tmp_path)
    assert log[-1]["l1"] < 0.6 * log[0]["l1"] and all(np.isfinite(list(line.values())).all() for line in log)
    assert not any("critic" in key for key in product.network.state_dict())
    loaded = checkpoint(made, product, "generator", tmp_path / "toy.safetensors")
    method = GeneratorMethod(loaded, CPU)
    young, old = (told(AGED["age"].decode(code)) for code in (-0.9, 0.9))
    for sample in range(2):
        small, large = method.sample(young, 3, sample), method.sample(old, 3, sample)
        assert small.tobytes() == method.sample(young, 3, sample).tobytes()
        assert float(large.mean()) > float(small.mean()), "the first variable is the radius"
    assert not np.array_equal(method.sample(old, 3, 0), method.sample(old, 3, 1))
    assert not np.array_equal(method.sample(old, 3, 0), method.sample(old, 4, 0))
    fresh = GeneratorMethod(loaded, CPU)
    assert np.array_equal(method.sample(old, 3, 1), fresh.sample(old, 3, 1)), "whoever was made before"

    image = ball(5, 0.0)[0].numpy()
    volume = Volume.from_array(image, np.eye(4))
    prepared = Prepared(volume, image, Grid("toy", (SIDE,) * 3, np.eye(4)), np.eye(4), image > 0.1, 0.0, 1.0)
    preset = load_preset(name)
    for carry in ("replace", "residual", "warp"):
        same, aged, again = method.edits(preset.override(carry=carry), prepared, young, [young, old, old])
        assert aged.shape == image.shape and np.array_equal(aged, again) and not np.array_equal(aged, same)
        if carry != "replace":
            np.testing.assert_allclose(same, image, atol=2e-3, err_msg="nothing asked, nothing changed")
    words, others = method.spread(preset, prepared, young, old)
    looks = list(others)
    assert len(looks) == 6 and words.startswith("6 looks")
    (aged,) = method.edits(preset, prepared, young, [old])
    np.testing.assert_allclose(looks[1], aged.clip(min=0), atol=1e-5, err_msg="the second look is the scan as it is")
    assert not np.allclose(looks[0], looks[1], atol=1e-4) and not np.allclose(looks[4], looks[1], atol=1e-4)


def test_a_generator_is_fed_codes_alone() -> None:
    preset = load_preset("vae-gan").override(window_overlap=0.5)
    with pytest.raises(PresetError, match="takes codes"):
        GeneratorMethod.of(preset, "vae-gan-2mm", CPU)


# Tokens


def test_tokens_come_back_as_they_were() -> None:
    torch.manual_seed(0)
    network = VqAutoencoder(SMALL_VQ)
    for index in range(40):  # until the running averages have settled
        encodings = network.encode(Balls()[index]["image"].flatten(0, 1))
        network.quantized(encodings)
        network.revive(encodings, 0.05)
    space = VqSpace(SpaceFacts("vq", SMALL_VQ.sides, SMALL_VQ.code, SMALL_VQ.factor), network.eval())
    x = Balls()[0]["image"].flatten(0, 1)
    with torch.inference_mode():
        tokens = space.indices(x)
        z, _ = space.encode(x)
        assert tokens.shape == (4, 4, 4, 4) and torch.equal(space.codes(tokens), z)
        assert torch.equal(network.quantizer.quantize(z), tokens)
        assert space.decode(z).shape == x.shape
    assert len(tokens.unique()) > 3, "balls are more than one token"


def test_codes_out_of_use_move_to_where_encodings_are() -> None:
    torch.manual_seed(0)
    network = VqAutoencoder(SMALL_VQ)
    encodings = network.encode(Balls()[0]["image"].flatten(0, 1)).detach()
    network.quantized(encodings)
    codes = network.quantizer.quantizer.embedding.weight
    unused = int(network.quantizer.quantizer.ema_cluster_size.argmin())
    codes[unused] = 1e3
    assert float(network.revive(encodings, 0.05)) < 1
    rows = encodings.movedim(1, -1).flatten(0, -2)
    assert float((rows - codes[unused]).norm(dim=1).min()) == 0
    network.quantized(encodings)
    assert float((rows - codes[unused]).norm(dim=1).min()) < 0.1, "its average stands there too"


def test_an_image_learns_to_be_tokens(tmp_path: Path) -> None:
    objective = VqObjective(SMALL_VQ, Balls(), 0, LOSSES, {})
    product, log = trained(objective, 80, tmp_path)
    assert log[-1]["l1"] < 0.5 * log[0]["l1"] and log[-1]["perplexity"] > 6
    assert product.space == SpaceFacts("vq", (SIDE,) * 3, 4, 4)
    assert not any("critic" in name for name in product.network.state_dict())


def test_the_critic_of_tokens_learns_by_its_own_loss_alone() -> None:
    """Ten times its word to the autoencoder moves that, and not what the critic learns."""
    found = []
    for adversarial in (0.2, 2.0):
        objective = VqObjective(SMALL_VQ, Balls(), 0, {**LOSSES, "adversarial": adversarial}, {})
        network = objective.network()
        objective.losses(network, Balls()[0])["loss"].backward()
        found.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    once, tenfold = found
    decoder = [name for name in once if "decoder" in name]
    assert any(not torch.allclose(once[name], tenfold[name]) for name in decoder)
    for name in once:
        if name.startswith("critic."):
            torch.testing.assert_close(once[name], tenfold[name], msg=name)


def test_what_is_kept_of_those_before_changes_no_token() -> None:
    """Drawing with kept keys and values says what one pass over the whole sequence says."""
    torch.manual_seed(0)
    network = TokenTransformer(SMALL_TRANSFORMER).eval()
    tokens, context = torch.randint(32, (2, 64)), torch.tensor([[0.2, torch.nan], [-0.5, 1.0]])
    said: list[Tensor] = []

    def force(logits: Tensor, index: int) -> Tensor:
        said.append(logits)
        return tokens[:, index]

    with torch.inference_mode():
        assert torch.equal(network.draw(context, force), tokens)
        whole = network(tokens, context)
        torch.testing.assert_close(torch.stack(said, dim=1), whole, rtol=1e-4, atol=1e-5)
        later = tokens.clone()
        later[:, 40:] = 0
        seen = network(later, context)[:, :41]
        torch.testing.assert_close(seen, whole[:, :41], msg="nothing is known of those after")
        assert not torch.allclose(network(tokens, -context), whole), "the condition is heard"
    assert not any("mask" in name for name in network.state_dict())


def test_gumbel_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log().expand(20000, 3)
    drawn = (logits + gumbel(Draws(0, (0,))(torch.zeros(1, 20000, 3), "move", 0)[0])).argmax(1)
    shares = torch.bincount(drawn, minlength=3) / 20000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.015, rtol=0)
    assert torch.equal(kept(logits[:1], 0), logits[:1])
    assert torch.isinf(kept(logits[:1], 2)).tolist() == [[True, False, False]]


def test_a_transformer_learns_tokens_and_draws_them(tmp_path: Path) -> None:
    coded = VqObjective(SMALL_VQ, Balls(), 0, {**LOSSES, "adversarial": 0.0}, {})
    product, _ = trained(coded, 60, tmp_path / "vq")
    space_file = tmp_path / "vq.safetensors"
    one = checkpoint(coded, product, "vqvae", space_file)
    space, people = VqSpace(product.space, product.network), Balls()
    made = tokens_of(space, people, 0)
    assert made["tokens"].shape == (8, 64) and made["context"].shape == (8, 2)
    first_scan = people.scans(0)["image"][:1].float()
    assert torch.equal(made["tokens"][0].long(), space.indices(first_scan).flatten(1)[0])
    assert torch.equal(made["tokens"][4].long(), space.indices(first_scan.flip(2)).flatten(1)[0]), "mirrored"
    assert torch.equal(made["context"][4], made["context"][0])
    counts: list[int] = []

    def counted(number: int) -> dict[str, Tensor]:
        counts.append(number)
        return tokens_of(space, people, number)

    sequences = Sequences(counted, people, 0, batch=4, every=1, store=Store())
    assert sequences[5]["tokens"].shape == (4, 64) and sequences[5]["tokens"].dtype == torch.int64
    objective = TransformerObjective(SMALL_TRANSFORMER, sequences, 0.1, 0, {}, product.space, one.sha256)
    product, log = trained(objective, 80, tmp_path / "ar", rate=1e-2)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"] and len(counts) == len(set(counts)), "each is encoded once"
    path = tmp_path / "ar.safetensors"
    checkpoint(objective, product, "token-transformer", path)

    preset = load_preset("vqvae-ar")
    preset = replace(preset, weights={**preset.weights, "space": (str(space_file),)})
    method, loaded = TokenMethod.of(preset, str(path), CPU)
    assert loaded.keys() == {"transformer", "space"}
    first = method.sample(told(40.0), 1, 0)
    assert first.shape == (SIDE,) * 3 and first.tobytes() == method.sample(told(40.0), 1, 0).tobytes()
    assert not np.array_equal(first, method.sample(told(40.0), 1, 1))
    assert not np.array_equal(first, method.sample(told(40.0), 2, 0))
    greedy, _ = TokenMethod.of(preset.override(top_k=1), str(path), CPU)
    assert np.array_equal(greedy.sample(told(40.0), 1, 0), greedy.sample(told(40.0), 2, 7)), "the likeliest alone"
    other = tmp_path / "other.safetensors"
    checkpoint(coded, coded.product(coded.network()), "vqvae", other)
    preset = replace(preset, weights={**preset.weights, "space": (str(other),)})
    with pytest.raises(WeightsError, match="another space"):
        TokenMethod.of(preset, str(path), CPU)


# By the commands

TINY: dict[str, list[str]] = {
    "vae-gan": ["network.channels=[8,8,8]", "network.code=4", "network.spatial=1", "data.critic=[4,4]"],
    "alpha-gan": ["network.channels=[8,8,8]", "network.code=4", "network.spatial=1", "data.critic=[4,4]"],
    "vq": ["network.channels=[4]", "network.wavelets=1", "network.codes=8", "network.code=4"],
    "vqvae-ar": ["network.width=8", "network.depth=1", "network.heads=1", "data.sequences=2"],
}
SIZES = ["training.steps=2", "data.cohort=1", 'data.grid="MNI152 4 mm"', "data.ages=1"]
BATCH = ["data.subjects=2", "data.together=1"]


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Weights of a preset by cf-train, two steps on the 4 mm grid."""
    from cftools.cli.train import main

    folder = tmp_path_factory.mktemp("runs")

    def made(name: str) -> Path:
        out = folder / name
        if not out.exists():
            settings = [*SIZES, *TINY[name]]
            settings += [f'data.space="{made("vq")}"'] if name == "vqvae-ar" else BATCH
            words = [word for setting in settings for word in ("--set", setting)]
            words += ["--cache", str(folder / "cache"), "--workers", "0", "--device", "cpu", "--validate-every", "2"]
            assert main(["--preset", name, "--out", str(out), *words]) == 0
        return out / "weights.safetensors"

    return made


@pytest.mark.parametrize("name", GANS)
def test_the_commands_train_edit_and_make_scans(
    name: str, by_command: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cftools.cli.edit import main as edit
    from cftools.cli.synth import main as synth
    from cftools.phantom.anatomy import template_anatomy
    from cftools.phantom.law import load_law
    from cftools.phantom.twins import Family
    from cftools.prepare import GRID_2MM

    chosen = ["--preset", name, "--weights", str(by_command(name)), "--device", "cpu"]
    (validated,) = (json.loads(line) for line in (by_command(name).parent / "validation.jsonl").open())
    assert validated.pop("step") == 2 and all(np.isfinite(list(validated.values()))) and "scale" in validated
    image = Family([template_anatomy()], load_law("normative")).draw(0, 0).at(50.0).image()[0, 0].numpy()
    scan, target = tmp_path / "sub-01_T1w.nii.gz", tmp_path / "older.nii.gz"
    Volume.from_array(image, GRID_2MM.affine).save(scan)
    words = ["--age", "80", "--from", "age=50,sex=F", "--prepared", *chosen]
    assert edit([*words, str(scan), str(target)]) == 0
    assert Volume.load(target).array.shape == image.shape
    command = json.loads((tmp_path / "older.json").read_text())["cftools"]["command"]
    assert f"--preset {name}" in command and "--carry replace" in command and "--steps" not in command
    for out, more in (("one", []), ("two", ["--shard", "1/2"]), ("two", ["--shard", "2/2"])):
        assert synth(["--age", "20,80", "--seed", "3", *chosen, *more, str(tmp_path / out)]) == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.nii.gz"))
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), "shards change nothing"
    capsys.readouterr()
    assert edit([*words, "--guidance", "2", str(scan), str(tmp_path / "not.nii.gz")]) == 2
    assert "has no guidance" in capsys.readouterr().err
    assert edit([*words, "--dtype", "bfloat16", str(scan), str(tmp_path / "not.nii.gz")]) == 2
    assert "has no dtype" in capsys.readouterr().err


def test_the_commands_train_and_draw_tokens(
    by_command: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cftools.cli.edit import main as edit
    from cftools.cli.synth import main as synth
    from cftools.preset import presets_folder

    text = (
        (presets_folder() / "vqvae-ar.toml")
        .read_text()
        .replace('space = ["vq-2mm"]', f'space = ["{by_command("vq")}"]')
    )
    preset = tmp_path / "vqvae-ar.toml"
    preset.write_text(text)
    chosen = ["--preset", str(preset), "--weights", str(by_command("vqvae-ar")), "--device", "cpu"]
    for out in ("one", "two"):
        assert synth(["--age", "70", "--sex", "M", "--seed", "3", *chosen, str(tmp_path / out)]) == 0
    (one,), (two,) = ([*(tmp_path / out).rglob("*.nii.gz")] for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert edit(["--age", "70", *chosen, "scan.nii.gz"]) == 2
    assert "does not edit" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*GANS, "vqvae-ar"])
def test_weights_that_are_not_there_are_said_before_any_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cftools.cli.synth import main

    monkeypatch.setattr(weights, "bundled_dir", lambda: tmp_path)
    assert main(["--preset", name, str(tmp_path / "out")]) == 3
    assert "are not installed: cf-train makes them" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["bundled", "full"])
@pytest.mark.parametrize("name", [*GANS, "vq"])
def test_recipes_describe_networks(name: str, size: Any) -> None:
    from cftools.train.recipes import check, usual

    recipe = load_preset(name).recipe_for(size)
    assert check(recipe, usual(recipe)).sides == ((80, 96, 88) if size == "bundled" else (160, 192, 176))


def test_recipes_refuse_what_is_none() -> None:
    from cftools.train.recipes import check

    recipe = load_preset("vae-gan").recipe_for()
    with pytest.raises(PresetError, match="one width or more"):
        check(replace(recipe, data={"critic": []}), ["age", "sex"])
    tokens = load_preset("vqvae-ar").recipe_for()
    with pytest.raises(PresetError, match="no weights of a vector-quantised"):
        check(replace(tokens, data={"space": "ae-2mm"}), ["age", "sex"])
    coded = load_preset("vq").recipe_for()
    with pytest.raises(PresetError, match="multiples of 16"):
        check(replace(coded, network=replace(coded.network, arguments={"channels": [4, 4, 4]})), [])
