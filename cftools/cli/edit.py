"""cf-edit: a scan as it would be under another condition."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.cli.batch import Record, Stages
from cftools.cli.jobs import (
    IMAGE_ENDINGS,
    Job,
    Naming,
    Policy,
    check_files,
    check_outputs,
    list_jobs,
    make_place,
    read_scan,
)
from cftools.cli.reports import Reports
from cftools.cli.shard import parse_shard
from cftools.cli.summary import QUALITY, cells, summarised
from cftools.errors import UsageError

if TYPE_CHECKING:
    from cftools.condition import Condition
    from cftools.editing import Edited, Editor, Ready


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
        typer.Option(
            metavar="CN|MCI|AD",
            help="The diagnosis to give; a scan of unknown diagnosis is taken for healthy, see --from.",
        ),
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
    participant_label: options.ParticipantLabel = None,
    session_label: options.SessionLabel = None,
    output: options.OutputFolder = None,
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
    summary: options.Summary = None,
    report_to: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html|DIR",
            rich_help_panel="Output",
            help="Also write a page to look at, with pictures, volumes and provenance; of several scans a folder "
            "of pages with an index.",
        ),
    ] = None,
    json: options.Json = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    shard: options.Shard = None,
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
        cf-edit --age -30,-10,+10,+30 --report sweep.html in.nii.gz
        cf-edit --age +30 -o out/ sub-*.nii.gz
        cf-edit --age +30 bids/ derivatives/ --participant-label 01,02 --summary summary.tsv
        sbatch --array=1-10 --wrap 'cf-edit --shard auto --skip-existing --age +30 bids/ derivatives/'
    """
    from cftools.cohort import Wanted, described
    from cftools.condition import entity, parse_condition
    from cftools.editing import Editor
    from cftools.planning import parse_sweep, plan
    from cftools.preset import load_preset

    sure = output is not None or len(scans) == 1
    policy = Policy(force, skip_existing, parse_shard(shard), sure)
    json, volumes, summary = policy.shard.own(json), policy.shard.own(volumes), policy.shard.own(summary)
    assignments = [*(f"diagnosis={name}" for name in diagnosis or []), *(set_ or [])]
    sweep, told = parse_sweep(age or [], assignments), parse_condition(from_ or [])
    chosen: dict[str, Any] = {"steps": steps, "carry": carry, "guidance": guidance, "dtype": dtype}
    method = plan(load_preset(preset), sweep, told, weights, clip, region is not None, **chosen)
    wanted = Wanted(method.facts.contrasts[0], options.labels(participant_label), options.labels(session_label))
    naming = Naming(sweep, lambda scan, changes: described(scan, entity(changes)))
    everything = list_jobs(scans, output, wanted, naming)
    jobs, done = check_outputs(everything, json, policy)
    if device not in ("auto", "cpu"):
        options.choose_device(device)
    total = sum(len(job.edits) for job in jobs)
    options.check_mask(mask, stripped, len(everything))
    _check_extras(everything, jobs, policy, json, volumes, uncertainty, summary, (region, mask))
    reports = Reports(report_to, [str(job) for job in jobs], force, skip_existing, several=len(everything) > 1)
    editor = Editor(
        method,
        lambda: options.choose_device(device),
        seed,
        volumes=volumes is not None or reports.measures,
        spread=uncertainty is not None,
        quality=summary is not None,
        stripped=stripped,
    )
    work = _Work(editor, told, volume, region, mask, force, uncertainty, reports)
    stages = Stages(work.read, work.make, work.write, reports.end)
    mine = policy.shard.of(everything)
    with (
        terminal.progress("editing") as report,
        summarised(summary, QUALITY, mine, done, force, skip_existing) as batch,
    ):
        code = batch.work_through(jobs, stages, threads=threads or 1, report=report, total=total)
    reports.finish()
    if volumes is not None and work.volumes:
        _write_volumes(volumes, sorted(method.facts.variables), work.volumes, force)
    if json:
        terminal.write_json(work.facts, json, force)
    return code


def _check_extras(
    everything: Sequence[Job],
    jobs: Sequence[Job],
    policy: Policy,
    json: str | None,
    volumes: Path | None,
    uncertainty: Path | None,
    summary: Path | None,
    masks: Sequence[Path | None],
) -> None:
    """Refuse before any work a table or image, beside the edits, that cannot be made or written."""
    if volumes is not None:
        from cftools.planning import bundled
        from cftools.preset import load_preset

        bundled(load_preset("tissues"))
        if policy.skip_existing:
            raise UsageError("--volumes measures all edits, and --skip-existing makes only some: leave one out")
    if uncertainty is not None and sum(len(job.edits) for job in jobs) != 1:
        raise UsageError("--uncertainty: takes one edit of one scan")
    extras = {path: endings for path, endings in ((volumes, (".tsv",)), (uncertainty, IMAGE_ENDINGS)) if path}
    inputs = [*(job.scan for job in everything), *masks]
    others = [path for job in everything for path, _ in job.edits if path]
    others += [Path(json)] if json else []
    check_files(extras, inputs, policy.force, others)
    if summary is not None:  # an older one may stay: `summarised` looks at it
        check_files({summary: (".tsv",)}, inputs, policy.force or policy.skip_existing, [*others, *extras])


@dataclass(eq=False)
class _Work:
    """What is done with one scan after another, and what there is to tell of them in the end.

    Attributes:
        told: what the command line says of every scan.
        index: which volume of 4D images.
        facts: for --json, an edit each. volumes: for --volumes, the lines.
    """

    editor: Editor
    told: Condition
    index: int | None
    region: Path | None
    mask: Path | None
    force: bool
    uncertainty: Path | None
    reports: Reports
    facts: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[list[str]] = field(default_factory=list)

    def read(self, job: Job) -> tuple[Ready, float]:
        """The scan, ready to be edited, and the seconds that took."""
        from cftools.volume import Volume

        start = time.monotonic()
        scan, known = read_scan(job.scan, self.index, self.editor.plan.facts.variables, self.told)
        where, brain = (Volume.load(path) if path else None for path in (self.region, self.mask))
        ready = self.editor.ready(scan, known, [changes for _, changes in job.edits], where, brain)
        return ready, time.monotonic() - start

    def make(self, job: Job, read: tuple[Ready, float]) -> Iterator[tuple[Path | None, Edited, float]]:
        """Each output, the edit for it, and its seconds; the first has those of the reading."""
        ready, seconds = read
        start = time.monotonic() - seconds
        for (path, _), edited in zip(job.edits, self.editor.edits(ready, job.dataset), strict=True):
            yield path, edited, time.monotonic() - start
            start = time.monotonic()

    def write(self, record: Record[Job], made: tuple[Path | None, Edited, float]) -> None:
        """One edit, to where it goes."""
        job, (path, edited, seconds) = record.subject, made
        if path is None:
            terminal.write_bytes(edited.volume.to_bytes())
        else:
            make_place(job, path, "Scans under other conditions")
            edited.save(path, self.force)
            terminal.result(path)
        if self.uncertainty is not None and edited.spread is not None:
            _write_spread(self.uncertainty, edited, self.force)
        self.reports.add(record.name, edited)
        record.quality |= cells(edited.similarity, edited.reconstruction)
        self.facts.append(_facts(job, path, edited, seconds, record.warnings))
        self.volumes += _volumes(job, path, edited, first=not self.volumes or self.volumes[-1][0] != str(job))


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

    from cftools.described import save_described

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


def _write_volumes(path: Path, variables: Sequence[str], lines: Sequence[list[str]], force: bool) -> None:
    from cftools.volume import write_atomic
    from cftools.volumes import VOLUMES

    rows = [["scan", "image", *variables, *(f"{name}_ml" for name in VOLUMES)], *lines]
    write_atomic(path, "".join("\t".join(row) + "\n" for row in rows).encode(errors="surrogateescape"), force=force)


main = Command("cf-edit", edit)
