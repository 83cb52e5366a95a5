"""A cohort in one process over the same cohort in a process a scan, one after the other; the bytes must be the same.

    python benchmarks/throughput.py [BIDS] [-n 10] [--threads 2] [--json docs/results/throughput.json]

Without BIDS the scans are simulated, 2 mm. The first scans of the folder by name are taken. Seconds are wall time,
imports and all; where others use the machine too (see its load), those of the processors say more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cftools.cohort import described, find_scans

EDIT = ("--age", "+20", "-q")


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of the processors."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.processor + other.processor)


def run(*words: str) -> Cost:
    """What a command costs that must succeed."""
    began, before = time.monotonic(), _processor_seconds()
    subprocess.run([str(Path(sys.executable).with_name(words[0])), *words[1:]], check=True, stdout=subprocess.DEVNULL)
    return Cost(time.monotonic() - began, _processor_seconds() - before)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
        run("cf-edit", *words, scans[0], "-o", f"{folder}/warm/")  # fills the file cache
        together = run("cf-edit", *words, *scans, "-o", f"{folder}/one/")
        apart = sum((run("cf-edit", *words, scan, "-o", f"{folder}/many/") for scan in scans), Cost())
        names = [described(Path(scan), "agePlus20") for scan in scans]
        same = all((folder / "one" / name).read_bytes() == (folder / "many" / name).read_bytes() for name in names)
    facts = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "load": round(os.getloadavg()[1], 1),
        "scans": len(scans),
        "threads": int(options.threads),
        "one process, s": round(together.wall, 1),
        "a process a scan, s": round(apart.wall, 1),
        "times": round(apart.wall / together.wall, 2),
        "one process, processor s": round(together.processor, 1),
        "a process a scan, processor s": round(apart.processor, 1),
        "times, processor": round(apart.processor / together.processor, 2),
        "same bytes": same,
    }
    for name, value in facts.items():
        print(f"{name:32s}{value}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    if not same:
        raise SystemExit("the bytes differ")


if __name__ == "__main__":
    main()
