"""cf-edit: a scan as it would be under another condition."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command, for_each
from cftools.cli.jobs import IMAGE_ENDINGS, Job, check_files, check_outputs, list_jobs
from cftools.errors import CftoolsWarning, OutputError, UsageError

if TYPE_CHECKING:
    from cftools.condition import Condition
    from cftools.editing import Edited, Editor


def edit(
    scans: Annotated[
        list[str],
        typer.Argument(
            metavar="SCAN... [OUTPUT]",
            help="Scans, whole heads or brains alone, or one BIDS folder; - is stdin. OUTPUT: an image, a folder "
            "(made when absent), or - for stdout; by default a new name beside the scan.",
        ),
    ],
    age: Annotated[
        list[str] | None,
        typer.Option(
            metavar="YEARS", help="The age to give: 79, or +30, -10 from the scan's own; several are a sweep."
        ),
    ] = None,
    diagnosis: Annotated[
        list[str] | None,
        typer.Option(metavar="CN|MCI|AD", help="The diagnosis to give; the scan's own must be known, see --from."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="The same for any variable that the weights can change."),
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="NAME=VALUE",
            help="What the scan is now: age=49,sex=F. Else its JSON or participants.tsv say it; else the "
            "age model guesses, where it is installed (age-2mm).",
        ),
    ] = None,
    clip: options.Clip = False,
    preset: Annotated[str, typer.Option(metavar="NAME|FILE", help="Method.")] = "twin",
    weights: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Weights instead of the preset's own choice.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Network evaluations; 1 is one shot.")] = None,
    carry: options.Carry = None,
    region: options.Region = None,
    guidance: options.Guidance = None,
    mask: options.Mask = None,
    stripped: options.Stripped = False,
    volume: options.VolumeIndex = None,
    participant_label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Which subjects of a BIDS folder; repeatable, comma lists."),
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
    volumes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.tsv",
            rich_help_panel="Output",
            help="Also measure brain, grey and white matter, ventricles and hippocampi before and after, ml.",
        ),
    ] = None,
    uncertainty: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel="Output",
            help="Also write how much the edit varies, voxel by voxel, when made in other ways; one scan, one edit.",
        ),
    ] = None,
    json: options.Json = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
) -> int:
    """Show a scan as it would be under another condition, such as thirty years older.

    The result has the scan's own grid and header, and a JSON beside it that says how it came about. In a whole
    head the brain is found first, and all outside it stays as it was. For several values the scan is prepared
    once. From a BIDS folder come BIDS derivatives.

    Example:
        cf-edit --age +30 sub-01_T1w.nii.gz
        cf-edit --age 79 --from age=49,sex=F in.nii.gz out.nii.gz
        cf-edit --age -30,-10,+10,+30 in.nii.gz
        cf-edit --age +30 -o out/ sub-*.nii.gz
        cf-edit --age +30 bids/ derivatives/ --participant-label 01,02
    """
    if force and skip_existing:
        raise UsageError("--force and --skip-existing contradict each other: choose one")

    from cftools.condition import parse_condition
    from cftools.editing import Editor
    from cftools.planning import parse_sweep, plan
    from cftools.preset import load_preset

    assignments = [*(f"diagnosis={name}" for name in diagnosis or []), *(set_ or [])]
    sweep, told = parse_sweep(age or [], assignments), parse_condition(from_ or [])
    chosen: dict[str, Any] = {"steps": steps, "carry": carry, "guidance": guidance}
    method = plan(load_preset(preset), sweep, told, weights, clip, region is not None, **chosen)
    labels = [label for text in participant_label or [] for label in text.split(",")]
    jobs = list_jobs(scans, output, labels, sweep, method.facts.contrasts[0])
    jobs = check_outputs(jobs, json, force, skip_existing, sure=output is not None or len(scans) == 1)
    if device not in ("auto", "cpu"):
        options.choose_device(device)
    if volumes is not None:
        from cftools.planning import bundled

        bundled(load_preset("tissues"))
        if skip_existing:
            raise UsageError("--volumes measures all edits, and --skip-existing makes only some: leave one out")
    if uncertainty is not None and sum(len(job.edits) for job in jobs) != 1:
        raise UsageError("--uncertainty: takes one edit of one scan")
    extras = {path: endings for path, endings in ((volumes, (".tsv",)), (uncertainty, IMAGE_ENDINGS)) if path}
    others = [path for job in jobs for path, _ in job.edits if path]
    options.check_mask(mask, stripped, len(jobs))
    check_files(extras, [*(job.scan for job in jobs), region, mask], force, [*others, *([Path(json)] if json else [])])
    wanted = (volumes is not None, uncertainty is not None)
    editor = Editor(method, lambda: options.choose_device(device), seed, *wanted, stripped=stripped)
    table: list[list[str]] = []
    facts: list[dict[str, Any]] = []
    total = sum(len(job.edits) for job in jobs)

    with terminal.progress("editing") as report:

        def work(job: Job) -> None:
            with _noting(str(job)) as notes:
                for path, edited, seconds in _edited(editor, job, told, volume, region, mask):
                    _write(job, path, edited, force)
                    if uncertainty is not None and edited.spread is not None:
                        _write_spread(uncertainty, edited, force)
                    facts.append(_facts(job, path, edited, seconds, notes))
                    table.extend(_volumes(job, path, edited, first=not table or table[-1][0] != str(job)))
                    if total > 1:
                        report(len(facts), total, note=str(job))

        code = for_each(jobs, work)
    if volumes is not None and table:
        from cftools.volume import write_atomic
        from cftools.volumes import VOLUMES

        names = sorted(method.facts.variables)
        rows = [["scan", "image", *names, *(f"{name}_ml" for name in VOLUMES)], *table]
        write_atomic(volumes, "".join("\t".join(row) + "\n" for row in rows).encode(), force=force)
    if json:
        terminal.write_json(facts, json, force)
    return code


def _edited(
    editor: Editor, job: Job, told: Condition, index: int | None, region: Path | None, mask: Path | None
) -> Iterator[tuple[Path | None, Edited, float]]:
    """Each output of a job, the edit for it, and its seconds; the first has those of the preparation."""
    from cftools.cohort import known_of
    from cftools.condition import Condition
    from cftools.volume import Volume

    start = time.monotonic()
    variables = editor.plan.facts.variables
    known = Condition(dict.fromkeys(variables))
    if job.scan and told.keys() != known.keys():
        known = known_of(job.scan, variables)
    scan = Volume.load(job.scan, index) if job.scan else Volume.from_bytes(terminal.read_bytes(), index=index)
    where, brain = (Volume.load(path) if path else None for path in (region, mask))
    sweep = [changes for _, changes in job.edits]
    edits = editor.edit(scan, known.do(**told), sweep, job.dataset, where, brain)
    for (path, _), edited in zip(job.edits, edits, strict=True):
        yield path, edited, time.monotonic() - start
        start = time.monotonic()


def _write(job: Job, path: Path | None, edited: Edited, force: bool) -> None:
    if path is None:
        terminal.write_bytes(edited.volume.to_bytes())
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made ({error.strerror}): name another folder") from None
    if job.dataset and job.derivatives:
        from cftools.provenance import dataset_description

        links = {"raw": os.path.relpath(job.dataset, job.derivatives)}
        dataset_description(job.derivatives, "Scans under other conditions", DatasetLinks=links)
    edited.save(path, force)
    terminal.result(path)


def _facts(job: Job, path: Path | None, edited: Edited, seconds: float, notes: Sequence[str]) -> dict[str, Any]:
    from cftools.schema import plain

    return {
        "input": str(job),
        "output": str(path or "-"),
        "source": plain(edited.source),
        "target": plain(edited.target),
        "seconds": round(seconds, 2),
        "registration": {"similarity": round(edited.similarity, 4)},
        "warnings": list(notes),
    }


def _write_spread(path: Path, edited: Edited, force: bool) -> None:
    """The standard deviation of an edit, with a sidecar that says over what."""
    from dataclasses import replace

    from cftools.editing import save_described

    assert edited.spread is not None
    words, volume = edited.spread
    details = {**edited.provenance.details, "standard deviation over": words}
    command = f"{edited.provenance.command} --uncertainty {path.name}"
    save_described(volume, replace(edited.provenance, command=command, details=details), path, force)
    terminal.result(path)


def _volumes(job: Job, path: Path | None, edited: Edited, first: bool) -> Iterator[list[str]]:
    """Rows of the table: the scan itself, once, and an edit of it."""
    from cftools.condition import cell

    if edited.volumes is None:
        return
    pairs = zip((str(job), str(path or "-")), (edited.source, edited.target), edited.volumes, strict=True)
    for image, condition, found in list(pairs)[0 if first else 1 :]:
        told = [cell(value) for value in condition.values()]
        yield [str(job), image, *told, *(f"{value:.2f}" for value in found.values())]


@contextmanager
def _noting(name: str) -> Iterator[list[str]]:
    """Gather the warnings about one scan, each shown with its name."""
    notes: list[str] = []
    # It also forgets what was shown before: two scans may have the same to be said of them.
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, CftoolsWarning):
                text = str(message) if name in str(message) else f"{name}: {message}"
                notes.append(text)
                message = category(text)
            show(message, category, *where, **more)

        warnings.showwarning = note
        yield notes


main = Command("cf-edit", edit)
