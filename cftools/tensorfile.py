"""The head of a safetensors file, checked to the last byte before anything in it is believed.

A file is a length (u64, little-endian), that many bytes of JSON with type, shape and place of each tensor, and the
tensors, end to end: https://huggingface.co/docs/safetensors/index#format. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from cftools.errors import CftoolsError

SUFFIX = ".safetensors"
#: Bytes of a number, by type.
_ITEM = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ITEM |= {"I8": 1, "U8": 1, "BOOL": 1}
TENSOR_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_ENTRY = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: type as the format spells it, shape, and its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Head:
    """What a file says it holds, its tensors in the order in which they lie; all of it fits the file's size."""

    tensors: dict[str, Place]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Origin:
    """What to say of a file that is refused: its name, what to do about it, and the error to raise."""

    name: str
    remedy: str
    error: type[CftoolsError]

    def damaged(self, what: object, part: str = "") -> CftoolsError:
        """The error for a file of which a part is no longer what was written, with what shows it."""
        where = f"damaged {part}".rstrip()
        return self.error(f"{self.name}: {where} ({' '.join(str(what).split())[:120]}): {self.remedy}")

    def refuse(self, what: str) -> CftoolsError:
        """The error for anything else, in a few words."""
        return self.error(f"{self.name}: {what}: {self.remedy}")


def read_head(data: bytes, origin: Origin, largest: int, size: int | None = None) -> Head:
    """The checked head of a safetensors file.

    Args:
        data: the whole file, or at least its head.
        origin: names the file in messages.
        largest: bytes of JSON that such a file can need.
        size: bytes of the whole file, where data are not all of it.
    Raises:
        origin.error: no safetensors; cut short, or longer than it says; tensors that overlap, leave gaps, come
            twice, have odd names or more numbers than bytes. One line.
    """
    length = int.from_bytes(data[:8], "little")
    rest = (len(data) if size is None else size) - 8 - length
    if rest < 0 or data[8:9] != b"{":
        raise origin.refuse(_diagnosis(data))
    if length > largest:
        raise origin.refuse(f"its metadata claim {length} bytes, more than any such file needs")
    try:
        text = data[8 : 8 + length].decode("utf-8")
    except ValueError as error:
        raise origin.damaged(error) from None
    table = parse_json(text, origin)
    assert isinstance(table, dict)  # it begins with a brace
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise origin.damaged("its metadata are not texts")
    places = {name: _place(name, entry, origin) for name, entry in table.items()}
    end = max((stop for _, stop in places.values()), default=0)
    if end != rest:
        raise origin.refuse("is cut short" if end > rest else "has bytes after its end")
    tensors, reached = {}, 0
    for name, (place, stop) in sorted(places.items(), key=lambda item: (item[1][0].start, item[1][1])):
        if place.start != reached:
            raise origin.damaged(f"tensor {name} overlaps another, or leaves a gap")
        tensors[name] = Place(place.dtype, place.shape, 8 + length + place.start)
        reached = stop
    return Head(tensors, metadata)


def parse_json(text: str, origin: Origin, part: str = "") -> Any:
    """JSON in which no key comes twice; which part of the file it is, for the message.

    Raises:
        origin.error: it is none, or too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise origin.damaged(error, part) from None


def _place(name: str, entry: object, origin: Origin) -> tuple[Place, int]:
    """Type, shape and first byte of a tensor, and its last, counted from the end of the head."""
    if not TENSOR_NAME.fullmatch(name):
        raise origin.refuse(f"{name[:60]!r} cannot name a tensor")
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        raise origin.damaged(f"tensor {name} has no place")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    if not whole or not all(type(number) is int and number >= 0 for number in [*shape, *offsets]):
        raise origin.damaged(f"tensor {name} has no place")
    if not isinstance(dtype, str) or dtype not in _ITEM:
        raise origin.damaged(f"tensor {name} is of the unknown type {str(dtype)[:20]!r}")
    if math.prod(shape) * _ITEM[dtype] != offsets[1] - offsets[0]:
        raise origin.damaged(f"tensor {name} has a shape that is not its size")
    return Place(dtype, tuple(shape), offsets[0]), offsets[1]


def _diagnosis(data: bytes) -> str:
    """What a file is that does not begin as safetensors do."""
    if not data:
        return "is empty"
    if data.startswith(b"PK\x03\x04") or (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05"):
        return f"is a pickle or zip, as torch.save writes, not a {SUFFIX} file, and is not opened"
    if data.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (git lfs pull gets it)"
    return "is cut short, or no safetensors file"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key comes twice")
    return table
