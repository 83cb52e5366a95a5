"""The brain mask against the labels of 35 real heads, no head judged by weights that saw it.

    python benchmarks/brainmask.py $CFTOOLS_DATA --runs runs/brainmask --json docs/results/brainmask.json

A base is trained on simulated heads, then fine-tuned on two thirds of the heads, three times, and the other third is
judged: 40 minutes on a core. A run that is there is taken, one that was stopped goes on. Truth is the union of a head's
labels, closed and filled. Every third head is also judged as other scanners would have stored it: finer, in thick
slices, turned in the scanner; and simulated heads in other contrasts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cftools import weights
from cftools.cohort import Scan, find_scans
from cftools.heads import BrainFinder, whole
from cftools.phantom.anatomy import template_anatomy
from cftools.phantom.contrast import CONTRASTS
from cftools.phantom.head import grown, with_margin
from cftools.phantom.law import load_law
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM
from cftools.volume import Volume

FOLDS = 3
TURNS = 3  # every so many heads are also judged as other scanners would have stored them
MS = "anatomies of two patients with MS (Lesjak et al. 2018, CC BY)"
IXI = "35 IXI scans with their heads (brain-development.org, CC BY-SA 3.0)"
TUNING = ("training.steps=1600", "training.learning_rate=1.5e-3", "data.cohort=12", "data.real=0.8")


def trained(out: Path, *words: str) -> Path:
    """The weights of a run, made or finished now if they are not there."""
    made = out / "weights.safetensors"
    if not made.exists():
        command = [str(Path(sys.executable).with_name("cf-train")), "--preset", "brainmask", "--threads", "1"]
        command += ["--workers", "0", "--licence", "CC-BY-SA-3.0", "--out", str(out), *words]
        subprocess.run(command, check=True)
    return made


def fold(data: Path, runs: Path, number: int, scans: list[Scan]) -> Path:
    """Weights that saw all scans but those of one fold."""
    base = trained(runs / "base", "--data", str(data / "ms"), "--source", MS)
    seen = ",".join(scan.subject.removeprefix("sub-") for i, scan in enumerate(scans) if i % FOLDS != number)
    settings = [word for setting in TUNING for word in ("--set", setting)]
    words = ["--init", str(base), "--real", str(data / "ixi"), "--real-label", seen, "--source", IXI, *settings]
    return trained(runs / f"fold-{number + 1}", *words)


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return 2 * float((found & truth).sum()) / max(float(found.sum() + truth.sum()), 1.0)


def resampled(
    volume: Volume, truth: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]
) -> tuple[Volume, np.ndarray]:
    """A scan and its truth on another grid, linear; finer axes are averaged first."""
    index_of = np.linalg.inv(volume.affine) @ affine
    widths = 0.42 * np.sqrt(np.maximum(np.linalg.norm(index_of[:3, :3], axis=1) ** 2 - 1, 0))
    image, mask = (
        ndimage.affine_transform(
            ndimage.gaussian_filter(values, widths), index_of[:3, :3], index_of[:3, 3], shape, order=1
        )
        for values in (volume.array, truth.astype(np.float32))
    )
    return Volume.from_array(image, affine), mask > 0.5


def variants(volume: Volume, truth: np.ndarray) -> dict[str, tuple[Volume, np.ndarray]]:
    """The scan as other scanners would have stored it."""
    size = np.array(volume.array.shape)
    half, thick, turn = np.eye(4), np.eye(4), np.eye(4)
    half[:3] *= 0.5
    half[:3, 3] = -0.25
    axial = int(np.abs(volume.affine[2, :3]).argmax())
    thick[axial, axial] = 5 / volume.voxel_sizes[axial]
    slices = [int(n / 2.5) if axis == axial else int(n) for axis, n in enumerate(size)]
    turn[:3, :3] = Rotation.from_euler("xyz", (20, -8, 12), degrees=True).as_matrix()
    middle = volume.affine @ [*(size / 2), 1]
    turn[:3, 3] = middle[:3] - turn[:3, :3] @ middle[:3]
    return {
        "as it is": (volume, truth),
        "1 mm": resampled(volume, truth, volume.affine @ half, tuple(2 * size)),
        "5 mm slices": resampled(volume, truth, volume.affine @ thick, tuple(slices)),
        "oblique": resampled(volume, truth, turn @ volume.affine, tuple(size)),
        "tilted head": (Volume.from_array(volume.array, turn @ volume.affine), truth),
    }


def simulated(finder: BrainFinder, count: int) -> dict[str, list[float]]:
    """Dice of simulated heads that no training saw, by contrast."""
    family, grid = Family([template_anatomy()], load_law("altered")), with_margin(GRID_2MM)
    found: dict[str, list[float]] = {contrast: [] for contrast in CONTRASTS}
    for index in range(count):
        subject = family.draw(4242, index)
        aged = subject.at(20.0 + 60 * index / count)
        truth = whole(grown(aged.brain()[None, None].float())[0, 0].numpy() > 0.5)
        for contrast, scores in found.items():
            image = subject.head.around(aged.image(contrast), subject.cranium, subject.scanned(contrast))
            # As large as people are, not as the average of MNI152 is.
            volume = Volume.from_array(image[0, 0].numpy(), np.diag([0.9, 0.9, 0.9, 1.0]) @ grid.affine)
            scores.append(dice(finder.find(volume), truth))
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Mean with its bootstrap 95 % interval, and the worst."""
    draws = np.random.default_rng(0).choice(values, (5000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    facts = {"n": len(values), "mean": np.mean(values), "low": low, "high": high, "worst": min(values)}
    return {name: round(float(value), 4) for name, value in facts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/brainmask"))
    parser.add_argument("--simulated", type=int, default=6, help="heads a contrast")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    scans = find_scans(options.data / "ixi")
    scores: dict[str, list[float]] = {}
    rows = []
    for number in range(FOLDS):
        finder = BrainFinder(weights.load(fold(options.data, options.runs, number, scans), expect="segmenter"))
        for scan in scans[number::FOLDS]:
            assert scan.brain is not None
            volume, labels = Volume.load(scan.path), Volume.load(scan.brain)
            volume.check_same_grid(labels)
            row = {}
            truth = whole(labels.array > 0)
            seen = variants(volume, truth) if len(rows) % TURNS == 0 else {"as it is": (volume, truth)}
            for name, (image, truth) in seen.items():
                row[name] = dice(finder.find(image), truth)
                scores.setdefault(name, []).append(row[name])
            rows.append({"subject": scan.subject, "fold": number + 1, **{k: round(v, 4) for k, v in row.items()}})
            print(scan.subject, *(f"{name} {value:.4f}" for name, value in row.items()), flush=True)
        if number == 0:
            scores |= {f"simulated {name}": found for name, found in simulated(finder, options.simulated).items()}
    facts = {name: summary(values) for name, values in scores.items()}
    for name, line in facts.items():
        print(f"{name:18s} n {line['n']:3.0f}  mean {line['mean']:.4f}  worst {line['worst']:.4f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        tuning = {"folds": FOLDS, "base": MS, "tuning": list(TUNING)}
        options.json.write_text(json.dumps({**tuning, "dice": facts, "heads": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
