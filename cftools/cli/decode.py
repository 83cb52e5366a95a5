"""cf-decode: from a latent to an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cftools.cli import latents, options, terminal
from cftools.cli.app import Command
from cftools.cli.jobs import IMAGE_ENDINGS, check_files, is_folder
from cftools.errors import UsageError


def decode(
    latent: latents.LatentIn,
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="An image, or - for stdout; a folder for several edits."),
    ],
    onto: Annotated[
        Path | None,
        typer.Option(metavar="SCAN", help="The scan it was encoded from: the edit comes back on its grid."),
    ] = None,
    carry: options.Carry = None,
    region: options.Region = None,
    mask: options.Mask = None,
    stripped: options.Stripped = False,
    volume: options.VolumeIndex = None,
    force: options.Force = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    strict: options.Strict = False,
) -> None:
    """Turn what was resampled into an image.

    Without --onto it stays on the model's grid, in MNI152 space. A head is told its --mask or --prepared again.

    Example:
        cf-decode --onto in.nii.gz edits.safetensors out.nii.gz
        cf-resample --age +10,+30 noise.safetensors - | cf-decode --onto in.nii.gz - out/
    """
    from cftools.cohort import described
    from cftools.described import save_described
    from cftools.piping import decode, provenance
    from cftools.volume import Volume, make_folder

    given = latents.read(latent)
    given.check_kind("edited")
    targets = given.facts.targets
    if output == "-":
        if len(targets) > 1:
            raise UsageError(f"- is stdout, and the latent holds {len(targets)} edits: name a folder")
        terminal.write_bytes(b"")  # refuses a terminal now rather than after the work
        paths: list[Path | None] = [None]
    elif is_folder(output, len(targets) > 1):
        scan_name = onto or Path("decoded.nii.gz")
        paths = [Path(output) / described(scan_name, target.entity or "factual") for target in targets]
    else:
        paths = [Path(output)]
    named = [path for path in paths if path]
    new = named != [Path(output)]
    check_files(dict.fromkeys(named, IMAGE_ENDINGS), [latent, onto, region, mask], force, folders=new)
    options.check_mask(mask, stripped)
    if onto is None and volume is not None:
        raise UsageError("--volume says which one of --onto, and there is none")
    scan = Volume.load(onto, volume) if onto else None
    where, brain = (Volume.load(path) if path else None for path in (region, mask))
    made = decode(given, lambda: options.choose_device(device), scan, carry, where, brain, stripped)
    for path, (target, image) in zip(paths, made, strict=True):
        if path is None:
            terminal.write_bytes(image.to_bytes())
            continue
        make_folder(path.parent)
        record = provenance(given, target, latents.command(), carry, onto is not None)
        save_described(image, record, path, force)
        terminal.result(path)


main = Command("cf-decode", decode)
