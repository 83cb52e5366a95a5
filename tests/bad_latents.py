"""Latents that are damaged, foreign or mistaken: one corpus for all tests.

`BAD` maps a name to what it does to the bytes of a sound latent, and to words that the error must contain;
`sound_state` is such a latent, small, of a scan and a model that there are not.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from bad_nifti import AFFINE, picture
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from cftools.condition import Condition
from cftools.facts import GridFacts, LatentFacts, SpaceFacts, StateFacts, Target, WeightsUsed
from cftools.latent import LARGEST_HEADER, METADATA_KEY, Latent, affine_rows, scan_facts
from cftools.schema import FrozenMapping
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


def sound_state() -> Latent:
    """What cf-invert writes, of the scan of bad_nifti."""
    latent = Latent(facts(Volume.from_array(picture(), AFFINE)), {"std": np.abs(array(1)), "mean": array(0)})
    used = {"denoiser": WeightsUsed("age-ldm-2mm", "b" * 64)}
    return latent.as_state(array(2), STATE, {"tape": array(3, (4, *SHAPE))}, used, "cf-invert - -")


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
