"""Whole heads, aged by twenty years with one command: what changes, what does not, and does every ventricle grow?

    python benchmarks/raw_heads.py $CFTOOLS_DATA --json docs/results/raw-heads.json --pictures runs/heads

Runs `cf-edit --age +20 $CFTOOLS_DATA/ixi`, then compares every output with its scan: grid, voxels outside the brain,
and the fluid in the lateral ventricles: voxels darker than half way to the white matter around, in their labels grown
by 4 mm. The picture shows the outline of MNI152's brain over every head brought onto it. Ten minutes on a core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from cftools import weights
from cftools.cohort import Scan, find_scans
from cftools.heads import BRAINMASK, BrainFinder
from cftools.prepare import GRID_2MM, resample
from cftools.register import template
from cftools.volume import Volume

VENTRICLES = (49, 50, 51, 52)
CEREBRAL_WHITE = (81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95)


def fluid_ml(image: np.ndarray, near: np.ndarray, threshold: float, voxel: float) -> float:
    """How much fluid there is near the ventricles, ml."""
    return float((near & (image < threshold)).sum()) * voxel / 1000


def compare(scan: Scan, edited: Volume, finder: BrainFinder) -> dict[str, object]:
    """One edit against its scan."""
    assert scan.brain is not None
    volume, labels = Volume.load(scan.path), np.rint(Volume.load(scan.brain).array)
    mask = finder.find(volume)
    core = np.isin(labels, VENTRICLES)
    near = ndimage.distance_transform_edt(~core, sampling=volume.voxel_sizes) <= 4
    threshold = (np.median(volume.array[core]) + np.median(volume.array[np.isin(labels, CEREBRAL_WHITE)])) / 2
    before, after = (
        fluid_ml(array, near, float(threshold), volume.voxel_volume) for array in (volume.array, edited.array)
    )
    header = volume.header
    same_grid = (
        edited.array.shape == volume.array.shape
        and np.array_equal(edited.affine, volume.affine)
        and edited.header["sform_code"] == header["sform_code"]
        and edited.header["qform_code"] == header["qform_code"]
    )
    return {
        "subject": scan.subject,
        "age": scan.age,
        "same_grid": bool(same_grid),
        "changed_outside": int((edited.array != volume.array)[~mask].sum()),
        "changed_inside": round(float((edited.array != volume.array)[mask].mean()), 3),
        "ventricles_ml": round(before, 2),
        "aged_ml": round(after, 2),
    }


def on_template(scans: list[Scan], finder: BrainFinder, path: Path) -> None:
    """The outline of the template's brain over every head brought onto it."""
    import matplotlib.pyplot as plt

    from cftools.prepare import Brain, prepare

    outline = resample((template().array > 0).astype(np.float32), template().affine, GRID_2MM)
    figure, axes = plt.subplots(-(-len(scans) // 5), 15, figsize=(30, 2.3 * -(-len(scans) // 5)))
    for axis in axes.flat:
        axis.axis("off")
    for index, scan in enumerate(scans):
        volume = Volume.load(scan.path)
        prepared = prepare(volume, brain=Brain(finder.find(volume), BRAINMASK))
        head = resample(volume.array, prepared.to_mni @ volume.affine, GRID_2MM)
        for plane in range(3):
            axis = axes[index // 5, 3 * (index % 5) + plane]
            middle = tuple(n // 2 if a == plane else slice(None) for a, n in enumerate(GRID_2MM.shape))
            axis.imshow(head[middle].T, cmap="gray", origin="lower", vmax=np.percentile(head, 99.5))
            axis.contour(outline[middle].T, [0.5], colors="red", linewidths=0.8)
        axes[index // 5, 3 * (index % 5)].set_title(f"{scan.subject} {prepared.similarity:.2f}", fontsize=8)
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="keep the edits here; those that are there are taken")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    scans = find_scans(options.data / "ixi")
    finder = BrainFinder(weights.load(BRAINMASK, expect="segmenter"))
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        command = [str(Path(sys.executable).with_name("cf-edit")), "--age", "+20", "--threads", "1", "--skip-existing"]
        subprocess.run([*command, str(options.data / "ixi"), f"{out}/"], check=True)
        rows = []
        for scan in scans:
            name = f"{scan.subject}_desc-agePlus20_T1w"
            edited = Volume.load(out / scan.subject / "anat" / f"{name}.nii.gz")
            details = json.loads((out / scan.subject / "anat" / f"{name}.json").read_text())["cftools"]["details"]
            rows.append({**compare(scan, edited, finder), "similarity": details["registration"]["similarity"]})
            print(*rows[-1].values(), flush=True)
    grown = [float(str(row["aged_ml"])) > float(str(row["ventricles_ml"])) for row in rows]
    facts = {
        "heads": len(rows),
        "on their own grid": sum(bool(row["same_grid"]) for row in rows),
        "unchanged outside the brain": sum(row["changed_outside"] == 0 for row in rows),
        "ventricles larger": sum(grown),
        "least similarity": min(float(str(row["similarity"])) for row in rows),
    }
    print(facts)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        on_template(scans, finder, options.pictures / "registered.png")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "scans": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
