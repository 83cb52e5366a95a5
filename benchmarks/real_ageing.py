"""Real scans under the default preset: does every ventricle grow and shrink, and is it the right amount?

    python benchmarks/real_ageing.py $CFTOOLS_DATA --json docs/results/real-ageing.json

Region labels that came with the scans are moved, as fractions of voxels, by the very field that moves the scan.
First, each scan is aged by -30, -10, +10, +30 (within 5-100 years) and its lateral ventricles must follow. Second,
everyone under 40 is aged to the age of the real 60-75-year-olds and the two groups are compared.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from cftools import weights
from cftools.carry import move_fractions
from cftools.cohort import Scan, find_scans
from cftools.condition import Condition
from cftools.field import jacobian
from cftools.methods import FlowMethod
from cftools.prepare import Prepared, prepare
from cftools.preset import load_preset
from cftools.volume import Volume

VENTRICLES = (49, 50, 51, 52)
FLUID = (1, 4, 11, 46, *VENTRICLES)
DEEP_GREY = (23, 30, 31, 32, 36, 37, 38, 39, 47, 48, 55, 56, 57, 58, 59, 60, 71, 72, 73, 75, 76)
CHANGES = (-30, -10, 10, 30)


def regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Masks by structure, labels as in Neuromorphometrics and MUSE."""
    return {
        "lateral_ventricles": np.isin(labels, VENTRICLES),
        "third_ventricle": labels == 4,
        "hippocampi": np.isin(labels, (47, 48)),
        "grey_matter": (labels >= 100) | np.isin(labels, DEEP_GREY),
        "brain": (labels > 0) & ~np.isin(labels, FLUID),
    }


def volumes(masks: dict[str, np.ndarray], voxel: float) -> dict[str, float]:
    """Millilitres by structure."""
    return {name: float(mask.sum(dtype=np.float64)) * voxel / 1000 for name, mask in masks.items()}


def load(scan: Scan) -> tuple[Volume, dict[str, np.ndarray]]:
    """A scan with its brain cut out along its labels, and the structures."""
    volume = Volume.load(scan.path)
    assert scan.brain is not None
    labels = np.rint(Volume.load(scan.brain).array).astype(np.int16)
    return volume.with_array(volume.array * (labels > 0)), regions(labels)


def aged(
    method: FlowMethod,
    prepared: Prepared,
    scan: Scan,
    target: float,
    masks: dict[str, np.ndarray],
    steps: int,
    wanted: tuple[str, ...] = ("lateral_ventricles", "third_ventricle", "hippocampi", "grey_matter", "brain"),
) -> tuple[dict[str, float], float]:
    """Volumes at another age, and the share of folded voxels."""
    source = Condition({"age": scan.age, "sex": scan.sex})
    deformation = method.edit(prepared, source, source.do(age=target), steps=steps)
    moved = {
        name: move_fractions(prepared, deformation.displacement, mask) for name, mask in masks.items() if name in wanted
    }
    folded = float((jacobian(torch.from_numpy(deformation.displacement)[None]) <= 0).float().mean())
    return volumes(moved, prepared.volume.voxel_volume), folded


def interval(young: list[float], old: list[float], seed: int = 0) -> dict[str, float]:
    """Difference of means (aged young minus real old) with a bootstrap 95 % interval, in % of the old mean."""
    random = np.random.default_rng(seed)
    a, b = np.array(young), np.array(old)
    draws = [(random.choice(a, len(a)).mean() / random.choice(b, len(b)).mean() - 1) * 100 for _ in range(5000)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"difference": (a.mean() / b.mean() - 1) * 100, "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="twin-age-2mm")
    parser.add_argument("--steps", type=int, default=load_preset("twin").sampling.steps)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    method = FlowMethod(weights.load(options.weights))
    began = time.monotonic()
    scans = [scan for name in ("oasis", "ixi") for scan in find_scans(options.data / name)]
    old = [scan for scan in scans if 60 <= (scan.age or 0) <= 75]
    mean_old = {sex: float(np.mean([s.age for s in old if s.sex == sex])) for sex in "FM"}
    sweeps, rows, folds = [], [], 0.0
    for scan in scans:
        assert scan.age is not None and scan.sex is not None
        volume, masks = load(scan)
        prepared = prepare(volume)
        own = volumes(masks, volume.voxel_volume)
        sweep = {0: own["lateral_ventricles"]}
        for change in CHANGES:
            if 5 <= scan.age + change <= 100:
                then, folded = aged(
                    method, prepared, scan, scan.age + change, masks, options.steps, ("lateral_ventricles",)
                )
                sweep[change] = then["lateral_ventricles"]
                folds = max(folds, folded)
        ordered = [sweep[key] for key in sorted(sweep)]
        monotone = all(np.diff(ordered) > 0)
        sweeps.append({"subject": scan.subject, "age": scan.age, "ml": sweep, "monotone": monotone})
        print(scan.subject, scan.age, scan.sex, {k: round(v, 1) for k, v in sorted(sweep.items())}, monotone)
        scale = abs(np.linalg.det(prepared.to_mni[:3, :3]))
        if scan in old:
            rows.append({"group": "real", "sex": scan.sex, "scale": scale, **own})
        if scan.age < 40:
            then, _ = aged(method, prepared, scan, mean_old[scan.sex], masks, options.steps)
            rows.append({"group": "young", "sex": scan.sex, "scale": scale, **own})
            rows.append({"group": "aged", "sex": scan.sex, "scale": scale, **then})
    table = []
    for structure in ("lateral_ventricles", "third_ventricle", "hippocampi", "grey_matter", "brain"):
        for sexes in ("FM", "F", "M"):
            for scaled in (False, True):
                groups = {
                    group: [
                        r[structure] * (r["scale"] if scaled else 1)
                        for r in rows
                        if r["group"] == group and r["sex"] in sexes
                    ]
                    for group in ("young", "aged", "real")
                }
                line = {
                    "structure": structure,
                    "sex": sexes,
                    "head_size_normalised": scaled,
                    "n": {k: len(v) for k, v in groups.items()},
                    **{f"{k}_ml": round(float(np.mean(v)), 2) for k, v in groups.items()},
                    **{f"{k}_sd": round(float(np.std(v, ddof=1)), 2) for k, v in groups.items()},
                    **{k: round(v, 1) for k, v in interval(groups["aged"], groups["real"]).items()},
                }
                table.append(line)
                print(
                    f"{structure:20s}{sexes:3s}{'norm' if scaled else 'ml':5s}"
                    f"young {line['young_ml']:8.1f}  aged {line['aged_ml']:8.1f} ({line['aged_sd']:.1f})  "
                    f"real {line['real_ml']:8.1f} ({line['real_sd']:.1f})  "
                    f"{line['difference']:+6.1f} % [{line['low']:+.1f}, {line['high']:+.1f}]"
                )
    count = sum(s["monotone"] for s in sweeps)
    print(f"monotone in {count} of {len(sweeps)}; most folded voxels {folds:.2e}; {time.monotonic() - began:.0f} s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"weights": options.weights, "steps": options.steps, "sweeps": sweeps, "groups": table}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
