"""cf-view: pictures of scans."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.cli.jobs import check_files
from cftools.cli.reports import ENDING, page_of_files
from cftools.errors import UsageError


def view(
    scans: Annotated[
        list[str],
        typer.Argument(metavar="BEFORE [AFTER...]", help="One scan, or several on one grid; - is stdin."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            rich_help_panel="Output",
            help="Picture (.png, .pdf, .svg) or its folder; by default beside the last scan; - is stdout.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            rich_help_panel="Output",
            help="Instead of a picture a page: a slider over the edits, outlines, and what their JSON says.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", help="World mm (RAS) to cut through; by default the brain's centre."),
    ] = None,
    plane: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="axial, coronal, sagittal; all three, of a sweep axial alone."),
    ] = None,
    volume: options.VolumeIndex = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A title for each scan in turn, instead of its name."),
    ] = None,
    limit: Annotated[
        float | None, typer.Option(metavar="VALUE", help="Difference at the ends of the colour scale.")
    ] = None,
    radiological: Annotated[bool, typer.Option("--radiological", help="Show the subject's left on the right.")] = False,
    dpi: Annotated[int, typer.Option(metavar="N", min=20, max=1200, help="Dots per inch.")] = 150,
    force: options.Force = False,
) -> None:
    """Draw scans: before, after and difference in three planes, or a sweep as a strip.

    With one AFTER the difference (after - before) has its own column, with several its own row. All
    scans are shown in the grey window of BEFORE.

    Example:
        cf-view scan.nii.gz scan_desc-agePlus30.nii.gz -o aged.png
        cf-view --html aged.html scan.nii.gz scan_desc-agePlus30.nii.gz
        cf-view scan.nii.gz aged10.nii.gz aged20.nii.gz --label now --label +10 --label +20 -o strip.png
    """
    if scans.count("-") > 1:
        raise UsageError("- is stdin: only one of the scans can come from there")
    if limit is not None and limit <= 0:
        raise UsageError(f"--limit {limit:g}: give a difference above 0")
    if html is not None:
        _check_page(html, scans, output or plane)
    point = options.numbers(at, 3, "--at") if at else None
    destination = html or _destination(scans[-1], output)
    planes = [name for names in plane or [] for name in names.split(",")]
    if not planes:
        planes = ["axial"] if len(scans) > 2 else ["axial", "coronal", "sagittal"]

    from cftools.picture import FORMATS, picture, picture_bytes, save_picture
    from cftools.volume import Volume, make_folder, write_atomic

    if destination is not None:
        endings = FORMATS if html is None else (ENDING,)
        check_files({destination: endings}, scans, force, folders=html is None and _is_folder(output))

    def load(scan: str, index: int | None) -> Volume:
        if scan == "-":
            return Volume.from_bytes(terminal.read_bytes(), index=index)
        return Volume.load(scan, index)

    # Only BEFORE: what is made from one volume of a 4D scan is 3D.
    volumes = [load(scan, volume if place == 0 else None) for place, scan in enumerate(scans)]
    centre = (point[0], point[1], point[2]) if point else None
    if html is not None:
        page = page_of_files(volumes[0], volumes[1:], label or (), centre, radiological, limit)
        write_atomic(html, page.encode(errors="replace"), force=force)
        terminal.result(html)
        return
    figure = picture(
        volumes[0],
        volumes[1:],
        labels=label or (),
        at=centre,
        planes=planes,
        radiological=radiological,
        limit=limit,
    )
    if destination is None:
        terminal.write_bytes(picture_bytes(figure, dpi))
    else:
        make_folder(destination.parent)
        save_picture(figure, destination, dpi, force=force)
        terminal.result(destination)


def _check_page(html: Path, scans: Sequence[str], of_pictures: object) -> None:
    """Raise a UsageError where --html does not go with the rest."""
    if html.suffix != ENDING:
        raise UsageError(f"--html {html}: a page's name ends in {ENDING}")
    if len(scans) < 2:
        raise UsageError("--html: compares a scan with its edits: name one AFTER at least")
    if of_pictures:
        raise UsageError("--output and --plane are for pictures, and --html makes a page: leave them out")


def _destination(scan: str, output: str | None) -> Path | None:
    """Where the picture goes; None for stdout."""
    if output == "-" or (output is None and scan == "-"):
        return None
    path = Path(scan)
    default = path.with_name(path.name.removesuffix(".gz").rpartition(".")[0] + ".png")
    if output is None:
        return default
    return Path(output) / default.name if _is_folder(output) else Path(output)


def _is_folder(output: str | None) -> bool:
    return output is not None and (output.endswith("/") or os.path.isdir(output))


main = Command("cf-view", view)
