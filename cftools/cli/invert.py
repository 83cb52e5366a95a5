"""cf-invert: a latent to the noise it could have come from."""

from __future__ import annotations

from typing import Annotated

import typer

from cftools.cli import latents, options
from cftools.cli.app import Command


def invert(
    latent: latents.LatentIn,
    output: latents.LatentOut,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Moves instead of the preset's.")] = None,
    start_time: Annotated[
        float | None, typer.Option(metavar="T", help="How far up, above 0 and at most 1, which is all noise.")
    ] = None,
    weights: latents.Weights = None,
    force: options.Force = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    strict: options.Strict = False,
) -> int:
    """Bring an encoded scan to the noise that sampling starts from.

    By the preset's way: inverted, noised, or recorded; all under the condition that the scan is said to have.

    Example:
        cf-invert latent.safetensors noise.safetensors
        cf-encode in.nii.gz - | cf-invert - noise.safetensors
    """
    from cftools.cli.batch import for_each
    from cftools.latent import Latent
    from cftools.piping import model_of, plan_of

    latents.check_output(output, latent, force)
    given = latents.read(latent)
    given.check_kind("encoded")
    plan = plan_of(given, weights, steps=steps, start_time=start_time, dtype=dtype)
    model = model_of(plan, lambda: options.choose_device(device))

    def work(given: Latent) -> None:
        latents.write(model.invert(given, latents.command()), output, force)

    return for_each([given], work, name=lambda latent: latent.name)


main = Command("cf-invert", invert)
