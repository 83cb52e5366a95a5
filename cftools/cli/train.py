"""cf-train: train a preset's weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.cli.jobs import check_folder
from cftools.cli.training import Watch, tell, terminate_on_both_signals
from cftools.errors import Stopped, UsageError


def train(
    preset: Annotated[str, typer.Option(metavar="NAME|FILE", help="What to train.")],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="DIR", help="Folder of the run; a stopped run goes on in it."),
    ],
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What it learns to change, to read or to be told: age, sex, diagnosis."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="BIDS",
            help="Also simulate on the anatomy of these T1w scans (as cf-phantom --base), and let an autoencoder see "
            "them as they are; repeatable.",
        ),
    ] = None,
    real: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="BIDS",
            help="Scans seen as they are: in any contrast by an autoencoder; by a diffusion model T1w scans of people "
            "of known age and sex, and then no simulated ones; heads with labels of the brain by a brain mask's "
            "network; repeatable.",
        ),
    ] = None,
    real_label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Which of --real; repeatable, comma lists.")
    ] = None,
    participant_label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Which of --data; repeatable, comma lists.")
    ] = None,
    data_ages: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Only those of --data who are this old, years.")
    ] = None,
    template: Annotated[
        bool, typer.Option(help="Simulate on the MNI152 average too; without --data on it alone.")
    ] = True,
    law: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="How simulated brains age, as in cf-phantom.")
    ] = "normative",
    size: Annotated[str, typer.Option(metavar="bundled|full", help="Which recipe of the preset.")] = "bundled",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the recipe: training.steps=100, network.velocity_mm=8, losses.field=0.",
        ),
    ] = None,
    init: Annotated[str | None, typer.Option(metavar="NAME|FILE", help="Start from these weights: fine-tune.")] = None,
    source: Annotated[
        str, typer.Option(metavar="TEXT", help="What --data and --real are and their licence, for the weights' record.")
    ] = "",
    licence: Annotated[str, typer.Option(metavar="SPDX", help="Licence of the weights.")] = "Apache-2.0",
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel="Running",
            help="Keep anatomies, registered people, simulated subjects and latents here, for all --workers and for "
            "other trainings on the same; a fast disk with tens of GB.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, rich_help_panel="Running", help="Processes that simulate.")
    ] = 1,
    dtype: Annotated[
        Literal["bfloat16", "float32"],
        typer.Option(
            help="Of convolutions and products; which is faster depends on the machine.", rich_help_panel="Running"
        ),
    ] = "bfloat16",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel="Running", help="Say what it would take and learn from, and train nothing."
        ),
    ] = False,
    json_: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", rich_help_panel="Running", help="--dry-run's answer; - is stdout."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", rich_help_panel="Running", help="Refuse --data and --real if anything is wrong with them."
        ),
    ] = False,
    preview_every: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, rich_help_panel="Running", help="Steps between pictures in DIR/previews; 0 for none."
        ),
    ] = 500,
    validate_every: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel="Running",
            help="Steps between losses on people who are not trained on, every tenth of --real or other simulated "
            "ones, in DIR/validation.jsonl; 0 for none.",
        ),
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", rich_help_panel="Running", help="Also log to DIR/tensorboard.")
    ] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> int | None:
    """Train the weights of a preset on simulated twins.

    Data are made while training, by the simulator of cf-phantom, over the MNI152 average and any scans given.
    The run's folder holds the state to resume from, log.jsonl with the losses, and in the end
    weights.safetensors, which cf-edit --weights takes. Killed and started again, it ends with the same numbers.
    SIGTERM or SIGUSR1 end it after the step at hand, its state saved, with exit code 143. Several GPUs:
    torchrun --nproc-per-node N $(which cf-train), or srun cf-train.

    Example:
        cf-train --preset twin --condition age --data bids/ --source "our cohort" --out runs/mine
        cf-train --preset twin --out runs/mine --dry-run
        cf-edit --weights runs/mine/weights.safetensors --age +30 scan.nii.gz
    """
    from dataclasses import replace
    from datetime import UTC, datetime

    from cftools.preset import load_preset
    from cftools.provenance import command_line

    recipe = _changed(load_preset(preset).recipe_for("full" if size == "full" else "bundled"), set_ or [])
    if init:
        recipe = replace(recipe, initial=init)
    if size not in ("bundled", "full"):
        raise UsageError(f"--size {size}: bundled or full")
    if (data or real) and not source:
        raise UsageError(
            "--data and --real need --source: say what the scans are and under which licence, for the record"
        )
    if not template and not data:
        raise UsageError("--no-template leaves no anatomy: name scans with --data")
    if json_ and not dry_run:
        raise UsageError("--json goes with --dry-run; a training's numbers are in log.jsonl")
    if not dry_run:
        check_folder(out, force=True)  # a stopped run goes on in it
    terminate_on_both_signals()

    import torch

    from cftools.cli.bases import base_anatomies, gathered_complaints, real_heads, real_images, real_people
    from cftools.phantom.anatomy import template_anatomy
    from cftools.phantom.law import load_law
    from cftools.train.building import simulated_on
    from cftools.train.kinds import grid_of
    from cftools.train.processes import place_of
    from cftools.train.recipes import check, contrasts_of, planned, run, takes_real, usual

    if real and not takes_real(recipe):
        raise UsageError(f"--real: a {recipe.objective} learns from simulated subjects alone")
    conditions = [name for text in condition or usual(recipe) for name in text.split(",")]
    check(recipe, conditions)
    chosen_law = load_law(law)
    torch.set_num_threads(threads or options.usable_cpus())
    grid = grid_of(recipe)
    anatomies = [template_anatomy(simulated_on(grid))] if template else []
    images: list[Any] = []
    with gathered_complaints(strict):
        for folder in data or []:
            anatomies += base_anatomies(folder, simulated_on(grid), participant_label, data_ages, "--data-ages", cache)
        if takes_real(recipe) == "brains":
            for folder in data or []:
                images += real_images(folder, grid, contrasts_of(recipe), participant_label, data_ages)
            for folder in real or []:
                images += real_images(folder, grid, contrasts_of(recipe), real_label)
        elif takes_real(recipe) == "people":
            for folder in real or []:
                images += real_people(folder, grid, real_label, cache=cache)
        elif takes_real(recipe) == "heads":
            for folder in real or []:
                images += real_heads(folder, real_label)
    names = "MNI152 average (ICBM 2009a, as nilearn ships it)" if template else ""
    if dry_run:
        plan = planned(recipe, conditions, anatomies, images, chosen_law, seed, workers, dtype)
        tell(plan, conditions, [anatomy.name for anatomy in anatomies], len(images), json_)
        return None
    place = place_of()
    watch = Watch(out, tensorboard and place.first)
    if not place.first:
        terminal.running.verbosity = -1
    with terminal.progress("training") as report:

        def progress(done: int, total: int, losses: dict[str, float]) -> None:
            report(done, total, note=_losses(losses))
            watch.losses(done, losses)

        try:
            path = run(
                recipe,
                conditions,
                anatomies,
                images,
                chosen_law,
                seed,
                out,
                _portable(command_line(sys.argv)),
                "; ".join(text for text in (names, source) if text),
                licence,
                datetime.now(UTC).date().isoformat(),
                options.choose_device(device),
                progress,
                workers,
                dtype,
                watch.images,
                preview_every,
                cache,
                validate_every,
            )
        except Stopped as stopped:
            terminal.say(str(stopped))
            return stopped.exit_code
        finally:
            watch.close()
    if place.first:
        terminal.result(path)
    return None


def _portable(command: str) -> str:
    """The command with the folder of real scans by its variable, so that the record holds on any machine."""
    folder = os.environ.get("CFTOOLS_DATA", "").rstrip("/")
    return command.replace(folder, "$CFTOOLS_DATA") if folder else command


def _losses(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in losses.items())


def _changed(recipe: Any, settings: list[str]) -> Any:
    """The recipe with --set's values in it, checked like the preset file.

    Raises:
        UsageError: not table.key=value. PresetError: against the schema.
    """
    import tomllib

    from cftools.errors import PresetError
    from cftools.recipe import Recipe
    from cftools.schema import plain, read

    table = plain(recipe)
    for text in settings:
        name, equals, value = text.partition("=")
        group, dot, key = name.partition(".")
        if not (equals and dot and key and isinstance(table.get(group), dict)):
            raise UsageError(f"--set {text}: write table.key=value, such as training.steps=100")
        if group == "training" and key == "epochs":
            raise UsageError(f"--set {text}: simulated data have no end; only training.steps says how long")
        try:
            table[group][key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            raise UsageError(f"--set {text}: {value} is no number, true, false, list or quoted text") from None
    return read(Recipe, table, "--set", PresetError)


main = Command("cf-train", train)
