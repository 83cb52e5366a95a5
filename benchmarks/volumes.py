"""How well --volumes measures: structures of simulated subjects against the truth, and of OASIS scans against labels.

    cf-phantom twins -n 10 --seed 4242 --twin age=+30,-30
    python benchmarks/volumes.py twins $CFTOOLS_DATA --json docs/results/volumes.json

The error of one image is |measured / true - 1|; means with a 95 % bootstrap over subjects, and the mean of
measured / true - 1, which tells whether it is all on one side.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from real_ageing import DEEP_GREY, FLUID

from cftools import weights
from cftools.cohort import find_scans
from cftools.prepare import prepare
from cftools.volume import Volume
from cftools.volumes import TISSUES, VOLUMES, TissueReader

#: Labels of Neuromorphometrics: both lateral ventricles with their inferior horns and the third; and white matter, with
#: that of the cerebellum and the brain stem.
VENTRICLES, WHITE = (4, 49, 50, 51, 52), (35, 40, 41, 44, 45)

#: Subject, image, and millilitres by the names of VOLUMES.
Known = tuple[str, Path, Mapping[str, float]]


def simulated(folder: Path) -> Iterator[Known]:
    """Every image of a cohort that cf-phantom made, and its true volumes."""
    truth = folder / "derivatives" / "truth"
    with (truth / "volumes.tsv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            name, desc = row["participant_id"], row["desc"]
            file = f"{name}_T1w.nii.gz" if desc == "n/a" else f"{name}_desc-{desc}_T1w.nii.gz"
            image = (folder if desc == "n/a" else truth) / name / "anat" / file
            yield name, image, {one: sum(float(row[part]) for part in parts) for one, parts in VOLUMES.items()}


def labelled(folder: Path) -> Iterator[Known]:
    """Real scans and what their labels fill: partial voxels count as whole ones."""
    for scan in find_scans(folder):
        assert scan.brain is not None
        file = Volume.load(scan.brain)
        labels = np.rint(file.array).astype(np.int16)
        masks = {
            "brain": (labels > 0) & ~np.isin(labels, FLUID),
            "ventricles": np.isin(labels, VENTRICLES),
            "hippocampi": np.isin(labels, (47, 48)),
            "grey": (labels >= 100) | np.isin(labels, DEEP_GREY),
            "white": np.isin(labels, WHITE),
        }
        yield (
            scan.subject,
            scan.path,
            {one: float(mask.sum()) * file.voxel_volume / 1000 for one, mask in masks.items()},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("twins", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default=TISSUES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    reader = TissueReader(weights.load(options.weights))
    table = []
    for name, images in {"simulated": simulated(options.twins), "oasis": labelled(options.data / "oasis")}.items():
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for subject, path, known in images:
            said = reader.volumes(prepare(Volume.load(path)))
            for structure, true in known.items():
                found[structure][subject].append(said[structure] / true - 1)
            print(path.name, *(f"{one} {said[one]:.1f} ({true:.1f})" for one, true in known.items()), flush=True)
        for structure, subjects in found.items():
            off = [np.array(one) for one in subjects.values()]
            error, bias = (np.array([values(one).mean() for one in off]) for values in (np.abs, np.asarray))
            draws = np.random.default_rng(0).choice(error, (2000, len(error))).mean(1)
            low, high = np.percentile(draws, [2.5, 97.5])
            line = {
                "scans": name,
                "structure": structure,
                "images": sum(map(len, off)),
                "n": len(off),
                "error": round(float(error.mean()), 4),
                "low": round(float(low), 4),
                "high": round(float(high), 4),
                "bias": round(float(bias.mean()), 4),
            }
            table.append(line)
            print(line)
    if options.json:
        options.json.write_text(json.dumps({"weights": options.weights, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
