"""The brain mask against the labels of 35 real heads, no head judged by weights that saw it.

    python benchmarks/brainmask.py $CFTOOLS_DATA --runs runs/brainmask --json docs/results/brainmask.json

A base is trained on simulated heads, then fine-tuned on two thirds of the heads, three times, and the other third is
judged: four minutes a training on an H100, about five hours in all on a core. A run that is there is taken, one that
was stopped goes on; judging takes five minutes. Truth is the union of a head's labels, closed and filled. Every third
head is also judged as other scanners would have stored it: finer, in thick slices, turned in the scanner; and simulated
heads in other contrasts. The picture shows every head with the outline of its labels and of what was found.
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
from cftools.prepare import GRID_2MM, canonical
from cftools.volume import Volume

Case = tuple[str, Volume, np.ndarray, np.ndarray]  # a title, a head, where its brain is and where it was found

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


def errors(found: np.ndarray, truth: np.ndarray, volume: Volume) -> dict[str, float]:
    """What is missed and what is too much, ml, and how far from the truth the worst of each lies, mm."""
    missed, extra, sizes = truth & ~found, found & ~truth, volume.voxel_sizes
    millilitres = volume.voxel_volume / 1000
    facts = {"missed_ml": missed.sum() * millilitres, "extra_ml": extra.sum() * millilitres}
    if found.any():
        facts["missed_mm"] = ndimage.distance_transform_edt(~found, sampling=sizes)[truth].max()
    facts["extra_mm"] = ndimage.distance_transform_edt(~truth, sampling=sizes).max(where=found, initial=0.0)
    return {name: round(float(value), 1) for name, value in facts.items()}


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


def judge(scan: Scan, finder: BrainFinder, others: bool) -> tuple[dict[str, float], dict[str, float], Case]:
    """Dice of a head, with others also as other scanners would have stored it; what to note of it; and its picture."""
    assert scan.brain is not None
    volume, labels = Volume.load(scan.path), Volume.load(scan.brain)
    volume.check_same_grid(labels)
    truth = whole(labels.array > 0)
    found = finder.find(volume)
    scores = {"as it is": dice(found, truth)}
    if others:
        scores |= {name: dice(finder.find(image), brain) for name, (image, brain) in variants(volume, truth).items()}
    facts = {**{name: round(value, 4) for name, value in scores.items()}, **errors(found, truth, volume)}
    return scores, facts, (f"{scan.subject} {scores['as it is']:.3f}", volume, truth, found)


def draw(cases: list[Case], path: Path) -> None:
    """Heads in three planes through the brain's middle, with the outlines of its truth (green) and its mask (red)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(-(-len(cases) // 5), 15, figsize=(30, 2.3 * -(-len(cases) // 5)))
    for axis in axes.flat:
        axis.axis("off")
    for index, (title, volume, truth, found) in enumerate(cases):
        head, affine, _ = canonical(volume)
        outlines = [canonical(volume.with_array(mask.astype(np.float32)))[0] for mask in (truth, found)]
        middle = np.rint(ndimage.center_of_mass(outlines[0])).astype(int)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        for plane in range(3):
            axis = axes[index // 5, 3 * (index % 5) + plane]
            cut = tuple(middle[a] if a == plane else slice(None) for a in range(3))
            across, up = (size for a, size in enumerate(sizes) if a != plane)
            axis.imshow(head[cut].T, cmap="gray", origin="lower", vmax=np.percentile(head, 99.5), aspect=up / across)
            for outline, colour in zip(outlines, ("lime", "red"), strict=True):
                axis.contour(outline[cut].T, [0.5], colors=colour, linewidths=0.8)
        axes[index // 5, 3 * (index % 5)].set_title(title, fontsize=8)
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=60)


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
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    scans = find_scans(options.data / "ixi")
    scores: dict[str, list[float]] = {}
    rows: list[dict[str, object]] = []
    cases: list[Case] = []
    steps = []
    for number in range(FOLDS):
        checkpoint = weights.load(fold(options.data, options.runs, number, scans), expect="segmenter")
        steps.append(checkpoint.facts.training.steps)
        finder = BrainFinder(checkpoint)
        for scan in scans[number::FOLDS]:
            found, facts, case = judge(scan, finder, others=len(rows) % TURNS == 0)
            for name, value in found.items():
                scores.setdefault(name, []).append(value)
            rows.append({"subject": scan.subject, "fold": number + 1, **facts})
            cases.append(case)
            print(*rows[-1].values(), flush=True)
        if number == 0:
            scores |= {f"simulated {name}": found for name, found in simulated(finder, options.simulated).items()}
    table = {name: summary(values) for name, values in scores.items()}
    for name, line in table.items():
        print(f"{name:18s} n {line['n']:3.0f}  mean {line['mean']:.4f}  worst {line['worst']:.4f}")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        draw(cases, options.pictures / "masks.png")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        tuning = {"folds": FOLDS, "base": MS, "tuning": list(TUNING), "steps of the folds": steps}
        options.json.write_text(json.dumps({**tuning, "dice": table, "heads": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
