"""Plain data (parsed TOML or JSON) to frozen dataclasses and back: nothing unknown, missing or coerced.

The dataclasses are the schema. A field may be str, bool, int, float, Literal, `X | None`, tuple,
Mapping[str, X], Any (a scalar or a list of them), or another such dataclass; a field marked with `rest()`
takes all keys that no other field names.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cftools.errors import CftoolsError

T = TypeVar("T")
V = TypeVar("V")

SCALARS = {str: "a text", bool: "true or false", int: "a whole number", float: "a decimal number"}


class FrozenMapping(Mapping[str, V], Generic[V]):
    """A mapping that cannot be changed; equal to any mapping of the same items, hashable if they are."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items = dict(items or {})

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._items})"


def rest() -> Any:
    """A field that gathers the keys no other field of its dataclass names."""
    return dataclasses.field(default_factory=FrozenMapping, metadata={"rest": True})


def read(kind: type[T], data: object, where: str, error: type[CftoolsError]) -> T:
    """Plain data as one of the schema's dataclasses.

    Args:
        kind: the dataclass; its `__post_init__` may refuse values with a ValueError.
        data: what a TOML or JSON parser gave; values that are such dataclasses already are kept.
        where: names the source in messages, such as a file.
        error: what to raise.
    Raises:
        error: a key is unknown or missing; a value has another type, is not finite, or is refused.
    """
    try:
        value: T = _read(kind, data, "")
    except _Refused as refused:
        raise error(f"{where}: {refused}") from None
    return value


def plain(value: Any) -> Any:
    """The reverse of `read`: dicts, lists and scalars that JSON and TOML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            inner = plain(getattr(value, field.name))
            result.update(inner if field.metadata.get("rest") else {field.name: inner})
        return result
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(inner) for inner in value]
    return value


class _Refused(Exception):
    pass


def _read(kind: Any, data: Any, key: str) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return data if isinstance(data, kind) else _dataclass(kind, data, key)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), data, key)
    if origin is Literal:
        if data not in get_args(kind) or not isinstance(data, str):
            raise _Refused(f"{key} must be {_choice(get_args(kind))}, not {_shown(data)}")
        return data
    if origin is tuple:
        return _tuple(get_args(kind), data, key)
    if origin is not None and issubclass(origin, Mapping):
        inner = get_args(kind)[1]
        table = _table(data, key)
        return FrozenMapping({name: _read(inner, value, _join(key, name)) for name, value in table.items()})
    if kind is Any:
        return _anything(data, key)
    return _scalar(kind, data, key)


def _dataclass(kind: Any, data: Any, key: str) -> Any:
    table = _table(data, key)
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    gathering = next((name for name, field in fields.items() if field.metadata.get("rest")), None)
    known = fields.keys() - {gathering}
    if unknown := [name for name in table if name not in known]:
        if gathering is None:
            close = get_close_matches(unknown[0], known, n=1)
            hint = f": did you mean {close[0]}?" if close else f": it may hold {', '.join(sorted(known))}"
            raise _Refused(f"unknown key {_join(key, unknown[0])}{hint}")
        table = {name: table[name] for name in table if name in known} | {
            gathering: {name: table[name] for name in unknown}
        }
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise _Refused(f"{_join(key, name)} is missing")
    values = {
        name: _read(hints[name], value, key if name == gathering else _join(key, name)) for name, value in table.items()
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise _Refused(f"{key + ': ' if key else ''}{error}") from None


def _union(kinds: tuple[Any, ...], data: Any, key: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:
        return _read(kinds[0], data, key)
    if isinstance(data, kinds):
        return data
    raise _Refused(f"{key} cannot be {_shown(data)}")


def _tuple(kinds: tuple[Any, ...], data: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _Refused(f"{key} must be a list, not {_shown(data)}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(data)
    if len(data) != len(kinds):
        raise _Refused(f"{key} must have {len(kinds)} values, not {len(data)}")
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(_read(kind, value, f"{key}[{i}]") for i, (kind, value) in pairs)


def _anything(data: Any, key: str) -> Any:
    if isinstance(data, (list, tuple)):
        return tuple(_anything(value, f"{key}[{i}]") for i, value in enumerate(data))
    if data is None:
        return None
    if type(data) not in SCALARS:
        raise _Refused(f"{key} must be a text, a number, true, false, or a list of them, not {_shown(data)}")
    return _scalar(type(data), data, key)


def _scalar(kind: type, data: Any, key: str) -> Any:
    # type(), not isinstance: true is no 1 here.
    if type(data) is not kind:
        hint = f": write {data}.0" if kind is float and type(data) is int else ""
        raise _Refused(f"{key} must be {SCALARS[kind]}, not {_shown(data)}{hint}")
    if isinstance(data, float) and not math.isfinite(data):
        raise _Refused(f"{key} must be finite, not {data}")
    return data


def _table(data: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        raise _Refused(f"{key or 'it'} must be a table of keys and values, not {_shown(data)}")
    return data


def _join(key: str, name: str) -> str:
    return f"{key}.{_shown(name, bare=True)}" if key else _shown(name, bare=True)


def _choice(words: tuple[Any, ...]) -> str:
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _shown(data: Any, bare: bool = False) -> str:
    """A value for a message: on one line and short, whatever it is."""
    text = data if bare and data.isprintable() and data else repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
