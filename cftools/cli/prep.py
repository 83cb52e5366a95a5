"""cf-prep: a scan on a model's grid, with the way there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cftools.cli import latents, options, terminal
from cftools.cli.app import Command
from cftools.cli.jobs import IMAGE_ENDINGS, check_files


def prep(
    scan: Annotated[str, typer.Argument(metavar="SCAN", help="A T1w scan, whole head or brain alone; - is stdin.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The image on the grid; - is stdout.")],
    transform: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel="Output",
            help="Also write the affine, as an ITK .txt that takes MNI152 points to the scan's.",
        ),
    ] = None,
    save_mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel="Output", help="Also write the brain mask, on the scan's own grid."
        ),
    ] = None,
    mask: options.Mask = None,
    stripped: options.Stripped = False,
    volume: options.VolumeIndex = None,
    force: options.Force = False,
    threads: options.Threads = None,
    strict: options.Strict = False,
) -> None:
    """Bring a scan to the grid that the models work on, as cf-edit does before anything else.

    In a whole head the brain is found and its bias field corrected (N4). Then: registered to MNI152, resampled to
    2 mm, 0 outside the brain and 1 at its 99.5th percentile.

    Example:
        cf-prep sub-01_T1w.nii.gz grid.nii.gz --transform to_mni.txt --save-mask brain.nii.gz
        antsApplyTransforms -d 3 -i sub-01_T1w.nii.gz -r grid.nii.gz -t to_mni.txt -o same_place.nii.gz
    """
    import numpy as np

    from cftools.described import save_described
    from cftools.heads import Preparer
    from cftools.prepare import GRID_2MM, itk_transform
    from cftools.provenance import Provenance, source_name
    from cftools.volume import Volume, write_atomic

    outputs = {path: IMAGE_ENDINGS for path in (Path(output) if output != "-" else None, save_mask) if path}
    check_files(outputs | ({transform: (".txt",)} if transform else {}), [scan, mask], force)
    options.check_mask(mask, stripped)
    if output == "-":
        terminal.write_bytes(b"")  # refuses a terminal now rather than after the work
    image = Volume.from_bytes(terminal.read_bytes(), index=volume) if scan == "-" else Volume.load(Path(scan), volume)
    preparer = Preparer(GRID_2MM, lambda: "cpu", stripped)
    prepared = preparer(image, Volume.load(mask) if mask else None)
    if transform is not None:
        write_atomic(transform, itk_transform(prepared.to_mni).encode(), force=force)
    if save_mask is not None:
        image.with_array(prepared.mask.astype(np.float32)).save(save_mask, force=force)
    made = Volume.from_array(prepared.image, prepared.grid.affine)
    if output == "-":
        terminal.write_bytes(made.to_bytes())
        return
    details = {
        "grid": prepared.grid.name,
        "to_mni": prepared.to_mni.tolist(),
        "offset": prepared.offset,
        "scale": prepared.scale,
        "similarity": round(prepared.similarity, 4),
        **({"brain": prepared.found_by} if prepared.found_by else {}),
    }
    provenance = Provenance(
        command=latents.command(),
        sources=(source_name(image.path or "stdin"),),
        skull_stripped=True,
        weights=preparer.weights_of(prepared),
        spatial_reference="MNI152NLin2009aSym",
        details=details,
    )
    save_described(made, provenance, Path(output), force)
    for path in (Path(output), transform, save_mask):
        if path is not None:
            terminal.result(path)


main = Command("cf-prep", prep)
