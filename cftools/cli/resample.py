"""cf-resample: from noise to a latent under another condition."""

from __future__ import annotations

from typing import Annotated

import typer

from cftools.cli import latents, options
from cftools.cli.app import Command


def resample(
    latent: latents.LatentIn,
    output: latents.LatentOut,
    age: Annotated[
        list[str] | None,
        typer.Option(metavar="YEARS", help="The age to give: 79, or +30, -10 from the scan's own."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="The same for any variable that the weights know."),
    ] = None,
    clip: options.Clip = False,
    guidance: options.Guidance = None,
    weights: latents.Weights = None,
    force: options.Force = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    strict: options.Strict = False,
) -> None:
    """Sample from a scan's noise under another condition.

    Beside the edits lies the factual: the same noise under the scan's own condition.

    Example:
        cf-resample --age +30 noise.safetensors edits.safetensors
        cf-invert latent.safetensors - | cf-resample --age -10,+30 - edits.safetensors
    """

    from cftools.piping import model_of, plan_of, targets_of
    from cftools.planning import parse_sweep

    latents.check_output(output, latent, force)
    sweep = parse_sweep(age or [], set_ or [])
    given = latents.read(latent)
    given.check_kind("state")
    plan = plan_of(given, weights, clip, guidance=guidance, dtype=dtype)
    targets = targets_of(plan, given, sweep)
    model = model_of(plan, lambda: options.choose_device(device))
    latents.write(model.resample(given, targets, command=latents.command()), output, force)


main = Command("cf-resample", resample)
