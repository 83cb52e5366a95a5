"""cf-encode: a scan as the latent of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cftools.cli import latents, options, terminal
from cftools.cli.app import Command


def encode(
    scan: Annotated[str, typer.Argument(metavar="SCAN", help="A scan, whole head or brain alone; - is stdin.")],
    output: latents.LatentOut,
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
    force: options.Force = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    strict: options.Strict = False,
) -> None:
    """Turn a scan into the latent that a diffusion model works on.

    The latent holds the scan's way to the model's grid, so that cf-decode can bring an edit back onto it.

    Example:
        cf-encode --preset ldm --from age=20,sex=F in.nii.gz latent.safetensors
        cf-encode in.nii.gz - | cf-invert - - | cf-resample --age +30 - - | cf-decode --onto in.nii.gz - out.nii.gz
    """
    from pathlib import Path

    from cftools.cohort import known_of
    from cftools.condition import Condition, parse_condition
    from cftools.piping import encode, pipe_plan
    from cftools.preset import load_preset
    from cftools.provenance import source_name
    from cftools.volume import Volume

    latents.check_output(output, scan, force)
    options.check_mask(mask, stripped)
    told = parse_condition(from_ or [])
    chosen = pipe_plan(load_preset(preset), weights, told, clip)
    known = Condition(dict.fromkeys(chosen.facts.variables))
    if scan == "-":
        image = Volume.from_bytes(terminal.read_bytes(), index=volume)
    else:
        image = Volume.load(Path(scan), volume)
        if told.keys() != known.keys():
            known = known_of(Path(scan), chosen.facts.variables)
    latent = encode(
        chosen,
        lambda: options.choose_device(device),
        image,
        known.do(**told),
        seed,
        source_name(image.path or "stdin"),
        latents.command(),
        Volume.load(mask) if mask else None,
        stripped,
    )
    latents.write(latent, output, force)


main = Command("cf-encode", encode)
