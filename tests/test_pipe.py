"""The pipe, encode | invert | resample | decode: the same bytes as cf-edit, and what does not belong is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from bids_validator import bids_errors

from cftools import weights
from cftools.cli.decode import main as decode
from cftools.cli.edit import main as edit
from cftools.cli.encode import main as encode
from cftools.cli.invert import main as invert
from cftools.cli.resample import main as resample
from cftools.cli.synth import main as synth
from cftools.diffusion import denoiser
from cftools.facts import DiffusionFacts, SpaceFacts
from cftools.latent import Latent
from cftools.nets.autoencoder import Autoencoder, AutoencoderArchitecture
from cftools.nets.unet import UNet, UNetArchitecture
from cftools.prepare import GRID_2MM
from cftools.prepare import resample as to_grid
from cftools.preset import presets_folder
from cftools.register import template
from cftools.train.recipes import grid_facts
from cftools.train.twin import AGED
from cftools.volume import Volume

FEW = ["--steps", "2"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, random weights of an autoencoder and of a denoiser in its space."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    coder = AutoencoderArchitecture((8, 8, 8), latent_channels=2, wavelet=True)
    space = SpaceFacts("vae", GRID_2MM.shape, 2, coder.factor, 2)
    _bundle(folder, "ae-2mm", "autoencoder-kl", Autoencoder(coder), asdict(coder), {}, space)
    unet = UNetArchitecture(2, 2, (8, 16), (False, True), variables=2, heads=8)
    digest = weights.load(str(folder / "ae-2mm.safetensors")).sha256
    diffusion = DiffusionFacts("scaled-linear", "v", space=digest)
    network = UNet(unet)
    for parameter in network.parameters():  # MONAI's last layer starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    _bundle(folder, "age-ldm-2mm", "diffusion-unet", network, asdict(unet), AGED, space, diffusion)
    return folder


def _bundle(
    folder: Path,
    name: str,
    kind: str,
    network: torch.nn.Module,
    arguments: dict[str, object],
    variables: dict[str, weights.Variable],
    space: SpaceFacts,
    diffusion: DiffusionFacts | None = None,
) -> None:
    facts = weights.Facts(
        architecture=kind,
        architecture_arguments=arguments,
        variables=variables,
        grid=grid_facts(GRID_2MM),
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=weights.TrainingFacts("cf-train", "nothing", 0, 0, 0.0, "2026-01-31"),
        licence="Apache-2.0",
        space=space,
        diffusion=diffusion,
    )
    weights.save(folder / f"{name}.safetensors", network.state_dict(), facts)
    weights.add_to_index(name, folder / f"{name}.safetensors", "For tests", ("ldm",))


@pytest.fixture(scope="module")
def made(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scan, in.nii, and its latents z encoded, n noise and e edits at +20 and +40."""
    folder = tmp_path_factory.mktemp("made")
    whole = template()
    Volume.from_array(1000 * to_grid(whole.array, whole.affine, GRID_2MM), GRID_2MM.affine).save(folder / "in.nii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "bundled_dir", lambda: bundle)
        patch.chdir(folder)
        assert encode(["--from", "age=20,sex=F", "in.nii", "z.safetensors"]) == 0
        assert invert([*FEW, "z.safetensors", "n.safetensors"]) == 0
        assert resample(["--age", "+20,+40", "n.safetensors", "e.safetensors"]) == 0
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, made: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, a copy of that."""
    monkeypatch.setattr(weights, "bundled_dir", lambda: bundle)
    monkeypatch.chdir(tmp_path)
    for path in made.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("carry", ["replace", "residual", "warp", "region"])
def test_pieces_give_the_bytes_of_the_whole(carry: str) -> None:
    how = ["--carry", carry]
    if carry == "region":
        mask = Volume.load("in.nii")
        left = np.zeros_like(mask.array)
        left[20:30, 30:40, 30:40] = 1
        mask.with_array(left).save("mask.nii")
        how += ["--region", "mask.nii"]
    assert decode(["--onto", "in.nii", *how, "e.safetensors", "out/"]) == 0
    words = ["--preset", "ldm", *how, *FEW, "--from", "age=20,sex=F", "--age", "+20,+40", "in.nii", "-o", "whole"]
    assert edit(words) == 0
    for name in ("in_desc-agePlus20.nii", "in_desc-agePlus40.nii"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
    young, old = (Volume.load(f"out/in_desc-agePlus{years}.nii").array for years in (20, 40))
    assert np.abs(young - old).max() > 0
    scan = Volume.load("in.nii").array
    np.testing.assert_array_equal(old[scan == 0], 0)
    if carry == "region":
        changed = np.argwhere(old != scan)
        assert (changed.min(axis=0) >= [20, 30, 30]).all() and (changed.max(axis=0) < [30, 40, 40]).all()
    facts = json.loads(Path("out/in_desc-agePlus20.json").read_text())["cftools"]
    assert facts["condition"]["target"] == {"age": 40, "sex": "F"}
    assert len(facts["command"].split(" | ")) == 4


@pytest.mark.parametrize("carry", ["residual", "warp"])
def test_no_change_asked_is_the_scan_itself(carry: str) -> None:
    assert resample(["--age", "+0", "n.safetensors", "same.safetensors"]) == 0
    assert decode(["--onto", "in.nii", "--carry", carry, "same.safetensors", "same.nii"]) == 0
    np.testing.assert_array_equal(Volume.load("same.nii").array, Volume.load("in.nii").array)


def test_without_the_scan_an_edit_stays_on_the_models_grid() -> None:
    assert decode(["e.safetensors", "grid/"]) == 0
    made = [Volume.load(path) for path in sorted(Path("grid").glob("*.nii.gz"))]
    assert len(made) == 2 and all(one.array.shape == GRID_2MM.shape for one in made)
    np.testing.assert_allclose(made[0].affine, GRID_2MM.affine)


def test_what_does_not_belong_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    other = Volume.load("in.nii")
    other.with_array(other.array * 2).save("other.nii")
    other.with_array(other.array * 0).save("empty.nii")
    Volume.from_array(np.eye(4, dtype=np.float32)[..., None].repeat(4, -1), np.eye(4)).save("small.nii")
    whole = ["--preset", "ldm", "--age", "+20", "--from", "age=20,sex=F", *FEW, "in.nii", "x.nii"]
    onto = ["--onto", "in.nii", "e.safetensors", "x/"]
    capsys.readouterr()
    for command, words, said in (
        (invert, ["n.safetensors", "x.safetensors"], "cf-encode"),
        (resample, ["--age", "+20", "z.safetensors", "x.safetensors"], "cf-invert"),
        (resample, ["--age", "+90", "n.safetensors", "x.safetensors"], "age"),
        (decode, ["--onto", "in.nii", "n.safetensors", "x.nii"], "cf-resample"),
        (decode, ["--onto", "in.nii", "e.safetensors", "x.nii"], "folder"),
        (decode, ["--onto", "other.nii", "e.safetensors", "x/"], "another scan"),
        (decode, ["--carry", "region", *onto], "go together"),
        (decode, ["--region", "other.nii", *onto], "go together"),
        (decode, ["--carry", "region", "--region", "empty.nii", *onto], "every voxel is 0"),
        (decode, ["--carry", "region", "--region", "small.nii", *onto], "grid"),
        (decode, ["--carry", "field", *onto], "carried by"),
        (edit, ["--carry", "region", *whole], "go together"),
        (edit, ["--carry", "region", "--region", "in.nii", *whole], "threshold"),
        (edit, ["--carry", "field", *whole], "carried by"),
        (encode, ["--preset", "twin", "in.nii", "x.safetensors"], "no latents"),
        (invert, ["in.nii", "x.safetensors"], "is an image"),
    ):
        assert command(words) != 0
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err, err
    assert not [path for path in Path().iterdir() if path.name.startswith("x")]


def test_a_cohort_is_encoded_into_derivatives(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sub-01/anat/sub-01", "sub-02/ses-1/anat/sub-02_ses-1_run-2"):
        path = Path(f"bids/{name}_T1w.nii")
        path.parent.mkdir(parents=True)
        shutil.copy("in.nii", path)
    Path("bids/participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t20\tF\nsub-02\t50\tM\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cf-encode", "whatever", "was", "typed"])
        assert encode(["bids", "out", "--summary", "all.tsv", "--threads", "2"]) == 0
    images = capsys.readouterr().out.split()
    assert images == [
        "out/sub-01/anat/sub-01_desc-ldm_T1w.safetensors",
        "out/sub-02/ses-1/anat/sub-02_ses-1_run-2_desc-ldm_T1w.safetensors",
    ]
    one, other = (Latent.load(path) for path in images)
    assert dict(other.source) == {"age": 50, "sex": "M"}
    assert one.facts.scan is not None and one.facts.scan.name == "bids:raw:sub-01/anat/sub-01_T1w.nii"
    alone = Latent.load("z.safetensors")
    for name, tensor in alone.tensors.items():
        np.testing.assert_array_equal(tensor, one.tensors[name])
    assert encode(["bids", "parts", "--shard", "2/2"]) == 0
    [part] = Path("parts").rglob("*.safetensors")
    assert part.read_bytes() == Path("out", part.relative_to("parts")).read_bytes()
    assert bids_errors("out") == []
    header, *rows = (line.split("\t") for line in Path("all.tsv").read_text().splitlines())
    # Random weights show nothing of a scan, and the summary says so.
    assert all(float(row[header.index("reconstruction_db")]) < 24 for row in rows)
    assert [row[header.index("out_of_domain")] for row in rows] == ["yes", "yes"]
    assert all("the model can show it only to" in row[header.index("warnings")] for row in rows)
    capsys.readouterr()
    assert encode(["bids", "out"]) == 2 and "exists already" in capsys.readouterr().err
    assert encode(["bids", "out", "--skip-existing"]) == 0 and capsys.readouterr().out == ""


def test_latents_flow_through_a_real_pipe(bundle: Path) -> None:
    code = (
        "import sys; from cftools import weights; from pathlib import Path; weights.bundled_dir = lambda: Path({!r})\n"
    )
    code += "from cftools.cli.{} import main; sys.exit(main(sys.argv[1:]))"
    python = [sys.executable, "-c"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [*python, code.format(str(bundle), "encode"), "--from", "age=20,sex=F", "in.nii", "-"],
        stdout=subprocess.PIPE,
        env=environment,
    )
    second = subprocess.run(
        [*python, code.format(str(bundle), "invert"), *FEW, "-", "-"],
        stdin=first.stdout,
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    assert first.wait() == 0
    piped, filed = Latent.from_bytes(second.stdout), Latent.load("n.safetensors")
    for name, tensor in filed.tensors.items():
        np.testing.assert_array_equal(piped.tensors[name], tensor)


def test_new_scans_keep_their_noise_whatever_the_condition(capsys: pytest.CaptureFixture[str]) -> None:
    assert synth(["--age", "20,80", "--sex", "F", "-n", "2", *FEW, "--seed", "3", "new"]) == 0
    rows = [line.split("\t") for line in Path("new/participants.tsv").read_text().splitlines()]
    assert rows[0] == ["participant_id", "sample", "age", "sex"]
    assert [row[1:] for row in rows[1:]] == [["0", "20", "F"], ["0", "80", "F"], ["1", "20", "F"], ["1", "80", "F"]]
    made = [Volume.load(f"new/{row[0]}/anat/{row[0]}_T1w.nii.gz").array for row in rows[1:]]
    assert all(one.shape == GRID_2MM.shape and np.isfinite(one).all() and one.min() >= 0 for one in made)
    assert synth(["--age", "80", "--sex", "F", *FEW, "--seed", "3", "alone"]) == 0
    np.testing.assert_array_equal(Volume.load("alone/sub-0001/anat/sub-0001_T1w.nii.gz").array, made[1])
    assert np.abs(made[0] - made[1]).max() > 0 and np.abs(made[0] - made[2]).max() > 0
    capsys.readouterr()
    assert synth(["--age", "+20", "relative"]) == 2 and synth(["--age", "80", "new"]) != 0
    assert "relative" in capsys.readouterr().err and not Path("relative").exists()


def test_a_synthetic_cohort_is_bids_and_made_in_parts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--age", "20,80", "--sex", "F", *FEW, "--seed", "3"]
    assert synth([*words, "whole", "--summary", "all.tsv", "--threads", "2"]) == 0
    for part in ("2/2", "1/2"):
        assert synth([*words, "parts", "--shard", part]) == 0
    whole = {path.relative_to("whole"): path for path in Path("whole").rglob("*") if path.is_file()}
    assert len(whole) == 7
    for path in whole:
        if path.suffix != ".json" or path.parent == Path():
            assert whole[path].read_bytes() == Path("parts", path).read_bytes()
    assert bids_errors("whole") == []
    assert [line.split("\t")[:2] for line in Path("all.tsv").read_text().splitlines()[1:]] == [
        ["sub-0001", "done"],
        ["sub-0002", "done"],
    ]
    capsys.readouterr()
    Path("parts/sub-0002/anat/sub-0002_T1w.nii.gz").unlink()
    assert synth([*words, "parts", "--skip-existing"]) == 0
    assert capsys.readouterr().out.split() == ["parts/sub-0002/anat/sub-0002_T1w.nii.gz"]
    assert synth(["--age", "30", *FEW, "parts", "--skip-existing"]) == 2
    assert "another cohort" in capsys.readouterr().err


def test_a_latent_keeps_the_preset_with_its_flags(place: Path) -> None:
    """A preset of one's own goes through the pipe; the sidecar says what was used."""
    mine = Path("mine.toml")
    shipped = (presets_folder() / "ldm.toml").read_text()
    mine.write_text(shipped.replace('name = "ldm"', 'name = "mine"').replace("guidance = 1.5", "guidance = 2.5"))
    assert encode(["--preset", "mine.toml", "--from", "age=20,sex=F", "in.nii", "m.safetensors"]) == 0
    mine.unlink()
    single = ["--dtype", "float32"]
    assert invert([*FEW, *single, "m.safetensors", "k.safetensors"]) == 0
    assert resample(["--age", "+20", "k.safetensors", "d.safetensors"]) == 0
    assert invert([*FEW, *single, "z.safetensors", "exact.safetensors"]) == 0
    assert resample(["--age", "+20", "--guidance", "2.5", "exact.safetensors", "same.safetensors"]) == 0
    assert decode(["--onto", "in.nii", "d.safetensors", "one.nii"]) == 0
    assert decode(["--onto", "in.nii", "same.safetensors", "two.nii"]) == 0
    assert Path("one.nii").read_bytes() == Path("two.nii").read_bytes()
    used = json.loads(Path("two.json").read_text())["cftools"]["preset"]["sampling"]
    assert used["steps"] == 2 and used["guidance"] == 2.5 and used["dtype"] == "float32"
    words = ["--preset", "ldm", "--age", "+20", "--guidance", "2.5", "--from", "age=20,sex=F", *single, *FEW]
    assert edit([*words, "in.nii", "whole.nii"]) == 0
    assert Path("whole.nii").read_bytes() == Path("one.nii").read_bytes()
    assert "--dtype float32" in json.loads(Path("whole.json").read_text())["cftools"]["command"]


def test_the_type_that_the_network_computes_in_is_chosen_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--preset", "ldm", "--age", "+20", "--from", "age=20,sex=F", *FEW]
    made = {}
    for able, asked in ((True, []), (True, ["--dtype", "float32"]), (False, [])):
        monkeypatch.setattr(denoiser, "computes_bfloat16", lambda device, able=able: able)
        assert edit([*words, *asked, "--force", "in.nii", "typed.nii"]) == 0
        record = json.loads(Path("typed.json").read_text())["cftools"]
        used = record["preset"]["sampling"]["dtype"]
        assert f"--dtype {used}" in record["command"] and used == ("float32" if asked or not able else "bfloat16")
        made[able, *asked] = Path("typed.nii").read_bytes()
        assert synth(["--age", "20", *FEW, *asked, "--force", "typed"]) == 0
        sidecar = json.loads(Path("typed/sub-0001/anat/sub-0001_T1w.json").read_text())
        assert sidecar["cftools"]["preset"]["sampling"]["dtype"] == used
        assert invert([*FEW, *asked, "--force", "z.safetensors", "t.safetensors"]) == 0
        assert resample(["--age", "+20", "--dtype", "float32", "--force", "t.safetensors", "r.safetensors"]) == 0
        assert Latent.load("t.safetensors").facts.resolved["sampling"]["dtype"] == used
        assert Latent.load("r.safetensors").facts.resolved["sampling"]["dtype"] == "float32"
    assert made[(True,)] != made[(False,)] == made[True, "--dtype", "float32"]


def test_outputs_are_looked_at_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    scan, latent = Path("in.nii").read_bytes(), Path("z.safetensors").read_bytes()
    onto = ["--onto", "in.nii", "e.safetensors"]
    for command, words, said in (
        (encode, ["in.nii", "z.safetensors"], "exists"),
        (encode, ["in.nii", "x.nii"], ".safetensors"),
        (encode, ["in.nii", "none/x.safetensors"], "does not exist"),
        (invert, ["--force", "z.safetensors", "z.safetensors"], "is an input"),
        (resample, ["--age", "+20", "n.safetensors", "e.safetensors"], "exists"),
        (decode, ["--force", "--onto", "in.nii", "d.safetensors", "in.nii"], "is an input"),
        (decode, ["--carry", "warp", "e.safetensors", "x/"], "--onto"),
    ):
        if command is decode and "d.safetensors" in words:
            assert resample(["--age", "+20", "n.safetensors", "d.safetensors"]) == 0
            capsys.readouterr()
        assert command(words) != 0
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err, err
    assert Path("in.nii").read_bytes() == scan and Path("z.safetensors").read_bytes() == latent
    assert decode([*onto, "y/"]) == 0
    kept = Path("y/in_desc-agePlus20.json").read_bytes()
    assert decode([*onto, "y/"]) != 0
    assert Path("y/in_desc-agePlus20.json").read_bytes() == kept, "a refusal takes nothing away"


def test_weights_that_are_not_installed_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(weights, "bundled_dir", lambda: tmp_path / "none")
    for command, words in (
        (edit, ["--preset", "ldm", "--age", "+20", "--from", "age=20,sex=F", "in.nii", "x.nii"]),
        (encode, ["--preset", "ldm", "--from", "age=20,sex=F", "in.nii", "x.safetensors"]),
        (synth, ["--age", "20", "x"]),
    ):
        assert command(words) != 0
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "not installed: cf-train makes them" in err, err
    assert not [path for path in Path().iterdir() if path.name.startswith("x")]
