"""cf-phantom: simulated cohorts whose true counterfactuals are known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.errors import UsageError

if TYPE_CHECKING:
    from cftools.condition import Change

CONTRASTS = ("T1w",)


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the cohort, BIDS.")],
    count: Annotated[int, typer.Option("-n", "--count", metavar="N", min=1, help="Number of subjects.")] = 1,
    twin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Render every subject again under this change: age=+30, age=80. Repeatable, comma lists.",
        ),
    ] = None,
    ages: Annotated[str, typer.Option(metavar="LOW,HIGH", help="Range of the subjects' ages, years.")] = "5,100",
    contrast: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="T1w; repeatable.", show_default="T1w")
    ] = None,
    voxel_size: Annotated[int, typer.Option(metavar="1|2", help="Voxels of the images, mm.")] = 2,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="BIDS",
            help="Take these T1w scans as anatomy, not the MNI152 average; ages and sexes from participants.tsv, "
            "brains cut out by a mask or segmentation under derivatives/, where there is one.",
        ),
    ] = None,
    participant_label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Which of --base; repeatable, comma lists.")
    ] = None,
    base_ages: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Only those of --base who are this old, years.")
    ] = None,
    law: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="How brains age: normative, altered, or a .toml file.")
    ] = "normative",
    seed: options.Seed = 0,
    threads: options.Threads = None,
    force: options.Force = False,
) -> None:
    """Simulate subjects, and the same subjects at another age.

    A structural causal model over real anatomy: age and sex act on the volumes of ventricles, fissures, cisterns,
    hippocampi, cortex, white and deep grey matter by published curves, while everything else of a subject stays. Scans
    go to OUT, the true counterfactuals, labels and volumes to OUT/derivatives/truth.

    Example:
        cf-phantom twins/ -n 20 --seed 7 --twin age=+30
    """
    for name in contrast or []:
        if name not in CONTRASTS:
            raise UsageError(f"--contrast {name}: the simulator renders {', '.join(CONTRASTS)}")
    if voxel_size not in (1, 2):
        raise UsageError(f"--voxel-size {voxel_size}: 1 or 2 mm")
    low, high = options.numbers(ages, 2, "--ages")
    if low > high:
        raise UsageError(f"--ages {ages}: the lower age comes first")

    twins = [change for text in twin or [] for change in _changes(text)]

    import torch

    from cftools.cli.options import usable_cpus
    from cftools.phantom.anatomy import template_anatomy
    from cftools.phantom.cohort import write_cohort
    from cftools.phantom.law import load_law
    from cftools.phantom.twins import Family
    from cftools.prepare import GRID_1MM, GRID_2MM

    torch.set_num_threads(threads or usable_cpus())
    grid = GRID_1MM if voxel_size == 1 else GRID_2MM
    ageing = load_law(law)
    if base is None:
        anatomies = [template_anatomy(grid)]
    else:
        from cftools.cli.bases import base_anatomies

        anatomies = base_anatomies(base, grid, participant_label, base_ages)
    family = Family(anatomies, ageing)
    with terminal.progress("subjects") as report:
        write_cohort(
            out,
            family,
            grid,
            count,
            seed,
            twins,
            (low, high),
            force=force,
            command=_portable(out, base),
            report=report,
        )
    terminal.result(out)


def _portable(out: Path, base: Path | None) -> str:
    """The command without the places of its folders: the same cohort has the same bytes anywhere."""
    from cftools.provenance import command_line

    places = {str(out): "OUT"} | ({str(base): base.name} if base else {})
    return command_line([sys.argv[0], *(places.get(word, word) for word in sys.argv[1:])])


def _changes(text: str) -> tuple[Change, ...]:
    """ "age=+30,-30" is two changes of age."""
    from cftools.condition import parse_values

    name, equals, values = text.partition("=")
    if not equals:
        raise UsageError(f"--twin {text}: write NAME=VALUE, such as age=+30")
    return parse_values(name, values)


main = Command("cf-phantom", phantom)
