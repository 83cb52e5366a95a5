"""Latents on the command line: files, or - for a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cftools.cli import terminal

if TYPE_CHECKING:
    from cftools.latent import Latent

LatentIn = Annotated[str, typer.Argument(metavar="LATENT", help="What the command before wrote; - is stdin.")]
LatentOut = Annotated[str, typer.Argument(metavar="OUTPUT", help="A .safetensors file; - is stdout.")]
Weights = Annotated[str | None, typer.Option(metavar="NAME|FILE", help="Denoiser instead of the preset's own choice.")]


def read(name: str) -> Latent:
    """A latent by its name on the command line.

    Raises:
        LatentError: it is none.
    """
    from cftools.latent import Latent

    return Latent.from_bytes(terminal.read_bytes()) if name == "-" else Latent.load(name)


def check_output(output: str, given: str, force: bool) -> None:
    """Refuse before any work an output that cannot be written.

    Args:
        given: what is read, or - for stdin.
    Raises:
        OutputError, UsageError: as `jobs.check_files`; a terminal.
    """
    from cftools.cli.jobs import check_files

    if output == "-":
        terminal.write_bytes(b"")
    else:
        check_files({Path(output): (".safetensors",)}, [given], force)


def write(latent: Latent, output: str, force: bool) -> None:
    """Write a latent to a file, or to stdout.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    if output == "-":
        terminal.write_bytes(latent.to_bytes())
        return
    latent.save(output, force)
    terminal.result(output)


def command() -> str:
    """The command that runs, for the record: without the folders of this machine."""
    from cftools.provenance import command_line

    return command_line([Path(word).name if "/" in word else word for word in sys.argv])
