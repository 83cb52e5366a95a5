"""Edits by a diffusion preset in bfloat16 beside the same in float32: what they cost, and by how much they differ.

    python benchmarks/precision.py [--preset ldm] [-n 4] [--threads 1] [--json docs/results/precision.json]

Simulated people whom no weights saw are made thirty years older, by cf-edit, each people in one process. Seconds are
wall time, imports and all; what differs is root mean square in the brain, over what the edit changes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput import run

from cftools.cohort import find_scans
from cftools.diffusion.denoiser import computes_bfloat16
from cftools.volume import Volume

DTYPES = ("float32", "bfloat16")


def differs(first: Path, second: Path, cohort: Path) -> float:
    """What two folders of edits differ by, over what those of the first change; the mean over people."""
    found = []
    for scan in find_scans(cohort):
        before = Volume.load(scan.path).array
        one, other = (
            Volume.load(next((folder / scan.subject).rglob("*.nii.gz"))).array.astype(float)
            for folder in (first, second)
        )
        brain = before > 0
        found.append(float(np.sqrt(((one - other)[brain] ** 2).mean() / ((one - before)[brain] ** 2).mean())))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ldm")
    parser.add_argument("-n", type=int, default=4)
    parser.add_argument("--seed", type=int, default=780)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not computes_bfloat16(torch.device("cpu")):
        sys.exit("this processor has no bfloat16: both would be in float32")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        cohort = Path(place) / "twins"
        run("cf-phantom", str(cohort), "-n", str(options.n), "--seed", str(options.seed), "--twin", "age=+30")
        for dtype in DTYPES:
            out, scores = Path(place) / dtype, Path(place) / f"{dtype}.json"
            words = ["--preset", options.preset, "--age", "+30", "--threads", options.threads, "--dtype", dtype, "-q"]
            cost = run("cf-edit", *words, str(cohort), str(out))
            run("cf-score", "--truth", str(cohort), str(out), "--json", str(scores))
            (score,) = (row for row in json.loads(scores.read_text())["rows"] if row["metric"] == "truth_ratio")
            row = {"dtype": dtype, "n": options.n, "seconds": round(cost.wall / options.n, 1)}
            row |= {"truth_ratio": score["ours"], "low": score["low"], "high": score["high"]}
            rows.append(row | {"differs": differs(Path(place) / DTYPES[0], out, cohort)})
            print(rows[-1], flush=True)
    words = ["--preset", options.preset, "-n", options.n, "--seed", options.seed, "--threads", options.threads]
    facts = {
        "command": " ".join(map(str, ["python benchmarks/precision.py", *words])),
        "date": datetime.now(UTC).date().isoformat(),
    }
    facts |= {"machine": f"{platform.machine()}, with bfloat16", "threads": options.threads, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
