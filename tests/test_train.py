"""The training loop: exact resume whatever killed it, an honest log, and settings that may not change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from cftools.errors import UsageError
from cftools.train.loop import Product, Schedule, train


class Points(Dataset[dict[str, Tensor]]):
    """y = 3x - 1 at points that depend on the step alone."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = torch.randn(16, 1, generator=torch.Generator().manual_seed(index))
        return {"x": x, "y": 3 * x - 1}


class Line:
    """A regression that anything can learn."""

    def __init__(self, width: int = 8) -> None:
        self.width = width

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Conv3d(1, self.width, 1), nn.SiLU(), nn.Conv3d(self.width, self.width, (1, 1, 2)), nn.Dropout(0.05)
        line = nn.Sequential(*layers, nn.Flatten(), nn.Linear(self.width, 1))
        return line.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        return Points()

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        error = (network(item["x"].view(-1, 1, 1, 1, 1).expand(-1, -1, 1, 1, 2)).float() - item["y"]).square().mean()
        return {"loss": error, "absolute": error.sqrt()}

    def description(self) -> dict[str, Any]:
        return {"width": self.width}

    def product(self, network: nn.Module) -> Product:
        return Product(network)


class Settling(Line):
    """A regression that learns one thing of the data before the first step."""

    settled = 0

    def settle(self, network: nn.Module) -> None:
        self.settled += 1
        network.get_parameter("0.bias").data.fill_(3.0)


SCHEDULE = Schedule(60, learning_rate=0.05, ema=0.9, workers=0, save_every=10, log_every=5)
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import Line, SCHEDULE
from cftools.train.loop import train
def die(step, total, losses):
    if step == 35:
        os.kill(os.getpid(), signal.SIGKILL)
train(Line(), SCHEDULE, Path({out!r}), die)
"""


def test_what_can_be_said_of_the_data_is_said_once_and_stays_with_the_weights(tmp_path: Path) -> None:
    still = replace(SCHEDULE, steps=1, learning_rate=1e-9, ema=0.0)
    settling = Settling()
    settled, _ = train(settling, still, tmp_path / "settled")
    train(settling, still, tmp_path / "settled")
    assert settling.settled == 1, "a run that goes on has been settled"
    torch.testing.assert_close(settled.get_parameter("0.bias"), torch.full((8,), 3.0))
    other = Settling()
    initial = {**other.network().state_dict(), "0.bias": torch.full((8,), 4.0)}
    tuned, _ = train(other, still, tmp_path / "tuned", initial=initial)
    assert other.settled == 0, "initial weights keep what they know"
    torch.testing.assert_close(tuned.get_parameter("0.bias"), initial["0.bias"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    train(Line(), SCHEDULE, out)
    return out


def test_it_learns_and_logs(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 61, 5))
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    assert lines[-1]["absolute"] > 0


def test_killed_and_resumed_ends_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, timeout=120)
    assert killed.returncode == -9
    assert not list(tmp_path.glob("weights*"))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 7
    resumed = []
    train(Line(), SCHEDULE, tmp_path, lambda step, total, losses: resumed.append(step))
    assert resumed[0] == 35, "it starts from the last saved state, step 30"
    ours, theirs = load_file(tmp_path / "state.safetensors"), load_file(whole / "state.safetensors")
    assert ours.keys() == theirs.keys() and any(name.startswith("optimiser") for name in ours)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.open()]
        for path in (tmp_path / "log.jsonl", whole / "log.jsonl")
    ]
    assert logs[0] == logs[1]


def test_average_is_returned_not_the_last_weights(whole: Path) -> None:
    network, _ = train(Line(), SCHEDULE, whole)
    state = load_file(whole / "state.safetensors")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[f"average.{name}"])
        assert not torch.equal(tensor, state[f"network.{name}"])


def test_workers_change_nothing(whole: Path, tmp_path: Path) -> None:
    schedule = Schedule(**{**SCHEDULE.__dict__, "workers": 1})
    train(Line(), schedule, tmp_path)
    ours, theirs = load_file(tmp_path / "state.safetensors"), load_file(whole / "state.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_settings_do_not_resume(whole: Path) -> None:
    with pytest.raises(UsageError, match="other settings"):
        train(Line(width=9), SCHEDULE, whole)


def test_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read"):
        train(Line(), SCHEDULE, tmp_path)


def test_command_trains_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cftools import weights
    from cftools.cli.train import main

    out = tmp_path / "run"
    settings = ["--set", "training.steps=2", "--set", "network.channels=[4,8]", "--set", "network.atlas=2"]
    settings += ["--set", "data.cohort=1", "--cache", str(tmp_path / "cache")]
    words = ["--preset", "twin", "--out", str(out), *settings, "--workers", "0", "--device", "cpu"]
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(out / "weights.safetensors")
    checkpoint = weights.load(out / "weights.safetensors", expect="twin")
    assert list(checkpoint.facts.variables) == ["age", "sex"]
    assert checkpoint.facts.training.steps == 2 and "MNI152" in checkpoint.facts.training.data
    started = [*words[:2], "--out", str(tmp_path / "more"), *words[4:]]
    assert main([*started, "--init", str(out / "weights.safetensors")]) == 0
    more = weights.load(tmp_path / "more" / "weights.safetensors")
    assert all(torch.allclose(more.tensors[k], v, atol=0.05) for k, v in checkpoint.tensors.items())
    capsys.readouterr()


SMALL_SPACE = [
    "training.steps=2",
    "network.channels=[8,8]",
    "data.cohort=1",
    "data.patch=16",
]


def _words(out: Path, *more: str) -> list[str]:
    settings = [word for setting in SMALL_SPACE for word in ("--set", setting)]
    return ["--preset", "ae", "--out", str(out), *settings, "--workers", "0", "--device", "cpu", *more]


@pytest.fixture(scope="module", autouse=True)
def few_images_tell_the_spread() -> Iterator[None]:
    """Each takes a second to simulate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cftools.train.autoencoder.SPREAD_FROM", 2)
        yield


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves of an autoencoder after two steps, with pictures and events."""
    from cftools.cli.train import main

    out = tmp_path_factory.mktemp("space")
    assert main(_words(out, "--cache", str(out / "cache"), "--preview-every", "1", "--tensorboard")) == 0
    return out


@pytest.fixture(scope="module")
def small_space(small_run: Path) -> Path:
    return small_run / "weights.safetensors"


def test_what_the_autoencoders_recipe_leaves_can_be_used(small_space: Path) -> None:
    from cftools.diffuse import load_space

    space, checkpoint = load_space(str(small_space))
    assert checkpoint.facts.contrasts == ("T1w", "T2w", "FLAIR", "T1ce")
    mean, std = space.encode(torch.rand(1, 1, *space.facts.shape))
    assert mean.shape[1:] == space.facts.latent_shape == std.shape[1:]


def test_what_the_denoisers_recipe_leaves_can_be_used(small_space: Path, tmp_path: Path) -> None:
    """From the command to samples: what it writes is all that sampling needs, and what cdm is fine-tuned from."""
    from PIL import Image

    from cftools.cli.train import main
    from cftools.condition import Condition
    from cftools.diffuse import DiffusionModel
    from cftools.facts import Target
    from cftools.piping import pipe_plan
    from cftools.preset import load_preset

    settings = ["training.steps=2", "network.channels=[8,8]", "network.attention=[false,true]", "network.heads=8"]
    settings += ["network.templates=2", "network.looks=[8,8]"]
    settings += ["data.cohort=1", "data.ages=2", "data.latents=2", f'data.space="{small_space}"']
    words = [word for setting in settings for word in ("--set", setting)]
    words += ["--workers", "0", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    assert main(["--preset", "ldm", "--out", str(tmp_path / "ldm"), *words]) == 0
    words += ["--init", str(tmp_path / "ldm" / "weights.safetensors"), "--preview-every", "2"]
    assert main(["--preset", "cdm", "--out", str(tmp_path / "cdm"), *words]) == 0
    logged = json.loads((tmp_path / "cdm" / "log.jsonl").read_text())
    assert {"loss", "denoising", "cycle"} <= logged.keys() and logged["cycle"] > 0
    sheet = np.asarray(Image.open(tmp_path / "cdm" / "previews" / "step-000002.png"))
    assert sheet.shape == (2 * 96, 3 * 3 * 96) and sheet.max() > 0, "two latents, noised, and what they are taken for"
    preset = load_preset("cdm")
    preset = replace(preset, weights={**preset.weights, "space": (str(small_space),)})
    chosen = pipe_plan(preset, str(tmp_path / "cdm" / "weights.safetensors"), Condition(), task="synth", steps=2)
    model, _ = DiffusionModel.of(chosen.preset, chosen.weights, torch.device("cpu"))
    latent = model.synthesise([Target(Condition({"age": 60.0, "sex": "F"}))], 0, 0, "test")
    assert np.isfinite(model.decode(latent.edited[0])).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "losses.feild=1.0"], "losses.feild"),
        (["--set", "training.epochs=4"], "only training.steps"),
        (["--set", "network.depth=3"], "depth"),
        (["--set", "steps=3"], "table.key=value"),
        (["--condition", "sex"], "a twin can learn age"),
        (["--no-template"], "--data"),
        (["--size", "huge"], "bundled or full"),
        (["--set", "data.template=2.0"], "no share"),
        (["--set", "data.cohort=true"], "is no number"),
        (["--set", "network.velocity_mm=2"], "4 or 8"),
        (["--law", "no such law"], "no such ageing law"),
    ],
)
def test_command_refuses(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cftools.cli.train import main
    from cftools.phantom import anatomy

    monkeypatch.setattr(anatomy, "template_anatomy", lambda grid: pytest.fail("work before the checks"))
    assert main(["--preset", "twin", "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "ldm", "--set", 'data.people="odd"'], "there are varied and registered"),
        (["--preset", "sex", "--set", "data.paired=1"], "neither true nor false"),
        (["--preset", "score-age", "--set", "data.paired=true"], "data.paired"),
    ],
)
def test_command_refuses_people_that_there_are_not(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cftools.cli.train import main

    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_dry_run_counts_what_training_would_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cftools.cli.train import main

    facts = []
    for setting in ("training.batch=3", "training.checkpointing=true"):
        assert main([*_words(tmp_path / "run", "--set", setting), "--dry-run", "--json", "-"]) == 0
        facts.append(json.loads(capsys.readouterr().out))
    assert not (tmp_path / "run").exists()
    assert facts[0]["steps"] == 2 and facts[0]["batch"] == 3
    assert facts[0]["anatomies"] == ["MNI152"] and facts[0]["item"] == {"image": [1, 1, 16, 16, 16]}
    assert facts[0]["weights_mib"] == pytest.approx(facts[0]["parameters"] * 20 / 2**20, abs=0.1)
    assert 0 < facts[0]["kept"] < facts[0]["parameters"] and facts[0]["teraflop"] > 0
    assert 0 < facts[1]["activations_mib"] < 0.8 * facts[0]["activations_mib"]
    assert main([*_words(tmp_path / "run"), "--json", "-"]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_pictures_and_events_are_written(small_run: Path) -> None:
    pytest.importorskip("tensorboard")
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert [path.name for path in sorted((small_run / "previews").iterdir())] == ["step-000001.png", "step-000002.png"]
    sheet = np.asarray(Image.open(small_run / "previews/step-000002.png"))
    assert sheet.shape == (16, 2 * 3 * 16), "a patch before and after, in three planes"
    assert sheet.max() > 0
    events = EventAccumulator(str(small_run / "tensorboard")).Reload()
    [line] = [json.loads(line) for line in (small_run / "log.jsonl").open()]
    assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("loss")] == [(2, line["loss"])]
    assert [event.step for event in events.Images("preview")] == [1, 2]


def test_tensorboard_that_is_missing_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cftools.cli.training import Watch
    from cftools.errors import CftoolsWarning

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    watch = Watch(tmp_path, tensorboard=True)
    with pytest.warns(CftoolsWarning, match="not installed") as said:
        watch.losses(1, {"loss": 1.0})
        watch.losses(2, {"loss": 1.0})
    watch.close()
    assert len(said) == 1


def test_all_that_is_wrong_with_a_cohort_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scan has no age, one cannot be read, one person has no scan and one has two."""
    import nibabel

    from cftools.cli.train import main
    from cftools.phantom import anatomy

    for name in ("sub-01_T1w", "sub-02_T1w", "sub-03_run-1_T1w", "sub-03_run-2_T1w"):
        path = tmp_path / "bids" / name[:6] / "anat" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.Nifti1Image(np.random.default_rng(0).random((24, 24, 24), np.float32), np.eye(4)).to_filename(path)
    (tmp_path / "bids/sub-02/anat/sub-02_T1w.nii.gz").write_bytes(b"no image")
    ages = "sub-01\tn/a\nsub-02\t40\nsub-03\t50\nsub-04\t60\n"
    (tmp_path / "bids/participants.tsv").write_text(f"participant_id\tage\n{ages}")
    monkeypatch.setattr(anatomy, "scan_anatomy", lambda *given: anatomy.template_anatomy(given[-1]))
    words = [
        "--preset",
        "ae",
        "--data",
        str(tmp_path / "bids"),
        "--source",
        "simulated",
        "--out",
        str(tmp_path / "run"),
    ]
    monkeypatch.setattr("cftools.cli.bases.real_images", lambda *given, **more: [])
    assert main([*words, "--strict", "--dry-run", "--threads", "1"]) == 3
    said = capsys.readouterr().err
    for text in ("sub-01_T1w.nii.gz: its age", "sub-02_T1w.nii.gz", "sub-04", "2 T1w scans", "error: --strict: 4"):
        assert text in said, f"{text} is missing in: {said}"
    small = [word for setting in SMALL_SPACE for word in ("--set", setting)]
    assert main([*words, *small, "--dry-run", "--json", str(tmp_path / "facts.json"), "--threads", "1"]) == 0
    assert len(json.loads((tmp_path / "facts.json").read_text())["anatomies"]) == 3
    assert not (tmp_path / "run").exists()


def test_a_stopped_command_says_so(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import signal

    from cftools.cli.train import main
    from cftools.train.autoencoder import AutoencoderObjective

    words = _words(tmp_path, "--cache", str(small_run / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        losses = AutoencoderObjective.losses

        def asked(self: AutoencoderObjective, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
            signal.raise_signal(signal.SIGUSR1)
            return losses(self, network, item)

        patch.setattr(AutoencoderObjective, "losses", asked)
        assert main(words) == 143
    said = capsys.readouterr()
    assert "SIGUSR1 after step 1 of 2" in said.err and not said.out
    assert main(words) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "weights.safetensors")
