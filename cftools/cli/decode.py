"""cf-decode: from a latent to an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cftools.cli import latents, options, terminal
from cftools.cli.app import Command
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
    volume: options.VolumeIndex = None,
    force: options.Force = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    strict: options.Strict = False,
) -> None:
    """Turn what was resampled into an image.

    Without --onto it stays on the model's grid, in MNI152 space.

    Example:
        cf-decode --onto in.nii.gz edits.safetensors out.nii.gz
        cf-resample --age +10,+30 noise.safetensors - | cf-decode --onto in.nii.gz - out/
    """
    from cftools.cohort import described
    from cftools.editing import save_described
    from cftools.piping import decode, provenance
    from cftools.volume import Volume

    given = latents.read(latent)
    given.check_kind("edited")
    several = len(given.facts.targets) > 1
    if several and (output == "-" or Path(output).suffix in (".nii", ".gz")):
        raise UsageError(f"{output}: the latent holds {len(given.facts.targets)} edits: name a folder")
    scan = Volume.load(onto, volume) if onto else None
    where = Volume.load(region) if region else None
    for target, image in decode(given, lambda: options.choose_device(device), scan, carry, where):
        if output == "-":
            terminal.write_bytes(image.to_bytes())
            continue
        path = Path(output)
        if path.suffix not in (".nii", ".gz"):
            path.mkdir(parents=True, exist_ok=True)
            path /= described(onto or Path("decoded.nii.gz"), target.entity or "factual")
        save_described(image, provenance(given, target, latents.command(), carry), path, force)
        terminal.result(path)


main = Command("cf-decode", decode)
