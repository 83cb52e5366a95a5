"""cf-phantom: simulated cohorts whose true counterfactuals are known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.cli.jobs import check_folder
from cftools.errors import UsageError

if TYPE_CHECKING:
    from cftools.phantom.cohort import Twin


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the cohort, BIDS.")],
    count: Annotated[int, typer.Option("-n", "--count", metavar="N", min=1, help="Number of subjects.")] = 1,
    twin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Render every subject again under this change: age=+30, age=80, diagnosis=AD, load=high, "
            "lesion=stroke. Repeatable; comma lists of one; load=high,age=+10 makes both at once.",
        ),
    ] = None,
    ages: Annotated[str, typer.Option(metavar="LOW,HIGH", help="Range of the subjects' ages, years.")] = "5,100",
    contrast: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="T1w, T2w, FLAIR, T1ce; repeatable, comma lists.", show_default="T1w"),
    ] = None,
    diagnosis: Annotated[
        str | None, typer.Option(metavar="LIST", help="Draw each subject's own from CN, MCI, AD.", show_default="CN")
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Draw each subject's own load of multiple sclerosis lesions from none, low, medium, high.",
            show_default="none",
        ),
    ] = None,
    lesion: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Draw each subject's own from none, stroke, tumour.", show_default="none"),
    ] = None,
    lesion_masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Strokes take their shape from these binary masks in MNI152 space."),
    ] = None,
    skull: Annotated[bool, typer.Option("--skull", help="Whole heads, with masks of the brain.")] = False,
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
    """Simulate subjects, and the same subjects at another age or in other health.

    A structural causal model over real anatomy: age, sex and diagnosis act on the volumes of ventricles, fissures,
    cisterns, hippocampi, cortex, white and deep grey matter by published figures, lesions are added with what they do
    around them, while everything else of a subject stays. Scans go to OUT, the true counterfactuals, labels, masks and
    volumes to OUT/derivatives/truth.

    Example:
        cf-phantom twins/ -n 20 --seed 7 --twin age=+30
        cf-phantom ms/ -n 20 --contrast T1w,FLAIR --load none,low,high --twin load=none --twin load=high
    """
    if voxel_size not in (1, 2):
        raise UsageError(f"--voxel-size {voxel_size}: 1 or 2 mm")
    low, high = options.numbers(ages, 2, "--ages")
    if low > high:
        raise UsageError(f"--ages {ages}: the lower age comes first")

    twins = [change for text in twin or [] for change in _changes(text)]
    check_folder(out, force)

    import torch

    from cftools.cli.options import usable_cpus
    from cftools.phantom.anatomy import template_anatomy
    from cftools.phantom.cohort import Design, write_cohort
    from cftools.phantom.contrast import CONTRASTS
    from cftools.phantom.law import load_law
    from cftools.phantom.twins import HEALTH, Family
    from cftools.prepare import GRID_1MM, GRID_2MM

    asked = {"diagnosis": diagnosis, "load": load, "lesion": lesion}
    own = {name: _some_of(HEALTH[name], text, f"--{name}") for name, text in asked.items() if text is not None}
    contrasts = _some_of(tuple(CONTRASTS), ",".join(contrast or ["T1w"]), "--contrast")
    masks = sorted(lesion_masks.glob("*.nii*")) if lesion_masks else []
    if lesion_masks and not masks:
        raise UsageError(f"--lesion-masks {lesion_masks}: no .nii or .nii.gz in it")
    torch.set_num_threads(threads or usable_cpus())
    grid = GRID_1MM if voxel_size == 1 else GRID_2MM
    ageing = load_law(law)
    if base is None:
        anatomies = [template_anatomy(grid)]
    else:
        from cftools.cli.bases import base_anatomies

        anatomies = base_anatomies(base, grid, participant_label, base_ages)
    family = Family(anatomies, ageing, masks=masks)
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
            command=_portable(out, base, lesion_masks),
            report=report,
            design=Design(own, contrasts, skull),
        )
    terminal.result(out)


def _portable(out: Path, *read: Path | None) -> str:
    """The command without the places of its folders: the same cohort has the same bytes anywhere."""
    from cftools.provenance import command_line

    places = {str(out): "OUT"} | {str(folder): folder.name for folder in read if folder}
    return command_line([sys.argv[0], *(places.get(word, word) for word in sys.argv[1:])])


def _some_of(known: tuple[str, ...], text: str, option: str) -> tuple[str, ...]:
    """The values of a comma list, each one of those known, and none twice."""
    values = tuple(text.split(","))
    for value in values:
        if value not in known:
            raise UsageError(f"{option} {value}: the simulator knows {', '.join(known)}")
    if len(set(values)) < len(values):
        raise UsageError(f"{option} {text}: the same value twice")
    return values


def _changes(text: str) -> tuple[Twin, ...]:
    """ "age=+30,-30" is two changes of age; "load=high,age=+10" is one of both."""
    from cftools.condition import parse_assignments, parse_values

    if text.count("=") > 1:
        return (parse_assignments(text),)

    name, equals, values = text.partition("=")
    if not equals:
        raise UsageError(f"--twin {text}: write NAME=VALUE, such as age=+30")
    return parse_values(name, values)


main = Command("cf-phantom", phantom)
