"""Weights that are damaged, foreign or mistaken: one corpus for all tests.

`BAD` maps a name to what it does to the bytes of sound weights (`tensors` with `FACTS`), and to words that the error
must contain.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import torch

from cftools import weights
from cftools.condition import Variable
from cftools.schema import FrozenMapping, plain
from cftools.weights import Facts, GridFacts, TrainingFacts

FACTS = Facts(
    architecture="twin",
    architecture_arguments=FrozenMapping({"channels": (16, 32), "residual": True, "changes": (1,)}),
    # Neither in alphabetical nor any other order but the network's.
    variables=FrozenMapping(
        {
            "sex": Variable("sex", "category", values=("F", "M")),
            "age": Variable("age", "number", low=5.0, high=100.0, unit="years"),
        }
    ),
    grid=GridFacts(
        "2mm",
        (80, 96, 88),
        ((2.0, 0.0, 0.0, -79.0), (0.0, 2.0, 0.0, -112.0), (0.0, 0.0, 2.0, -82.0), (0.0, 0.0, 0.0, 1.0)),
    ),
    contrasts=("T1w",),
    intensity="percentile",
    training=TrainingFacts("cf-train --preset twin --condition age", "simulated twins", 7, 4000, 812.5, "2026-01-31"),
    licence="Apache-2.0",
    scores=FrozenMapping({"mean_absolute_error": 4.25}),
)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(4, 4, generator=generator)
    return {
        "down.0.weight": torch.randn(8, 4, 3, 3, 3, generator=generator).transpose(0, 1),
        "a": shared,
        "b": shared.t(),
        "count": torch.tensor([3, 4]),
    }


def metadata_text() -> str:
    return json.dumps(plain(FACTS))


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header, body = header_of(data)
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    return changed


def with_facts(**changes: Any) -> Callable[[bytes], bytes]:
    text = json.dumps({**plain(FACTS), **changes})
    return with_header(lambda header: header.update(__metadata__={"cftools": text}))


def without_fact(name: str) -> Callable[[bytes], bytes]:
    text = json.dumps({key: value for key, value in plain(FACTS).items() if key != name})
    return with_header(lambda header: header.update(__metadata__={"cftools": text}))


def with_text(text: str) -> Callable[[bytes], bytes]:
    return with_header(lambda header: header.update(__metadata__={"cftools": text}))


def rename(header: dict[str, Any], name: str) -> None:
    header[name] = header.pop("a")


def repeated_key(data: bytes) -> bytes:
    header, body = header_of(data)
    entry = json.dumps(header["a"])
    text = (json.dumps(header)[:-1] + f', "a": {entry}}}').encode()
    return len(text).to_bytes(8, "little") + text + body


def not_a_number(data: bytes) -> bytes:
    header, _ = header_of(data)
    at = len(data) - len(header_of(data)[1]) + header["a"]["data_offsets"][0]
    return data[:at] + b"\x00\x7e" + data[at + 2 :]


def huge_metadata(data: bytes) -> bytes:
    text = b'{"__metadata__":{"x":"' + b"x" * weights.LARGEST_HEADER + b'"}}'
    return len(text).to_bytes(8, "little") + text


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "one byte": (lambda data: data[:1], "cut short"),
    "cut in the header": (lambda data: data[:100], "cut short"),
    "cut in the tensors": (lambda data: data[:-1], "cut short"),
    "trailing byte": (lambda data: data + b"\0", "bytes after its end"),
    "length beyond the file": (lambda data: (2**63).to_bytes(8, "little") + data[8:], "cut short"),
    "metadata huge": (huge_metadata, "more than any such file needs"),
    "pickle": (lambda data: pickle.dumps({"a": 1}), "a pickle or zip"),
    "Git LFS pointer": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "git lfs",
    ),
    "text": (lambda data: b"# not weights at all\n", "no safetensors"),
    "not JSON": (lambda data: data[:9] + b"\xff" + data[10:], "damaged"),
    "deep JSON": (lambda data: (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995, "damaged"),
    "a tensor twice": (repeated_key, "a key comes twice"),
    "overlap": (with_header(lambda h: h["a"].update(data_offsets=h["b"]["data_offsets"])), "damaged"),
    "shape mismatch": (with_header(lambda h: h["a"].update(shape=[4, 5])), "damaged"),
    "negative shape": (with_header(lambda h: h["a"].update(shape=[-4, -4])), "damaged"),
    "unknown type": (with_header(lambda h: h["a"].update(dtype="F7")), "damaged"),
    "negative offset": (with_header(lambda h: h["a"].update(data_offsets=[-8, 8])), "damaged"),
    "offsets are text": (with_header(lambda h: h["a"].update(data_offsets=["0", "8"])), "has no place"),
    "entry is a list": (with_header(lambda h: h.update(a=[])), "has no place"),
    "NaN": (not_a_number, "holds NaN"),
    "path as a name": (with_header(lambda h: rename(h, "../../a")), "cannot name a tensor"),
    "dots as a name": (with_header(lambda h: rename(h, "a..b")), "cannot name a tensor"),
    "control character": (with_header(lambda h: rename(h, "a\n")), "cannot name a tensor"),
    "no metadata": (with_header(lambda h: h.pop("__metadata__")), "no cftools metadata"),
    "foreign metadata": (
        with_header(lambda h: h.update(__metadata__={"format": "pt"})),
        "no cftools metadata",
    ),
    "metadata no JSON": (with_text("{"), "damaged metadata"),
    "metadata deep": (with_text("[" * 100_000), "damaged metadata"),
    "metadata a list": (with_text("[]"), "must be a table"),
    "metadata twice": (with_text('{"format": 1, "format": 1}'), "a key comes twice"),
    "newer format": (with_facts(format=2, extra={}), "written by a newer cftools"),
    "fact missing": (without_fact("grid"), "grid is missing"),
    "fact unknown": (with_facts(colour="red"), "unknown key colour"),
    "fact of another type": (with_facts(contrasts="T1w"), "contrasts must be a list"),
    "fact not finite": (with_facts(scores={"x": float("nan")}), "scores.x must be finite"),
    "variable misnamed": (
        with_facts(variables={"years": plain(FACTS.variables["age"])}),
        "its own name is age",
    ),
    "variable without range": (
        with_facts(variables={"age": {"name": "age", "kind": "number"}}),
        "low < high",
    ),
}
