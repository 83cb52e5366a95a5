"""A cohort in one process over the same cohort in a process a scan, one after the other; the bytes must be the same.

    python benchmarks/throughput.py [BIDS] [-n 10] [--threads 2] [--json docs/results/throughput.json]

Without BIDS the scans are simulated, 2 mm. The first scans of the folder by name are taken. Seconds are wall time,
imports and all; the load of the machine, others' too, is told beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cftools.cohort import described, find_scans

EDIT = ("--age", "+20", "-q")


def run(*words: str) -> float:
    """Seconds of a command that must succeed."""
    began = time.monotonic()
    subprocess.run([str(Path(sys.executable).with_name(words[0])), *words[1:]], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids", type=Path, nargs="?")
    parser.add_argument("-n", type=int, default=10)
    parser.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cohort = options.bids or folder / "bids"
        if options.bids is None:
            run("cf-phantom", str(cohort), "-n", str(options.n), "--seed", "7", "--ages", "20,70")
        scans = [str(scan.path) for scan in find_scans(cohort)[: options.n]]
        words = [*EDIT, "--threads", options.threads]
        run("cf-edit", *words, scans[0], "-o", f"{folder}/warm")  # fills the file cache
        together = run("cf-edit", *words, *scans, "-o", f"{folder}/one")
        apart = sum(run("cf-edit", *words, scan, "-o", f"{folder}/many") for scan in scans)
        names = [described(Path(scan), "agePlus20") for scan in scans]
        same = all((folder / "one" / name).read_bytes() == (folder / "many" / name).read_bytes() for name in names)
    facts = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "load": round(os.getloadavg()[1], 1),
        "scans": len(scans),
        "threads": int(options.threads),
        "one process, s": round(together, 1),
        "a process a scan, s": round(apart, 1),
        "times": round(apart / together, 2),
        "same bytes": same,
    }
    for name, value in facts.items():
        print(f"{name:24s}{value}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    if not same:
        raise SystemExit("the bytes differ")


if __name__ == "__main__":
    main()
