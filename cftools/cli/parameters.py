"""The parameters of every command as plain facts: what descriptors for other systems are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

COMMANDS = (
    *("edit", "synth", "phantom", "train", "score", "view", "weights"),
    *("prep", "encode", "invert", "resample", "decode"),
)
Kind = Literal["flag", "text", "file", "integer", "number"]

#: First words by which the help calls what is there before a command runs, and the group and words of what it writes.
READ = ("SCAN", "BEFORE", "EDITED", "LATENT", "MASK", "BIDS", "FILE", "DIR")
OUTPUT, WRITTEN = "Output", ("OUT", "OUTPUT")


@dataclass(frozen=True)
class Parameter:
    """One argument or option.

    Attributes:
        name: as Python may call it.
        flag: as typed, the longest form; empty for an argument.
        kind: of a value. A file exists before the command runs.
        several: takes more than one value.
        choices: the only values there are; empty where all are.
        low, high: of a number; None for no bound.
        default: None where there is none.
        writes: names a file or folder that the command writes.
    """

    name: str
    flag: str
    kind: Kind
    metavar: str
    help: str
    required: bool = False
    several: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    default: str | float | None = None
    writes: bool = False


@dataclass(frozen=True)
class Interface:
    """One command, or one action of one, such as `cf-weights list`.

    Attributes:
        words: that call it.
        summary: one line; description: what its help says, without the example.
        parameters: in the order of a command line: options, then arguments.
    """

    words: tuple[str, ...]
    summary: str
    description: str
    parameters: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        """Its words with hyphens: cf-weights-list."""
        return "-".join(self.words)


def interfaces() -> Iterator[Interface]:
    """Every command, with an action of its own each; `cftools`, which only lists them, is left out."""
    for name in COMMANDS:
        command = import_module(f"cftools.cli.{name}").main
        if not command.actions:
            yield _interface((command.name,), command.click_command)
        for action in command.actions:
            yield _interface((command.name, action), command.click_command.commands[action])


def interface(name: str) -> Interface | None:
    """A command by its name, such as cf-edit or cf-weights-list; None where there is none."""
    return next((found for found in interfaces() if found.name == name), None)


def _interface(words: tuple[str, ...], command: Any) -> Interface:
    parameters = sorted(map(_parameter, command.params), key=lambda each: not each.flag)
    return Interface(words, command.help.partition("\n")[0], " ".join(command.help.split()), tuple(parameters))


def _parameter(given: Any) -> Parameter:
    """What a parameter of typer's says of itself."""
    is_flag = bool(getattr(given, "is_flag", False) or getattr(given, "count", False))
    # A flag that is on already has another that turns it off.
    spellings = given.secondary_opts if is_flag and given.default is True else given.opts
    flag = max(spellings, key=len) if given.param_type_name == "option" else ""
    metavar = given.metavar or str(given.name).upper()
    first = re.split(r"[^A-Z]", metavar, maxsplit=1)[0]
    grouped = getattr(given, "rich_help_panel", None) == OUTPUT
    writes = not is_flag and (grouped or first in WRITTEN or "-o" in given.opts)
    number = {"int": "integer", "int range": "integer", "float": "number", "float range": "number"}
    kind: Any = "flag" if is_flag else number.get(given.type.name, "text")
    if kind == "text" and first in READ and not writes:
        kind = "file"
    return Parameter(
        name=flag.lstrip("-").replace("-", "_") or str(given.name),
        flag=flag,
        kind=kind,
        metavar=metavar,
        help=given.help or "",
        required=given.required,
        several=given.nargs == -1 or bool(getattr(given, "multiple", False)),
        choices=tuple(map(str, getattr(given.type, "choices", ()))),
        low=getattr(given.type, "min", None),
        high=getattr(given.type, "max", None),
        default=None if is_flag or not isinstance(given.default, (str, int, float)) else given.default,
        writes=writes,
    )
