"""cf-synth: new scans from a condition."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cftools.cli import latents, options, terminal
from cftools.cli.app import Command
from cftools.cli.jobs import check_folder


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
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
) -> None:
    """Make new scans under a condition.

    On the model's grid, in MNI152 space; what is not said is left to the model. Under several conditions a sample
    keeps its noise: the column sample of participants.tsv says who is whose counterpart.

    Example:
        cf-synth --age 13 --sex M -n 4 --seed 1 out/
        cf-synth --age 20,50,80 -n 10 out/
    """
    from cftools.condition import Condition, cell
    from cftools.editing import save_described
    from cftools.piping import people, pipe_plan, synthesise
    from cftools.planning import parse_sweep
    from cftools.preset import load_preset
    from cftools.provenance import dataset_description
    from cftools.volume import make_folder, write_atomic

    assignments = [f"sex={','.join(sex)}"] if sex else []
    sweep = parse_sweep(age or [], [*assignments, *(set_ or [])]) if age or sex or set_ else [()]
    plan = pipe_plan(load_preset(preset), weights, Condition(), clip, "synth", steps=steps, guidance=guidance)
    cohort = people(plan, sweep, count)
    check_folder(out, force)
    rows = [["participant_id", "sample", *plan.facts.variables]]
    for person in cohort:
        words = [cell(person.target.condition.get(name)) for name in plan.facts.variables]
        rows.append([person.name, str(person.sample), *words])
    make_folder(out)
    table = "".join("\t".join(row) + "\n" for row in rows)
    write_atomic(out / "participants.tsv", table.encode(), force=True)
    dataset_description(out, "Synthetic brains")
    with terminal.progress("sampling") as report:
        made = synthesise(plan, lambda: options.choose_device(device), cohort, seed, latents.command())
        for done, (person, volume, provenance) in enumerate(made, start=1):
            path = out / person.name / "anat" / f"{person.name}_T1w.nii.gz"
            make_folder(path.parent)
            save_described(volume, provenance, path, force)
            terminal.result(path)
            report(done, len(cohort), note=person.name)


main = Command("cf-synth", synth)
