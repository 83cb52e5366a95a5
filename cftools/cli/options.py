"""The options that mean the same in every command, each an annotation: `force: options.Force = False`."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cftools.cli.terminal import running
from cftools.errors import CftoolsWarning, UsageError

if TYPE_CHECKING:
    import torch

# The environment each numerical library reads its thread count from, once, when it is first imported.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


Carry = Annotated[
    str | None,
    typer.Option(
        metavar="HOW", help="How the edit comes home, where there is a choice: replace, residual, warp or region."
    ),
]
Region = Annotated[
    Path | None,
    typer.Option(metavar="MASK", help="With --carry region: where alone the edit shows, a mask on the scan's grid."),
]
Mask = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The brain in a whole head: a mask on its grid (SynthStrip, HD-BET). Without it a network finds it.",
    ),
]
Stripped = Annotated[
    bool,
    typer.Option(
        "--prepared", help="The brain is cut out already, whatever it looks like: nothing is looked for nor corrected."
    ),
]
Clip = Annotated[bool, typer.Option("--clip", help="Clip what is out of the weights' range instead of refusing it.")]
Guidance = Annotated[
    float | None, typer.Option(metavar="SCALE", min=0, help="Classifier-free guidance; 1 is the plain conditional.")
]

Dtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(
        rich_help_panel="Running",
        help="Of a diffusion network's convolutions and products, instead of the preset's: bfloat16 is several times "
        "as fast where the machine has it.",
    ),
]


def usable_cpus() -> int:
    """The CPUs this process may use: on a one-core cluster slot 1, however many the node has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(name: str) -> torch.device:
    """The torch device for auto | cpu | cuda[:i] | mps.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; try auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has none; try auto")
    return torch.device(name)


def _check_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
        raise typer.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:0, mps.")
    return value


def _use_threads(value: int | None) -> int:
    threads = value or usable_cpus()
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return threads


def _own_stdout(value: str | None) -> str | None:
    if value == "-":
        running.stdout_is_data = True
    return value


def _be_strict(value: bool) -> bool:
    if value:
        warnings.simplefilter("error", CftoolsWarning)
    return value


Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=_check_device,
        rich_help_panel="Running",
        help="auto, cpu, cuda, cuda:INDEX or mps.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        callback=_use_threads,
        rich_help_panel="Running",
        help="CPU threads; by default the CPUs this process may use.",
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", metavar="N", min=0, rich_help_panel="Running", help="Seed of all random draws."),
]
Force = Annotated[bool, typer.Option("--force", rich_help_panel="Output", help="Overwrite outputs that exist.")]
SkipExisting = Annotated[
    bool,
    typer.Option("--skip-existing", rich_help_panel="Output", help="Leave out what has its output already."),
]
ParticipantLabel = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL", help="Which subjects of a BIDS folder; repeatable, comma lists."),
]
SessionLabel = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL", help="Which sessions of a BIDS folder; repeatable, comma lists."),
]
OutputFolder = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        rich_help_panel="Output",
        help="Folder for the results, made when absent; needed with several scans.",
    ),
]
Summary = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.tsv",
        rich_help_panel="Output",
        help="Write a line for each scan: status, seconds, memory, quality, warnings. A part (--shard) has its own "
        "file, FILE_shard-IofN.tsv.",
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N|auto",
        rich_help_panel="Running",
        help="Take the I-th of N parts of the scans; auto: this task's part of a SLURM, PBS (auto/N) or SGE array job.",
    ),
]
VolumeIndex = Annotated[
    int | None, typer.Option("--volume", metavar="N", min=0, help="Which volume of a 4D input, from 0.")
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=_own_stdout,
        rich_help_panel="Output",
        help="Write the facts as JSON; - is stdout.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        callback=_be_strict,
        rich_help_panel="Running",
        help="Refuse what otherwise only gets a warning.",
    ),
]


def labels(texts: list[str] | None) -> tuple[str, ...]:
    """The labels of a repeatable option with comma lists."""
    return tuple(label.strip() for text in texts or [] for label in text.split(",") if label.strip())


def check_mask(mask: Path | None, stripped: bool, scans: int = 1) -> None:
    """Raise a UsageError where --mask goes neither with --prepared nor with the number of scans."""
    if mask is not None and stripped:
        raise UsageError("--mask says where the brain is and --prepared that nothing else is there: choose one")
    if mask is not None and scans != 1:
        raise UsageError(f"--mask: is the brain of one scan, and there are {scans}: run them one by one")


def numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    """Read `count` finite numbers separated by commas, such as --at 10,-20,5."""
    words = text.split(",")
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(value) < float("inf") for value in values):
        raise UsageError(f"{option} {text}: give {count} finite numbers separated by commas")
    return values
