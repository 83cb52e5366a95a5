"""cf-edit: a scan as it would be under another condition."""

from __future__ import annotations

import itertools
import json as json_format
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command, for_each
from cftools.errors import CftoolsWarning, ConditionError, OutputError, UsageError

if TYPE_CHECKING:
    from cftools.condition import Change, Condition
    from cftools.editing import Edited, Editor

IMAGE_ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Job:
    """One scan, and where its edits go.

    Attributes:
        scan: None is stdin.
        edits: for each output, what is changed; None is stdout.
        dataset: the BIDS folder the scan was found in, None for a scan named by itself.
    """

    scan: Path | None
    edits: dict[Path | None, tuple[Change, ...]]
    dataset: Path | None = None

    def __str__(self) -> str:
        return str(self.scan or "-")


def edit(
    scans: Annotated[
        list[str],
        typer.Argument(
            metavar="SCAN... [OUTPUT]",
            help="Brain-only scans, or one BIDS folder; - is stdin. OUTPUT: an image, a folder (made when "
            "absent), or - for stdout; by default a new name beside the scan.",
        ),
    ],
    age: Annotated[
        list[str] | None,
        typer.Option(
            metavar="YEARS", help="Age to give: 79, or +30 and -10 from the scan's own. Repeatable, comma lists."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="The same for any variable that the weights can change."
        ),
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="NAME=VALUE",
            help="What the scan is now: age=49,sex=F. Else the scan's JSON or participants.tsv say it, else an "
            "age model guesses.",
        ),
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip", help="Clip what is out of the weights' range instead of refusing it.")
    ] = False,
    preset: Annotated[str, typer.Option(metavar="NAME|FILE", help="Method.")] = "twin",
    weights: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Weights instead of the preset's own choice.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Network evaluations; 1 is one shot.")
    ] = None,
    volume: options.VolumeIndex = None,
    participant_label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Which subjects of a BIDS folder. Repeatable, comma lists."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            rich_help_panel="Output",
            help="Folder for the results, made when absent; needed with several scans.",
        ),
    ] = None,
    force: options.Force = False,
    skip_existing: options.SkipExisting = False,
    json: options.Json = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
) -> int:
    """Show a scan as it would be under another condition, such as thirty years older.

    The result has the scan's own grid and header, and a JSON file beside it that says how it came about. Several
    values are a sweep: the scan is prepared once. Of a BIDS folder the result is a BIDS derivative.

    Example:
        cf-edit --age +30 sub-01_T1w.nii.gz
        cf-edit --age 79 --from age=49,sex=F in.nii.gz out.nii.gz
        cf-edit --age -30,-10,+10,+30 in.nii.gz
        cf-edit --age +30 -o out/ sub-*.nii.gz
        cf-edit --age +30 bids/ derivatives/ --participant-label 01,02
    """
    from cftools.condition import parse_condition

    if force and skip_existing:
        raise UsageError("--force and --skip-existing contradict each other: choose one")
    sweep = parse_sweep(age or [], set_ or [])
    told = parse_condition(from_ or [])

    from cftools.editing import Editor, plan
    from cftools.preset import load_preset

    method = plan(load_preset(preset), sweep, told, weights, steps, clip)
    labels = [label for text in participant_label or [] for label in text.split(",")]
    jobs = list_jobs(scans, output, labels, sweep, method.facts.contrasts[0])
    jobs = check_outputs(jobs, json, force, skip_existing, named=output is not None)
    if device not in ("auto", "cpu"):
        options.choose_device(device)
    editor = Editor(method, lambda: options.choose_device(device), seed)
    facts: list[dict[str, Any]] = []
    total = sum(len(job.edits) for job in jobs)

    with terminal.progress("editing") as report:

        def work(job: Job) -> None:
            with _noting(str(job), strict) as notes:
                for path, edited, seconds in _edited(editor, job, told, volume):
                    _write(path, edited, force)
                    facts.append(_facts(job, path, edited, seconds, notes))
                    if total > 1:
                        report(len(facts), total, note=str(job))

        code = for_each(jobs, work)
    if json:
        terminal.write_json(facts, json, force)
    return code


def parse_sweep(ages: Sequence[str], assignments: Sequence[str]) -> list[tuple[Change, ...]]:
    """The edits that are asked for: every combination of one value of each variable.

    Args:
        ages: of --age; assignments: of --set, "load=low,high" or "load=low,diagnosis=AD".
    Raises:
        ConditionError: none, one twice, or one that cannot be read.
    """
    from cftools.condition import parse_values

    texts = [("age", text) for text in ages]
    for text in assignments:
        for part in re.split(r",(?=[^,=]*=)", text):
            name, equals, values = part.partition("=")
            if not equals:
                raise ConditionError(f"--set {text}: {part!r} is not name=value")
            texts.append((name.strip(), values))
    values_of: dict[str, list[Change]] = {}
    for name, text in texts:
        for change in parse_values(name, text):
            if change in values_of.setdefault(name, []):
                raise ConditionError(f"{name}: {change.entity} is asked for twice")
            values_of[name].append(change)
    if not values_of:
        raise ConditionError("nothing to change: name a condition, such as --age +30")
    return list(itertools.product(*values_of.values()))


def list_jobs(
    words: Sequence[str],
    output: str | None,
    labels: Sequence[str],
    sweep: Sequence[tuple[Change, ...]],
    contrast: str,
) -> list[Job]:
    """Scans and outputs from the words of the command line.

    Args:
        output: of -o; without it the second of two words.
        labels: participants of a BIDS folder to keep.
        contrast: which scans of a BIDS folder to take.
    Raises:
        UsageError: they make no sense together.
    """
    words = list(words)
    if output is None and len(words) > 1:
        if len(words) > 2:
            raise UsageError(f"{len(words)} scans: name a folder for the results with -o DIR")
        output = words.pop()
    if any(Path(word).is_dir() for word in words):
        return _jobs_of_dataset(words, output, labels, sweep, contrast)
    if labels:
        raise UsageError(f"--participant-label goes with a BIDS folder, and {words[0]} is none")
    if "-" in words:
        if len(words) > 1:
            raise UsageError("- is stdin: it cannot be one of several scans")
        output = output or "-"
    if output == "-":
        if len(words) > 1 or len(sweep) > 1:
            raise UsageError("- is stdout: it takes one image; name a folder with -o DIR")
        scan = None if words[0] == "-" else Path(words[0])
        return [Job(scan, {None: sweep[0]})]
    if output is not None and not _is_folder(output, several=len(words) > 1 or len(sweep) > 1):
        return [Job(None if words[0] == "-" else Path(words[0]), {Path(output): sweep[0]})]
    if words[0] == "-":
        raise UsageError("- is stdin, which has no name: name the output image")
    return [_job(Path(word), Path(output) if output else Path(word).parent, sweep) for word in words]


def _job(scan: Path, folder: Path, sweep: Sequence[tuple[Change, ...]], dataset: Path | None = None) -> Job:
    """A scan whose outputs have their default names in a folder."""
    from cftools.cohort import described
    from cftools.condition import entity

    return Job(scan, {folder / described(scan, entity(changes)): changes for changes in sweep}, dataset)


def _jobs_of_dataset(
    words: Sequence[str],
    output: str | None,
    labels: Sequence[str],
    sweep: Sequence[tuple[Change, ...]],
    contrast: str,
) -> list[Job]:
    from cftools.cohort import find_scans

    dataset = Path(words[0])
    if len(words) > 1:
        raise UsageError("a BIDS folder goes alone: edit folders one by one, and scans without them")
    if output is None or not _is_folder(output, several=True):
        raise UsageError(f"{dataset}: is a folder: name a folder for the derivatives too")
    if Path(output).resolve() == dataset.resolve():
        raise UsageError(f"{dataset}: is the dataset itself: name another folder for the derivatives")
    found = [scan.path for scan in find_scans(dataset, contrast, labels)]
    return [_job(path, output / path.parent.relative_to(dataset), sweep, dataset) for path in found]


def _is_folder(output: str, several: bool) -> bool:
    """Whether an output is a folder; else it is one image."""
    is_image = output.lower().endswith(IMAGE_ENDINGS)
    if output == "-" or (several and is_image and not Path(output).is_dir()):
        raise UsageError(f"{output}: several images need a folder: name one with -o DIR")
    if not several and not is_image and not output.endswith("/") and not Path(output).is_dir():
        raise OutputError(f"{output}: an image ends in .nii or .nii.gz, and a new folder in /")
    return output.endswith("/") or Path(output).is_dir() or several
