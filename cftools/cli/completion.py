"""Completion in a shell: the script that turns it on, and the answers when Tab is pressed, both by typer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from cftools.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str, names: Iterable[str]) -> str:
    """What a shell must run so that it completes these commands.

    Raises:
        UsageError: another shell.
    """
    from typer.completion import get_completion_script

    if shell not in SHELLS:
        raise UsageError(f"--completion {shell}: choose from {', '.join(SHELLS)}")
    scripts = [get_completion_script(prog_name=name, complete_var=variable(name), shell=shell) for name in names]
    return "\n".join(scripts)


def variable(name: str) -> str:
    """The environment variable in which a shell asks a command for completions: _CF_EDIT_COMPLETE."""
    return f"_{name.replace('-', '_').upper()}_COMPLETE"


def answer(name: str, command: Any) -> int | None:
    """Print the completions that a shell asks for, and return the exit code; None where it asks for none."""
    instruction = os.environ.get(variable(name))
    if not instruction:
        return None
    from typer.completion import completion_init, shell_complete

    completion_init()
    return shell_complete(command, {}, name, variable(name), instruction)
