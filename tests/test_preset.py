"""Presets: the schema holds every row of the design's table, and refuses all else in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cftools.condition import Condition
from cftools.errors import PresetError
from cftools.planning import plan
from cftools.preset import (
    DiffusionSampling,
    Preset,
    list_presets,
    load_preset,
    presets_folder,
    read_preset,
)
from cftools.schema import FrozenMapping, plain

FIXTURES = Path(__file__).parent / "presets"
ROWS = {
    *("twin", "ldm", "cdm", "vae-gan", "alpha-gan", "vqvae-ar", "sdedit", "palette", "repaint", "mededit"),
    *("mededit-box", "wdm", "rflow", "iddpm", "iddim", "cg-ddpm", "mri-cgan"),
}
FILES = sorted(FIXTURES.glob("*.toml")) + sorted(presets_folder().glob("*.toml"))
TWIN = (presets_folder() / "twin.toml").read_text()
FLOWS = 'flow = ["twin-age-2mm", "twin-diagnosis-2mm"]'


def fixture(name: str) -> Preset:
    return read_preset(FIXTURES / f"{name}.toml")


def refused(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PresetError) as caught:
        read_preset(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < len(str(path)) + 200
    return message


def test_every_row_of_the_table_is_a_file() -> None:
    assert {path.stem for path in FILES} == ROWS | {
        *("edit-friendly", "age", "ae", "brainmask", "cdm", "features", "score-age", "sex", "tissues", "vq")
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schema_holds(path: Path) -> None:
    preset = read_preset(path)
    assert preset.name == path.stem
    # Nothing of the file is lost: what it says is in the preset, at the same place.
    assert holds(plain(preset), tomllib.loads(path.read_text()))
    assert hash(preset) == hash(read_preset(path))


def holds(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(key in whole and holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list) and part and isinstance(part[0], dict):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


def test_only_what_runs_is_shipped() -> None:
    assert list_presets() == (
        *("ae", "age", "alpha-gan", "brainmask", "cdm", "features", "ldm", "score-age", "sex", "tissues", "twin"),
        *("vae-gan", "vq", "vqvae-ar"),
    )
    assert load_preset("twin") == load_preset(presets_folder() / "twin.toml")


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="did you mean twin"):
        load_preset("twins")
    with pytest.raises(
        PresetError, match=r"there are ae, age, alpha-gan, brainmask, cdm, .* tissues, twin, vae-gan, vq, vqvae-ar"
    ):
        load_preset("diffuse")
    with pytest.raises(PresetError, match="no such file"):
        load_preset(tmp_path / "none.toml")
    with pytest.raises(PresetError, match="no such file"):
        load_preset(tmp_path.with_suffix(".toml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 2\n", "stepz = 1\n", "unknown key stepz: did you mean steps?"),
        ("steps = 2\n", 'steps = "1"\n', "steps must be a whole number, not '1'"),
        ("steps = 2\n", "steps = 1.0\n", "steps must be a whole number, not 1.0"),
        ("steps = 2\n", "steps = true\n", "steps must be a whole number, not True"),
        ("steps = 2\n", "steps = 0\n", "steps must be 1 or more"),
        ("steps = 2\n", "steps = 2026-01-31\n", "steps must be a whole number"),
        ("steps = 2\n", "noise = 'zero'\n", "unknown key noise"),
        ("[sampling]", "[[sampling]]", "sampling must be a table"),
        ('"twin"\ntitle', '"twin"\nbase = "ldm"\ntitle', "unknown key base"),
        ('method = "flow"', 'method = "flows"', "method must be one of"),
        ('method = "flow"', "method = 3", "method must be one of"),
        ('method = "flow"\n', "", "method must be one of"),
        ('["edit"]', '["edit", "edit"]', "tasks: name each once"),
        ('["edit"]', "[]", "tasks: name one"),
        ('["edit"]', '"edit"', "tasks must be a list"),
        ('["edit"]', '["sing"]', "tasks[0] must be one of"),
        ('["edit"]', '["synth"]', "carry goes with"),
        ('carry = "field"\n', "", "carry goes with"),
        ('carry = "field"', 'carry = "fields"', "carry must be one of"),
        (FLOWS, 'flow = "twin-age-2mm"', "weights.flow must be a list"),
        (FLOWS, "flow = []", "weights.flow: name one"),
        (FLOWS, 'denoiser = ["a"]', "weights.denoiser: a flow method has flow"),
        (FLOWS, "", "weights.flow is missing"),
        ('title = "', 'title = 3 # "', "title must be a text"),
        ("learning_rate = 1.5e-3", "learning_rate = 1", "write 1.0"),
        ("learning_rate = 1.5e-3", "learning_rate = nan", "learning_rate must be finite"),
        ("learning_rate = 1.5e-3", "", "recipe[0].training.learning_rate is missing"),
        ("ema = 0.", "emma = 0.", "recipe[0].training.emma: did you mean ema?"),
        ("ema = 0.", "epochs = 3\nema = 0.", "steps or epochs"),
        ("ema = 0.", "ema = 1.", "ema must be"),
        ("channels = [", "channels = [{}, ", "recipe[0].network.channels[0] must be a text, a number"),
        ('role = "flow"', 'role = "denoiser"', "recipe.role denoiser"),
        ("[[recipe]]", "[recipe]", "recipe must be a list"),
        ('size = "bundled"', 'size = "huge"', "recipe[0].size must be one of bundled, full"),
        ("[sampling]", "[tuned.other]\nsteps = 2\n[sampling]", "tuned.other: no role names"),
    ],
)
def test_what_the_schema_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TWIN
    assert message in refused(tmp_path, TWIN.replace(old, new, 1))


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe" + "name".encode("utf-16-le"),
        b"\x89PNG\r\n\x1a\n",
        "name = ",
        "name = 'a'\nname = 'b'",
        "x = " + "[" * 5000,
        f"x = {'9' * 5000}",
        "a." * 3000 + "b = 1",
        "",
        "\x00",
    ],
    ids=["utf-16", "png", "cut", "twice", "nested", "digits", "dotted", "empty", "nul"],
)
def test_what_is_no_preset_at_all(tmp_path: Path, text: str | bytes) -> None:
    refused(tmp_path, text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "fresh"}, "solver ddim does not go with noise fresh"),
        ({"solver": "ddpm"}, "solver ddpm does not go with noise zero"),
        ({"solver": "ddpm", "noise": "fresh"}, "cannot be inverted"),
        ({"start": "recorded"}, "recorded"),
        ({"start": "noised", "solver": "ddpm", "noise": "tape"}, "recorded"),
        ({"start": "prior", "start_time": 0.5}, "start_time"),
        ({"start_time": 0.0}, "start_time"),
        ({"start": "prior"}, "inversion"),
        ({"end_time": 0.5}, "end_time does not go with start inverted"),
        ({"start": "prior", "end_time": 1.0}, "end_time must be"),
        ({"start": "prior", "end_time": 0.5, "steps": 1}, "end_time needs two steps"),
        ({"dilation": 3}, "repaint"),
        ({"resample": 3}, "repaint"),
        ({"window_overlap": 1.0}, "window_overlap"),
        ({"runs": 0}, "runs"),
        ({"guidance": -1.0}, "guidance"),
        ({"start": "noised", "solver": "ddpm", "noise": "paired"}, "partner"),
        ({"steps": "10"}, "whole number"),
        ({"guidance": 3}, "write 3.0"),
        ({"temperature": 1.0}, "has no temperature"),
        ({"name": "other"}, "has no name"),
        ({"carry": "lift"}, "carry must be one of"),
    ],
)
def test_flags_are_checked_like_the_file(changes: dict[str, Any], message: str) -> None:
    preset = fixture("ldm")
    if "start" in changes and "inversion" not in message:
        preset = preset.override(inversion_iterations=1, inversion_tolerance=0.0)
    with pytest.raises(PresetError, match=message) as caught:
        preset.override(**changes)
    assert str(caught.value).startswith("preset ldm")


def test_flag_beats_tuned_beats_preset_beats_default() -> None:
    def sampling(preset: Preset) -> DiffusionSampling:
        assert isinstance(preset.sampling, DiffusionSampling)
        return preset.sampling

    preset = fixture("sdedit")
    assert (sampling(preset).guidance, sampling(preset).start_time) == (1.0, 0.2)
    stroke, tumour = preset.with_weights("lesion-2d-stroke"), preset.with_weights("lesion-2d-tumour")
    assert (sampling(stroke).start_time, sampling(tumour).start_time) == (0.2, 0.6)
    assert tumour.weights == {"denoiser": ("lesion-2d-tumour",)}
    flagged = tumour.override(start_time=0.4, steps=None)
    assert (sampling(flagged).start_time, sampling(flagged).steps) == (0.4, 600)
    assert sampling(tumour).start_time == 0.6
    assert preset.with_weights("my/own.safetensors").weights["denoiser"] == ("my/own.safetensors",)
    assert preset.override(carry="region").carry == "region"


def test_new_scans_are_made_as_the_prior_says(tmp_path: Path) -> None:
    ldm = fixture("ldm")
    assert isinstance(ldm.sampling, DiffusionSampling) and ldm.sampling.start == "inverted"
    plain = ldm.without_scan().sampling
    assert isinstance(plain, DiffusionSampling)
    assert (plain.start, plain.noise, plain.inversion_iterations) == ("prior", "zero", 1)
    assert (plain.solver, plain.steps, plain.guidance) == (
        ldm.sampling.solver,
        ldm.sampling.steps,
        ldm.sampling.guidance,
    )
    path = tmp_path / "mine.toml"
    text = (FIXTURES / "ldm.toml").read_text()
    prior = '[prior]\nsolver = "ddpm"\nnoise = "fresh"\nsteps = 7\nend_time = 0.5\n\n'
    path.write_text(text.replace("[[recipe]]", prior + "[[recipe]]", 1))
    mine = read_preset(path)
    other = mine.without_scan().override(steps=9).sampling
    assert isinstance(other, DiffusionSampling)
    assert (other.start, other.solver, other.noise, other.steps) == ("prior", "ddpm", "fresh", 9)
    assert other.end_time == 0.5
    assert mine.with_weights("age-ldm-2mm").sampling == ldm.sampling, "edits are made as before"
    assert mine.with_weights("age-ldm-2mm").without_scan().sampling.steps == 7  # type: ignore[union-attr]
    assert mine.without_scan().without_scan() == mine.without_scan()
    path.write_text(text.replace("[[recipe]]", '[prior]\nsolver = "ddpm"\n\n[[recipe]]', 1))
    with pytest.raises(PresetError, match="does not go with noise zero"):
        read_preset(path)
    path.write_text(text.replace("[[recipe]]", "[prior]\nstart_time = 0.5\n\n[[recipe]]", 1))
    with pytest.raises(PresetError, match=r"prior\.start_time: must be one of solver, steps"):
        read_preset(path)
    assert "prior goes with" in refused(tmp_path, TWIN.replace("[sampling]", "[prior]\nsteps = 2\n[sampling]"))


def test_a_file_named_by_mistake_is_not_read(tmp_path: Path) -> None:
    assert "too large" in refused(tmp_path, TWIN + "\n" * (1 << 20))


def test_a_recipe_stands_once(tmp_path: Path) -> None:
    assert "two recipes" in refused(tmp_path, TWIN + TWIN[TWIN.index("[[recipe]]") :])


def test_a_tuned_value_is_checked_when_the_preset_is_read(tmp_path: Path) -> None:
    tuned = TWIN.replace("[sampling]", '[tuned.twin-age-2mm]\nsteps = "many"\n[sampling]')
    path = tmp_path / "mine.toml"
    path.write_text(tuned)
    with pytest.raises(PresetError, match="steps must be a whole number"):
        read_preset(path)


def test_recipes() -> None:
    twin = load_preset("twin").recipe_for()
    assert (twin.role, twin.size, twin.objective) == ("flow", "bundled", "twin")
    assert twin.network.arguments.keys() == {"channels", "velocity_mm", "residual"}
    ldm = fixture("ldm")
    assert ldm.recipe_for("full").network.arguments["channels"] == (384, 512, 512)
    assert ldm.recipe_for("full", role="space").network.architecture == "autoencoder-kl"
    cg = fixture("cg-ddpm")
    assert cg.recipe_for("full", objective="cycle-guided").initial == "cg-t1-t2-phase1"
    with pytest.raises(PresetError, match="several recipes, name one: diffusion, cycle-guided"):
        cg.recipe_for("full")
    with pytest.raises(PresetError, match="no recipe for denoiser, bundled"):
        cg.recipe_for()


def test_the_record_holds_what_decides_a_result() -> None:
    record = fixture("mededit").override(steps=50).resolved()
    assert record["sampling"] == {
        **plain(fixture("mededit").sampling),
        "steps": 50,
    }
    assert record.keys() == {"name", "method", "tasks", "weights", "sampling", "carry"}


def test_a_frozen_mapping_is_one() -> None:
    items = {"b": 2, "a": 1}
    frozen = FrozenMapping(items)
    items["c"] = 3
    assert frozen == {"a": 1, "b": 2} and list(frozen) == ["b", "a"] and hash(frozen) == hash(FrozenMapping(frozen))


def test_a_plan_to_make_scans_follows_the_prior_and_flags_beat_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = (presets_folder() / "ldm.toml").read_text()
    path.write_text(text.replace("[prior]\nsteps = 22", "[prior]\nsteps = 7"))
    mine = read_preset(path)
    own = plan(mine, [], Condition(), task="synth").preset.sampling
    assert isinstance(own, DiffusionSampling)
    assert (own.start, own.solver, own.steps, own.guidance) == ("prior", "ddpm", 7, 1.5)
    made = plan(mine, [], Condition(), task="synth", guidance=3.0, steps=9).preset.sampling
    assert isinstance(made, DiffusionSampling)
    assert (made.start, made.solver, made.steps, made.guidance) == ("prior", "ddpm", 9, 3.0)
    edits = plan(mine, [], Condition()).preset.sampling
    assert isinstance(edits, DiffusionSampling) and (edits.start, edits.solver) == ("inverted", "bdia")
