"""cftools: what there is."""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Annotated

import typer

from cftools import __version__
from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.cli.boutiques import descriptor
from cftools.cli.completion import completion_script
from cftools.cli.parameters import COMMANDS, interface, interfaces
from cftools.errors import UsageError


def overview(
    version: Annotated[
        bool, typer.Option("--version", help="Versions of cftools, Python and torch, and the device in use.")
    ] = False,
    citation: Annotated[
        str | None, typer.Option("--citation", metavar="PRESET", help="What to cite for a preset.")
    ] = None,
    boutiques: Annotated[
        str | None, typer.Option("--boutiques", metavar="COMMAND", help="A command's Boutiques descriptor, JSON.")
    ] = None,
    completion: Annotated[
        str | None,
        typer.Option("--completion", metavar="SHELL", help="A script for bash, zsh or fish: completes all commands."),
    ] = None,
) -> None:
    """List the commands, each with what it is for.

    Example:
        cftools
        cftools --version
        cftools --citation twin
        cftools --boutiques cf-edit > cf-edit.json
        eval "$(cftools --completion bash)"
    """
    if version:
        _print_versions()
    if citation is not None:
        from cftools.preset import load_preset

        terminal.result(load_preset(citation).citation)
    if boutiques is not None:
        _print_descriptor(boutiques)
    if completion is not None:
        terminal.result(completion_script(completion, ("cftools", *(f"cf-{name}" for name in COMMANDS))))
    if not version and citation is None and boutiques is None and completion is None:
        terminal.result("Counterfactual brain MRI. Every command has --help, with an example.\n")
        for name in COMMANDS:
            command = import_module(f"cftools.cli.{name}").main
            terminal.result(f"  {command.name:<12}{command.summary}")


def _print_descriptor(name: str) -> None:
    found = interface(name)
    if found is None:
        raise UsageError(f"--boutiques {name}: choose from {', '.join(one.name for one in interfaces())}")
    terminal.write_json(descriptor(found), "-")


def _print_versions() -> None:
    import torch

    device = options.choose_device("auto")
    terminal.result(f"cftools {__version__}")
    terminal.result(f"python {platform.python_version()}")
    terminal.result(f"torch {torch.__version__}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.usable_cpus()} threads"
    terminal.result(f"device {device} ({name})")


main = Command("cftools", overview)
