"""The parameters of every command as plain facts: what descriptors for other systems are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from cftools.cli.main import COMMANDS

Kind = Literal["flag", "text", "file", "integer", "number"]

#: Arguments and options that name something that exists, by the first word of what the help shows for them.
READ = ("SCAN", "BEFORE", "EDITED", "LATENT", "MASK", "BIDS")
#: Group of options that say where results go.
OUTPUT = "Output"


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
    parameters = [_parameter(each) for each in command.params]
    parameters.sort(key=lambda each: not each.flag)
    text = " ".join(command.help.split())
    return Interface(words, command.help.partition("\n")[0], text, tuple(parameters))


def _parameter(given: Any) -> Parameter:
    """What a parameter of typer's says of itself."""
    is_option = given.param_type_name == "option"
    metavar = (given.metavar or given.name).upper() if given.metavar is None else given.metavar
    several = given.nargs == -1 or bool(getattr(given, "multiple", False)) 
    in_output = getattr(given, "rich_help_panel", None) == OUTPUT
    kind = _kind(given, metavar)
    flag = _flag(given) if is_option else ""
    return Parameter(
        name=flag.lstrip("-").replace("-", "_") or given.name,
        flag=flag,
        kind=kind,
        metavar=metavar,
        help=given.help or "",
        required=given.required,
        several=several,
        choices=tuple(map(str, getattr(given.type, "choices", ()))),
        low=getattr(given.type, "min", None),
        high=getattr(given.type, "max", None),
        default=given.default if isinstance(given.default, (str, int, float)) and kind != "flag" else None,
        writes=kind in ("text", "file") and (in_output or metavar.startswith(("OUT", "DIR"))),
    )
