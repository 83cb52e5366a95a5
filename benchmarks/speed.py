"""Time and memory of cf-edit on one 1 mm scan, imports and all, beside reading and writing the scan with nibabel.

    python benchmarks/speed.py [SCAN] [--runs 5] [--json docs/results/speed.json]

Without SCAN it is the MNI152 average at 1 mm. Every run is a process of its own; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = ("-30", "-20", "-10", "+10", "+20")


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MiB of a process that must succeed."""
    script = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return seconds, int(done.stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--age", default="40", help="of the person in the scan")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    command = str(Path(sys.executable).with_name("cf-edit"))
    with tempfile.TemporaryDirectory() as folder:
        scan = options.scan or Path(folder) / "template_T1w.nii.gz"
        if options.scan is None:
            from nilearn.datasets import load_mni152_template

            load_mni152_template(resolution=1).to_filename(scan)
        copy = (
            "import nibabel, numpy, sys; i = nibabel.load(sys.argv[1]);"
            "nibabel.Nifti1Image(i.get_fdata(dtype=numpy.float32), i.affine).to_filename(sys.argv[2])"
        )
        known = ["--from", f"age={options.age}", "--force"]
        jobs = {
            "cf-edit --help": [command, "--help"],
            "cf-edit --age +30": [command, "--age", "+30", *known, str(scan), f"{folder}/one.nii.gz"],
            "cf-edit, a sweep of six": [
                command,
                *(word for age in (*SWEEP, "+30") for word in ("--age", age)),
                *known,
                "-o",
                f"{folder}/sweep/",
                str(scan),
            ],
            "nibabel: read and write": [sys.executable, "-c", copy, str(scan), f"{folder}/copy.nii.gz"],
        }
        rows = {}
        for name, job in jobs.items():
            measure(job)  # fills the file cache
            runs = [measure(job) for _ in range(options.runs)]
            rows[name] = {
                "seconds": round(statistics.median(seconds for seconds, _ in runs), 2),
                "peak_mib": round(statistics.median(peak for _, peak in runs)),
            }
    one, sweep = rows["cf-edit --age +30"]["seconds"], rows["cf-edit, a sweep of six"]["seconds"]
    rows["each further age of the sweep"] = {"seconds": round((sweep - one) / len(SWEEP), 2), "peak_mib": 0}
    for name, row in rows.items():
        print(f"{name:32s}{row['seconds']:7.2f} s {row['peak_mib'] or '':>7} {'MiB' if row['peak_mib'] else ''}")
    ratio = one / rows["nibabel: read and write"]["seconds"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"cf-edit takes {ratio:.1f} times as long as reading and writing the scan; {cores} cores")
    if options.json:
        machine = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine, "runs": options.runs, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
