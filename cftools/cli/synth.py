"""cf-synth: new scans from a condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cftools.cli import latents, options, terminal
from cftools.cli.app import Command
from cftools.cli.batch import Record, Stages
from cftools.cli.jobs import Policy, check_files, check_folder
from cftools.cli.shard import parse_shard
from cftools.cli.summary import summarised
from cftools.errors import OutputError

if TYPE_CHECKING:
    from cftools.condition import Variable
    from cftools.piping import Person
    from cftools.provenance import Provenance
    from cftools.volume import Volume


def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder: a BIDS dataset of the scans.")],
    age: Annotated[
        list[str] | None, typer.Option(metavar="YEARS", help="Of the people in the scans: 13, or several: 20,50,80.")
    ] = None,
    sex: Annotated[list[str] | None, typer.Option(metavar="F|M", help="Of the people in the scans.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="The same for any variable that the weights know."),
    ] = None,
    count: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Samples under each condition.")] = 1,
    clip: options.Clip = False,
    preset: Annotated[str, typer.Option(metavar="NAME|FILE", help="Method.")] = "ldm",
    weights: latents.Weights = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Network evaluations.")] = None,
    guidance: options.Guidance = None,
    force: options.Force = False,
    skip_existing: options.SkipExisting = False,
    summary: options.Summary = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    shard: options.Shard = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
) -> int:
    """Make new scans under a condition.

    On the model's grid, in MNI152 space; what is not said is left to the model. Under several conditions a sample
    keeps its noise: the column sample of participants.tsv says who is whose counterpart.

    Example:
        cf-synth --age 13 --sex M -n 4 --seed 1 out/
        cf-synth --age 20,50,80 -n 10 out/
        sbatch --array=1-10 --wrap 'cf-synth --shard auto --skip-existing --age 20,50,80 -n 100 out/'
    """
    from cftools.condition import Condition
    from cftools.described import save_described
    from cftools.piping import Synthesiser, people, pipe_plan
    from cftools.planning import parse_sweep
    from cftools.preset import load_preset
    from cftools.volume import make_folder

    policy = Policy(force, skip_existing, parse_shard(shard))
    summary = policy.shard.own(summary)
    assignments = [f"sex={','.join(sex)}"] if sex else []
    sweep = parse_sweep(age or [], [*assignments, *(set_ or [])]) if age or sex or set_ else [()]
    chosen = {"steps": steps, "guidance": guidance, "dtype": dtype}
    plan = pipe_plan(load_preset(preset), weights, Condition(), clip, "synth", **chosen)
    cohort = people(plan, sweep, count)
    files = {person.name: out / person.name / "anat" / f"{person.name}_T1w.nii.gz" for person in cohort}
    mine = policy.shard.of(list(files))
    done = [name for name in mine if skip_existing and files[name].exists()]
    todo = [person for person in cohort if person.name in {*mine} - {*done}]
    _check_folder(out, [files[person.name] for person in todo], policy)
    if summary is not None:
        check_files({summary: (".tsv",)}, [], force or skip_existing)
    _write_tables(out, cohort, plan.facts.variables, force)
    synthesiser = Synthesiser(plan, lambda: options.choose_device(device), seed, latents.command())

    def make(person: Person, _: None) -> Iterator[tuple[Volume, Provenance]]:
        yield synthesiser.make(person)

    def write(record: Record[Person], made: tuple[Volume, Provenance]) -> None:
        path = files[record.name]
        make_folder(path.parent)
        save_described(*made, path, force)
        terminal.result(path)

    stages = Stages(lambda person: None, make, write)
    with (
        terminal.progress("sampling") as report,
        summarised(summary, (), mine, done, force, skip_existing) as batch,
    ):
        return batch.work_through(
            todo, stages, lambda person: person.name, threads=threads or 1, report=report, total=len(todo)
        )


def _check_folder(out: Path, files: Sequence[Path], policy: Policy) -> None:
    """Refuse a folder that holds something already, unless it is forced, resumed, or shared with other tasks."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is no folder: name another one")
    check_folder(out, force=True)  # whatever is in it, it can be written into
    if policy.force:
        return
    shared = policy.skip_existing or policy.shard.count > 1
    if not shared and out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: exists and is not empty; name another folder or use --force or --skip-existing")
    for path in files:
        if path.exists():
            raise OutputError(f"{path}: exists already: --force replaces it, --skip-existing leaves it out")


def _write_tables(out: Path, cohort: Sequence[Person], variables: Mapping[str, Variable], force: bool) -> None:
    """What makes a folder a BIDS dataset: who is in it, what the columns mean, and what made it.

    Every task of an array job writes the same.

    Raises:
        OutputError: it cannot be written, or the folder holds another cohort.
    """
    import json

    from cftools.condition import cell
    from cftools.provenance import dataset_description, kept_or_written
    from cftools.volume import make_folder, write_atomic

    rows = [["participant_id", "sample", *variables]]
    for person in cohort:
        words = [cell(person.target.condition.get(name)) for name in variables]
        rows.append([person.name, str(person.sample), *words])
    table = "".join("\t".join(row) + "\n" for row in rows).encode()
    meaning: dict[str, dict[str, object]] = {
        "sample": {"Description": "whose noise it has: equal numbers are counterparts under other conditions"}
    }
    for name, variable in variables.items():
        meaning[name] = {"Description": f"{name} that was asked for; n/a is left to the model"}
        meaning[name] |= {"Units": variable.unit} if variable.unit else {}
        meaning[name] |= {"Levels": {value: value for value in variable.values}} if variable.values else {}
    make_folder(out)
    if force:
        write_atomic(out / "participants.tsv", table, force=True)
    else:
        kept_or_written(out / "participants.tsv", table)
        if (out / "participants.tsv").read_bytes() != table:
            raise OutputError(f"{out}: holds another cohort, by its participants.tsv: name another folder")
    kept_or_written(out / "participants.json", (json.dumps(meaning, indent=1) + "\n").encode())
    dataset_description(out, "Synthetic brains", raw=True)


main = Command("cf-synth", synth)
