"""cf-encode: scans as latents of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cftools.cli import latents, options, terminal
from cftools.cli.app import Command
from cftools.cli.batch import Record, Stages
from cftools.cli.jobs import LATENT_ENDINGS, Job, Naming, Policy, check_files, check_outputs, list_jobs, make_place
from cftools.cli.jobs import read_scan as read_image
from cftools.cli.shard import parse_shard
from cftools.cli.summary import QUALITY, cells, summarised

if TYPE_CHECKING:
    from cftools.editing import Ready
    from cftools.latent import Latent


def encode(
    scans: Annotated[
        list[str],
        typer.Argument(
            metavar="SCAN... [OUTPUT]",
            help="Scans, whole heads or brains alone, or one BIDS folder; - is stdin. OUTPUT: a .safetensors file, a "
            "folder (made when absent), or - for stdout; by default a new name beside the scan.",
        ),
    ],
    preset: Annotated[str, typer.Option(metavar="NAME|FILE", help="Method.")] = "ldm",
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="NAME=VALUE",
            help="What the scan is now: age=49,sex=F. Else its JSON or participants.tsv say it; else the age "
            "model guesses, where it is installed.",
        ),
    ] = None,
    clip: options.Clip = False,
    weights: latents.Weights = None,
    mask: options.Mask = None,
    stripped: options.Stripped = False,
    volume: options.VolumeIndex = None,
    participant_label: options.ParticipantLabel = None,
    session_label: options.SessionLabel = None,
    output: options.OutputFolder = None,
    force: options.Force = False,
    skip_existing: options.SkipExisting = False,
    summary: options.Summary = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    shard: options.Shard = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
) -> int:
    """Turn scans into the latents that a diffusion model works on.

    A latent holds its scan's way to the model's grid, so that cf-decode can bring an edit back onto it. From a BIDS
    folder come derivatives.

    Example:
        cf-encode --preset ldm --from age=20,sex=F in.nii.gz latent.safetensors
        cf-encode in.nii.gz - | cf-invert - - | cf-resample --age +30 - - | cf-decode --onto in.nii.gz - out.nii.gz
        cf-encode bids/ derivatives/ --summary summary.tsv
    """
    from cftools.cohort import Wanted, latent_name
    from cftools.condition import parse_condition
    from cftools.editing import Editor
    from cftools.piping import encode, pipe_plan
    from cftools.preset import load_preset
    from cftools.volume import Volume

    policy = Policy(force, skip_existing, parse_shard(shard))
    summary = policy.shard.own(summary)
    told = parse_condition(from_ or [])
    plan = pipe_plan(load_preset(preset), weights, told, clip)
    wanted = Wanted(plan.facts.contrasts[0], options.labels(participant_label), options.labels(session_label))
    naming = Naming([()], lambda scan, _: latent_name(scan, plan.preset.name), LATENT_ENDINGS)
    everything = list_jobs(scans, output, wanted, naming)
    jobs, done = check_outputs(everything, None, policy)
    options.check_mask(mask, stripped, len(everything))
    if summary is not None:
        check_files({summary: (".tsv",)}, [*(job.scan for job in everything), mask], force or skip_existing)
    editor = Editor(plan, lambda: options.choose_device(device), seed, quality=summary is not None, stripped=stripped)

    def read(job: Job) -> Ready:
        brain = Volume.load(mask) if mask else None
        return editor.ready(*read_image(job.scan, volume, plan.facts.variables, told), mask=brain)

    def make(job: Job, ready: Ready) -> Iterator[tuple[Latent, dict[str, str]]]:
        latent = encode(editor, ready, job.dataset)
        yield latent, cells(ready.prepared.similarity, editor.reconstruction(ready))

    def write(record: Record[Job], made: tuple[Latent, dict[str, str]]) -> None:
        latent, quality = made
        [(path, _)] = record.subject.edits
        if path is not None:
            make_place(record.subject, path, "Latents of scans", ignore=["*.safetensors"])
        latents.write(latent, str(path or "-"), force)
        record.quality |= quality

    mine = policy.shard.of(everything)
    stages = Stages(read, make, write)
    with (
        terminal.progress("encoding") as report,
        summarised(summary, QUALITY, mine, done, force, skip_existing) as batch,
    ):
        return batch.work_through(jobs, stages, threads=threads or 1, report=report, total=len(jobs))


main = Command("cf-encode", encode)
