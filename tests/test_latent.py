"""Latents: what is written comes back to the bit, and nothing damaged, foreign or mistaken is taken for one."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from cftools.condition import Condition
from cftools.errors import InputError, LatentError, OutputError
from cftools.facts import GridFacts, LatentFacts, SpaceFacts, StateFacts, Target, WeightsUsed
from cftools.latent import LARGEST_HEADER, METADATA_KEY, Latent, affine_rows, scan_facts, voxel_sha256
from cftools.schema import FrozenMapping, plain
from cftools.volume import Volume

SHAPE = (1, 2, 3, 4, 3)  # N, C and sides: the image is 5 x 8 x 6, padded to 6 x 8 x 6, at factor 2
TO_MNI = np.array([[0.1, -0.97, 0.03, 1 / 3], [1.02, 0.1, 0.0, -7.7], [0.0, 0.01, 0.93, 1e-17], [0, 0, 0, 1]])
TARGETS = (
    Target(Condition({"age": 79.0, "sex": "F"}), "agePlus30"),
    Target(Condition({"age": 39.0, "sex": None}), "ageMinus10"),
)
STATE = StateFacts(0.7, "scaled-linear", "inverted", "ddim", 50, evaluations=103, residual=1.5e-4)


def array(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def facts(volume: Volume) -> LatentFacts:
    return LatentFacts(
        kind="encoded",
        preset="ldm",
        weights=FrozenMapping({"space": WeightsUsed("ae-2mm", "a" * 64)}),
        space=SpaceFacts("vae", (5, 8, 6), 2, factor=2, scale=0.9),
        grid=GridFacts("MNI152 2 mm", (5, 8, 6), affine_rows(np.diag([2.0, 2.0, 2.0, 1.0]))),
        seed=7,
        scan=scan_facts(volume, "sub-01_T1w.nii.gz", "T1w", TO_MNI, 0.1, 812.25, 0.93),
        source=Condition({"age": 49.0, "sex": None, "prompt": "a läsion, high load"}),
        guessed=("age",),
        provenance=("cf-encode --preset ldm sub-01_T1w.nii.gz -",),
    )


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


# Files that are damaged, foreign or mistaken.


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(text: bytes, body: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header, body = split(data)
        change(header)
        return join(json.dumps(header).encode(), body)

    return changed


def with_facts(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(header: dict[str, Any]) -> None:
        table = json.loads(header["__metadata__"][METADATA_KEY])
        change(table)
        header["__metadata__"][METADATA_KEY] = json.dumps(table)

    return with_header(changed)


def with_text(text: str) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header["__metadata__"].update({METADATA_KEY: text}))


def with_number(key: str, value: float) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header, body = split(data)
        at = len(data) - len(body) + header[key]["data_offsets"][0] + 40
        return data[:at] + struct.pack("<f", value) + data[at + 4 :]

    return changed


def repeated_tensor(data: bytes) -> bytes:
    header, body = split(data)
    entry = json.dumps(header["x_t"])
    return join((json.dumps(header)[:-1] + f', "x_t": {entry}}}').encode(), body)


def zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return stream.getvalue()


def half_precision(data: bytes) -> bytes:
    header, _ = split(data)
    tensors = {key: value.astype(np.float16) for key, value in load_tensors(data).items()}
    return save_tensors(tensors, header["__metadata__"])


def rename(old: str, new: str) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header.update({new: header.pop(old)}))


def reshape(key: str, shape: list[Any]) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header[key].update(shape=shape))


def place(key: str, *offsets: Any) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header[key].update(data_offsets=list(offsets)))


def swap_places(header: dict[str, Any]) -> None:
    header["std"]["data_offsets"] = header["x_t"]["data_offsets"]


def shifted(header: dict[str, Any]) -> None:
    for key in ("mean", "solver.tape", "std", "x_t"):
        header[key]["data_offsets"] = [offset + 4 for offset in header[key]["data_offsets"]]


HUGE = 10**15
BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "one byte": (lambda data: data[:1], "cut short"),
    "the length alone": (lambda data: data[:8], "cut short"),
    "cut in the header": (lambda data: data[:100], "cut short"),
    "cut in the tensors": (lambda data: data[:-1], "cut short"),
    "trailing byte": (lambda data: data + b"\0", "has bytes after its end"),
    "two of them": (lambda data: data + data, "has bytes after its end"),
    "length beyond the file": (lambda data: (2**63).to_bytes(8, "little") + data[8:], "cut short"),
    "pickle": (lambda data: pickle.dumps({"x_t": 1}), "is a pickle or zip"),
    "zip": (zipped, "is a pickle or zip"),
    "Git LFS pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gzip": (lambda data: b"\x1f\x8b\x08\x00" + data, "is an image, not a latent: run cf-encode"),
    "NIfTI": (lambda data: Volume.from_array(np.ones((2, 2, 2)), np.eye(4)).to_bytes(), "is an image"),
    "text": (lambda data: b"<!DOCTYPE html><html>not found</html>\n", "no safetensors"),
    "not UTF-8": (lambda data: data[:20] + b"\xff" + data[21:], "damaged"),
    "no JSON": (lambda data: join(b"{]", b""), "damaged"),
    "deep JSON": (lambda data: join(b'{"a":' + b"[" * 99_995, b""), "damaged"),
    "long number": (lambda data: join(b'{"a":' + b"9" * 9_000 + b"}", b""), "damaged"),
    "a tensor twice": (repeated_tensor, "a key comes twice"),
    "overlap": (with_header(swap_places), "overlaps another, or leaves a gap"),
    "gap": (lambda data: with_header(shifted)(data) + b"\0\0\0\0", "overlaps another, or leaves a gap"),
    "entry is a list": (with_header(lambda header: header.update(x_t=[])), "has no place"),
    "entry without offsets": (with_header(lambda header: header["x_t"].pop("data_offsets")), "has no place"),
    "negative offset": (place("x_t", -8, 280), "has no place"),
    "offsets are text": (place("x_t", "0", "288"), "has no place"),
    "offsets are true": (place("x_t", True, 289), "has no place"),
    "three offsets": (place("x_t", 0, 288, 288), "has no place"),
    "offset far out": (place("x_t", HUGE, HUGE + 288), "cut short"),
    "shape is a number": (with_header(lambda header: header["x_t"].update(shape=72)), "has no place"),
    "negative shape": (reshape("x_t", [1, -2, -3, 4, 3]), "has no place"),
    "shape larger than its bytes": (reshape("x_t", [1, 2, 3, 4, 4]), "shape that is not its size"),
    "shape of terabytes": (reshape("x_t", [HUGE, HUGE]), "shape that is not its size"),
    "another shape": (reshape("x_t", [1, 2, 4, 3, 3]), "x_t is (1, 2, 4, 3, 3) and its space has (N, 2, 3, 4, 3)"),
    "no batch": (reshape("x_t", [2, 3, 4, 3]), "x_t is (2, 3, 4, 3)"),
    "more of them than of the others": (reshape("mean", [2, 1, 3, 4, 3]), "mean is (2, 1, 3, 4, 3)"),
    "tape of another shape": (reshape("solver.tape", [4, 1, 2, 3, 3, 4]), "solver.tape is (4, 1, 2, 3, 3, 4)"),
    "unknown type": (with_header(lambda header: header["x_t"].update(dtype="F7")), "unknown type 'F7'"),
    "type is a list": (with_header(lambda header: header["x_t"].update(dtype=[])), "unknown type '[]'"),
    "integers": (with_header(lambda header: header["x_t"].update(dtype="I32")), "its x_t is I32"),
    "half precision": (half_precision, "F16, and latents are F32"),
    "NaN": (with_number("x_t", float("nan")), "its x_t holds NaN"),
    "infinity": (with_number("mean", float("-inf")), "its mean holds NaN or infinity"),
    "NaN in the tape": (with_number("solver.tape", float("nan")), "its solver.tape holds NaN"),
    "negative std": (with_number("std", -1.0), "its std is below 0"),
    "path as a name": (rename("x_t", "../../x_t"), "cannot name a tensor"),
    "absolute path as a name": (rename("x_t", "/etc/passwd"), "cannot name a tensor"),
    "control character": (rename("x_t", "x_t\n"), "cannot name a tensor"),
    "empty name": (rename("x_t", ""), "cannot name a tensor"),
    "unknown tensor": (rename("solver.tape", "tape"), "'tape' has no place in what cf-invert writes"),
    "solver without a name": (rename("solver.tape", "solver.a.b"), "'solver.a.b' has no place"),
    "tensor missing": (rename("x_t", "solver.x"), "its x_t is missing"),
    "std missing": (rename("std", "solver.x"), "its std is missing"),
    "metadata missing": (with_header(lambda header: header.pop("__metadata__")), "no metadata of a latent"),
    "metadata foreign": (with_header(lambda header: header.update(__metadata__={"format": "pt"})), "no metadata"),
    "metadata of weights": (with_header(lambda h: h.update(__metadata__={"cftools": "{}"})), "holds weights"),
    "metadata a list": (with_header(lambda header: header.update(__metadata__=[])), "metadata are not texts"),
    "metadata a number": (
        with_header(lambda header: header.update(__metadata__={METADATA_KEY: 3})),
        "metadata are not texts",
    ),
    "metadata huge": (with_text("x" * LARGEST_HEADER), "more than any such file needs"),
    "metadata huge and false": (
        lambda data: (LARGEST_HEADER + 1).to_bytes(8, "little") + b"{" * (LARGEST_HEADER + 99),
        "more than any such file needs",
    ),
    "metadata no JSON": (with_text("{"), "damaged"),
    "metadata deep": (with_text("[" * 100_000), "damaged"),
    "metadata a text": (with_text('"x"'), "must be a table"),
    "metadata with a key twice": (with_text('{"format": 1, "format": 1}'), "a key comes twice"),
    "newer format": (with_facts(lambda table: table.update(format=2, more={})), "written by a newer cftools"),
    "fact missing": (with_facts(lambda table: table.pop("grid")), "grid is missing"),
    "fact unknown": (with_facts(lambda table: table.update(colour="red")), "unknown key colour"),
    "unknown kind": (with_facts(lambda table: table.update(kind="noise")), "kind must be one of"),
    "kind of another": (with_facts(lambda table: table.update(kind="encoded")), "an encoded scan is on no path"),
    "state that is nowhere": (with_facts(lambda table: table.update(state=None)), "a state needs to say where"),
    "targets without edits": (with_facts(lambda t: t.update(targets=[{"condition": {}}])), "have targets"),
    "time out of range": (with_facts(lambda table: table["state"].update(time=1.5)), "time must be above 0"),
    "time not a number": (with_facts(lambda t: t["state"].update(time=float("nan"))), "state.time must be finite"),
    "condition not a number": (with_facts(lambda t: t["source"].update(age=float("inf"))), "finite number"),
    "condition a list": (with_facts(lambda table: table["source"].update(age=[1])), "source.age cannot be"),
    "condition misnamed": (with_facts(lambda table: table["source"].update({"a b": 1.0})), "cannot name a cond"),
    "sha256 cut": (with_facts(lambda t: t["weights"]["space"].update(sha256="a")), "64 hexadecimal digits"),
    "singular way back": (
        with_facts(lambda table: table["scan"].update(to_mni=np.diag([1.0, 1.0, 0.0, 1.0]).tolist())),
        "to_mni is no affine",
    ),
    "way back with perspective": (
        with_facts(lambda table: table["scan"]["to_mni"][3].__setitem__(0, 1.0)),
        "to_mni is no affine",
    ),
    "affine of three rows": (with_facts(lambda t: t["scan"]["affine"].pop()), "scan.affine must have 4 values"),
    "sides of another grid": (with_facts(lambda t: t["grid"].update(shape=[5, 8, 7])), "is not the grid's"),
    "space of another shape": (
        with_facts(lambda table: table["space"].update(channels=3)),
        "its space has (N, 3, 3, 4, 3)",
    ),
    "space of absurd sides": (
        with_facts(lambda t: t["space"].update(divisor=10**4000)),
        "at most 65535",
    ),
    "provenance of two lines": (with_facts(lambda t: t.update(provenance=["a\nb"])), "lines of text"),
}


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


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_byte_is_found_or_harmless(data: st.DataObject) -> None:
    volume = Volume.from_array(array(9, (3, 3, 3)), np.eye(4))
    good = Latent(facts(volume), {"mean": array(0), "std": np.abs(array(1))}).to_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    try:
        latent = Latent.from_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
    except LatentError as error:
        assert str(error).isprintable()
    else:
        assert {key: one.shape for key, one in latent.tensors.items()} == {"mean": SHAPE, "std": SHAPE}


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
