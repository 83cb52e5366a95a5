"""What an edit must satisfy whatever it shows: composition, reversal, a null edit, sharpness, background, grid.

    python benchmarks/consistency.py SCAN... --json docs/results/consistency.json

Scans are brain-only T1w; ages come from participants.tsv. Errors are mean absolute differences inside the brain over
the mean absolute change that the edit itself makes: 0 is perfect, 1 is as large as the edit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from cftools import weights
from cftools.carry import carry_field
from cftools.cohort import known_of
from cftools.condition import Condition
from cftools.methods import FlowMethod
from cftools.prepare import Prepared, prepare
from cftools.volume import Volume


def edit(method: FlowMethod, prepared: Prepared, source: Condition, years: float, steps: int = 1) -> Volume:
    """The scan so many years on, on its own grid."""
    target = source.do(age=float(str(source["age"])) + years)
    deformation = method.edit(prepared, source, target, steps)
    carried = carry_field(prepared, deformation.displacement, deformation.residual)
    return prepared.volume.with_array(carried)


def sharpness(volume: Volume, mask: np.ndarray) -> float:
    """Mean squared Laplacian inside the brain: what blurring takes away first."""
    inner = ndimage.binary_erosion(mask, iterations=3)
    return float((ndimage.laplace(volume.array)[inner] ** 2).mean())


def measure(method: FlowMethod, path: Path, steps: int) -> dict[str, float]:
    """All figures for one scan."""
    scan = Volume.load(path)
    here = known_of(path, method.variables)
    age = float(str(here["age"]))
    sign = 1 if age + 30 <= 100 else -1
    prepared = prepare(scan)
    mask = prepared.mask
    once = edit(method, prepared, here, 30 * sign, steps)
    half = edit(method, prepared, here, 15 * sign, steps)
    twice = edit(method, prepare(half), here.do(age=age + 15 * sign), 15 * sign, steps)
    back = edit(method, prepare(once), here.do(age=age + 30 * sign), -30 * sign, steps)
    null = edit(method, prepared, here, 0, steps)
    change = np.abs(once.array - scan.array)[mask].mean()
    outside = ~mask
    return {
        "age": age,
        "null_edit_largest_difference": float(np.abs(null.array - scan.array).max()),
        "reversal": float(np.abs(back.array - scan.array)[mask].mean() / change),
        "composition": float(np.abs(twice.array - once.array)[mask].mean() / change),
        "sharpness_ratio": sharpness(once, mask) / sharpness(scan, mask),
        "outside_largest_difference": float(np.abs(once.array - scan.array)[outside].max()),
        "same_header": float(once.header == scan.header and np.array_equal(once.affine, scan.affine)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--weights", default="twin-age-2mm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    method = FlowMethod(weights.load(options.weights))
    results: dict[str, dict[str, dict[str, float]]] = {}
    for steps in (1, 2, 6):
        rows = {path.name: measure(method, path, steps) for path in options.scans}
        results[f"{steps} steps"] = rows
        for key in next(iter(rows.values())):
            values = [row[key] for row in rows.values()]
            print(f"{steps} steps  {key:32s} median {np.median(values):8.3f}  worst {max(values):8.3f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
