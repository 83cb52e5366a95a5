"""What runs in processes of its own, to be killed or to race with another: `python writers.py forever|race ...`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from bad_latents import sound_state
from bad_nifti import AFFINE

from cftools.described import save_described
from cftools.errors import OutputError
from cftools.provenance import Provenance
from cftools.volume import Volume

NOISE = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)  # 128 KiB, which gzip cannot pack
ROUNDS = 60


def made_by(command: str) -> Provenance:
    """The provenance of an image, with a command to tell it by."""
    return Provenance(command=command, sources=(), skull_stripped=True)


def write_for_ever(folder: Path) -> None:
    """Write images with sidecars and latents over each other, until killed."""
    latent, number = sound_state(), 0
    while True:
        number += 1
        made = Volume.from_array(NOISE[: 8 + number % 3], AFFINE)
        save_described(made, made_by(f"cf-edit {number}"), folder / f"{number % 4}.nii.gz", force=True)
        latent.save(folder / f"{number % 2}.safetensors", force=True)


def race(folder: Path, value: float) -> list[int]:
    """Write the same names as another process, in step with it; the numbers of those that were written."""
    made = Volume.from_array(NOISE[:16, :16, :16] * 0 + np.arange(16) * value, AFFINE)
    won = []
    for number in range(ROUNDS):
        time.sleep(0.01 - time.time() % 0.01)  # both start a round together
        try:
            save_described(made, made_by(f"cf-edit {value:g}"), folder / f"{number}.nii.gz")
            won.append(number)
        except OutputError as error:
            assert "exists already" in str(error)
    return won


if __name__ == "__main__":
    if sys.argv[1] == "forever":
        print("ready", flush=True)
        write_for_ever(Path(sys.argv[2]))
    print(*race(Path(sys.argv[2]), float(sys.argv[3])))
