"""Latents: what is written comes back to the bit, and nothing damaged, foreign or mistaken is taken for one."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from bad_latents import BAD, SHAPE, STATE, TARGETS, TO_MNI, array, facts, with_facts
from safetensors.numpy import load as load_tensors

from cftools.condition import Condition
from cftools.errors import InputError, LatentError, OutputError
from cftools.facts import SpaceFacts, WeightsUsed
from cftools.latent import Latent, voxel_sha256
from cftools.schema import plain
from cftools.volume import Volume


@pytest.fixture
def encoded(tiny_volume: Volume) -> Latent:
    return Latent(facts(tiny_volume), {"std": np.abs(array(1)), "mean": array(0)})


@pytest.fixture
def state(encoded: Latent) -> Latent:
    used = {"denoiser": WeightsUsed("age-ldm-2mm", "b" * 64)}
    return encoded.as_state(array(2), STATE, {"tape": array(3, (4, *SHAPE))}, used, "cf-invert - -")


@pytest.fixture
def edited(state: Latent) -> Latent:
    return state.as_edits(TARGETS, [array(4), array(5)], array(6), command="cf-resample --age +30,-10 - -")


@pytest.fixture(params=["encoded", "state", "edited"])
def latent(request: pytest.FixtureRequest) -> Latent:
    """Each kind in turn."""
    return request.getfixturevalue(request.param)


def test_what_is_written_comes_back(latent: Latent) -> None:
    data = latent.to_bytes()
    back = Latent.from_bytes(data)
    assert back.facts == latent.facts
    assert back.tensors.keys() == latent.tensors.keys()
    for key, tensor in latent.tensors.items():
        assert back.tensors[key].tobytes() == tensor.tobytes()
        assert back.tensors[key].flags.writeable  # else torch warns
    assert back.to_bytes() == data


def test_each_kind_holds_what_it_should(encoded: Latent, state: Latent, edited: Latent) -> None:
    assert set(encoded.tensors) == {"mean", "std"}
    assert set(state.tensors) == {"mean", "std", "x_t", "solver.tape"}
    assert set(edited.tensors) == {"edited.0", "edited.1", "factual"}
    assert (state.facts.kind, state.facts.state, list(state.solver)) == ("state", STATE, ["tape"])
    assert (state.solver["tape"] == array(3, (4, *SHAPE))).all()
    assert (edited.facts.kind, edited.facts.state) == ("edited", STATE)
    assert [(one == array(4 + index)).all() for index, one in enumerate(edited.edited)] == [True, True]
    assert (edited.tensors["factual"] == array(6)).all()
    assert edited.source == Condition({"age": 49.0, "sex": None, "prompt": "a läsion, high load"})
    assert edited.targets == (TARGETS[0].condition, TARGETS[1].condition)
    assert edited.facts.weights.keys() == {"space", "denoiser"}
    programs = [line.split()[0] for line in edited.facts.provenance]
    assert programs == ["cf-encode", "cf-invert", "cf-resample"]


def test_the_way_back_is_kept_to_the_bit(tiny_volume: Volume, encoded: Latent) -> None:
    scan = Latent.from_bytes(encoded.to_bytes()).facts.scan
    assert scan is not None
    assert (np.array(scan.to_mni) == TO_MNI).all()
    assert (np.array(scan.affine) == tiny_volume.affine).all()
    assert (scan.offset, scan.scale, scan.similarity) == (0.1, 812.25, 0.93)


def test_the_same_latent_gives_the_same_bytes(latent: Latent) -> None:
    tensors = dict(reversed(list(latent.tensors.items())))
    weights = dict(reversed(list(latent.facts.weights.items())))
    source = dict(reversed(list(latent.facts.source.items())))
    other = Latent(dataclasses.replace(latent.facts, weights=weights, source=source), tensors, "another name")
    assert other.to_bytes() == latent.to_bytes()


def test_memory_order_is_no_matter(encoded: Latent) -> None:
    mean, std = encoded.tensors["mean"], encoded.tensors["std"]
    strided = np.repeat(std, 2, axis=-1)[..., ::2]
    other = Latent(encoded.facts, {"mean": np.asfortranarray(mean), "std": strided})
    assert other.to_bytes() == encoded.to_bytes()
    assert (load_tensors(other.to_bytes())["mean"] == mean).all()


def test_a_latent_does_not_change_with_the_array_it_was_made_of(encoded: Latent) -> None:
    mean = array(0)
    latent = Latent(encoded.facts, {"mean": mean, "std": encoded.tensors["std"]})
    mean[:] = 0
    assert latent.to_bytes() == encoded.to_bytes()


def test_doubles_are_stored_as_floats(encoded: Latent) -> None:
    latent = Latent(encoded.facts, {key: one.astype(np.float64) for key, one in encoded.tensors.items()})
    assert latent.to_bytes() == encoded.to_bytes()


def test_files(latent: Latent, tmp_path: Path) -> None:
    path = tmp_path / "a b é.safetensors"
    latent.save(path)
    assert Latent.load(path).to_bytes() == path.read_bytes() == latent.to_bytes()
    with pytest.raises(OutputError, match="exists already"):
        latent.save(path)
    latent.save(path, force=True)
    with pytest.raises(OutputError, match="give it that ending"):
        latent.save(tmp_path / "latent.nii.gz")
    with pytest.raises(OutputError, match="does not exist"):
        latent.save(tmp_path / "none" / "x.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(LatentError, match="does not exist"):
        Latent.load(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(LatentError, match="is not an ordinary file"):
            Latent.load(path)
    odd = tmp_path / "two\nlines"
    odd.write_bytes(b"")
    with pytest.raises(LatentError, match=r"two\\nlines: is empty"):
        Latent.load(odd)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x").write_bytes(b"")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(LatentError, match="cannot be read \\(Permission denied\\)"):
        Latent.load(tmp_path / "x")


def test_permissions_follow_the_umask(encoded: Latent, tmp_path: Path) -> None:
    encoded.save(tmp_path / "x.safetensors")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("kind", BAD)
def test_bad_bytes_get_one_line(kind: str, state: Latent) -> None:
    spoil, message = BAD[kind]
    with pytest.raises(LatentError) as caught:
        Latent.from_bytes(spoil(state.to_bytes()))
    text = str(caught.value)
    assert message in text and text.startswith("standard input (-): ")
    assert text.isprintable() and len(text) < 300
    assert caught.value.exit_code == 3 and isinstance(caught.value, InputError)


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named(kind: str, state: Latent, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD[kind][0](state.to_bytes()))
    with pytest.raises(LatentError) as caught:
        Latent.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_edits_and_targets_go_together(edited: Latent) -> None:
    one = with_facts(lambda table: table["targets"].pop())(edited.to_bytes())
    with pytest.raises(LatentError, match=r"'edited.1' has no place in what cf-resample writes"):
        Latent.from_bytes(one)
    with pytest.raises(LatentError, match=r"its edited.1 is missing"):
        edited.as_edits(TARGETS, [array(4)])
    with pytest.raises(LatentError, match=r"'mean' has no place"):
        Latent(edited.facts, {**edited.tensors, "mean": array(0), "std": array(0)})
    assert "factual" not in edited.as_edits(TARGETS[:1], [array(4)]).tensors


def test_a_diverged_inversion_is_no_latent(encoded: Latent) -> None:
    x_t = array(2)
    x_t[0, 1, 2, 3, 1] = np.inf
    with pytest.raises(LatentError, match="its x_t holds NaN or infinity"):
        encoded.as_state(x_t, STATE)


def test_odd_values_are_not_written(encoded: Latent) -> None:
    scan = dataclasses.replace(encoded.facts.scan, offset=float("nan"))  # type: ignore[type-var]
    with pytest.raises(LatentError, match=r"scan.offset must be finite"):
        Latent(dataclasses.replace(encoded.facts, scan=scan), encoded.tensors).to_bytes()
    state = encoded.as_state(array(2), dataclasses.replace(STATE, residual=np.float64(0.5)))
    with pytest.raises(LatentError, match=r"state.residual must be a decimal number"):
        state.to_bytes()


def test_file_names_in_the_record_stay_on_one_line(encoded: Latent) -> None:
    state = encoded.as_state(array(2), STATE, command="cf-invert 'two\nlines' -")
    assert Latent.from_bytes(state.to_bytes()).facts.provenance[-1] == "cf-invert 'two\\nlines' -"


def test_latents_of_other_weights_are_refused(state: Latent) -> None:
    state.check("a" * 64)
    state.check("b" * 64, role="denoiser")
    for sha256, role in (("b" * 64, "space"), ("a" * 64, "denoiser")):
        with pytest.raises(LatentError, match=f"its {role} weights were a.* and these are others \\({sha256[:12]}\\)"):
            state.check(sha256, role)
    with pytest.raises(LatentError, match="without any weights as partner"):
        state.check("a" * 64, role="partner")


def test_kinds_are_told_apart(encoded: Latent, edited: Latent) -> None:
    encoded.check_kind("encoded", "edited")
    edited.check_kind("encoded", "edited")
    with pytest.raises(LatentError, match="is what cf-encode writes: give what cf-invert writes"):
        encoded.check_kind("state")


def test_only_the_very_scan_gets_its_edit(tiny_volume: Volume, encoded: Latent) -> None:
    encoded.check_onto(tiny_volume)
    same = Volume.from_array(np.asfortranarray(tiny_volume.array), tiny_volume.affine)
    encoded.check_onto(same)
    moved = tiny_volume.affine.copy()
    moved[0, 3] += 1
    others = [
        tiny_volume.with_array(tiny_volume.array + 1),  # another subject in the same space
        Volume.from_array(tiny_volume.array, moved),
        Volume.from_array(tiny_volume.array.reshape((14, 12, 10), order="F"), tiny_volume.affine),
    ]
    for other in others:
        with pytest.raises(LatentError, match=r"made from another scan \(sub-01_T1w.nii.gz\)"):
            encoded.check_onto(other)
    synthetic = Latent(dataclasses.replace(encoded.facts, scan=None), encoded.tensors)
    with pytest.raises(LatentError, match="made from no scan"):
        synthetic.check_onto(tiny_volume)


def test_voxels_are_told_apart_whatever_their_memory_order(tiny_volume: Volume) -> None:
    flipped = tiny_volume.with_array(tiny_volume.array[::-1])
    contiguous = tiny_volume.with_array(np.ascontiguousarray(tiny_volume.array))
    assert voxel_sha256(contiguous) == voxel_sha256(tiny_volume) != voxel_sha256(flipped)


def test_synthesis_and_slices(encoded: Latent) -> None:
    flat = dataclasses.replace(encoded.facts, scan=None, space=SpaceFacts("identity", (5, 8), 1))
    slices = Latent(flat, {"mean": array(0, (6, 1, 5, 8)), "std": np.zeros((6, 1, 5, 8))})
    assert Latent.from_bytes(slices.to_bytes()).tensors["mean"].shape == (6, 1, 5, 8)
    with pytest.raises(LatentError, match="its std is"):
        Latent(flat, {"mean": array(0, (6, 1, 5, 8)), "std": np.zeros((5, 1, 5, 8))})
    with pytest.raises(LatentError, match="its mean is"):
        Latent(flat, {"mean": array(0, (0, 1, 5, 8)), "std": np.zeros((0, 1, 5, 8))})


def test_facts_are_plain_and_frozen(edited: Latent) -> None:
    assert json.loads(json.dumps(plain(edited.facts))) == plain(edited.facts)
    with pytest.raises(dataclasses.FrozenInstanceError):
        edited.facts = None  # type: ignore[misc,assignment]
    with pytest.raises(TypeError):
        edited.tensors["x_t"] = array(0)  # type: ignore[index]
