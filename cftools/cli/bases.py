"""Real scans as anatomy for the simulator: what `cf-phantom --base` and `cf-train --data` have in common."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from cftools.cli import options, terminal
from cftools.errors import CftoolsError, CftoolsWarning, InputError

if TYPE_CHECKING:
    from cftools.phantom.anatomy import Anatomy
    from cftools.prepare import Grid


def base_anatomies(
    folder: Path, grid: Grid, labels: list[str] | None = None, ages: str | None = None, option: str = "--base-ages"
) -> list[Anatomy]:
    """An anatomy of each T1w scan of a BIDS folder; scans that cannot be used are left out with a warning.

    Args:
        folder: BIDS, with ages in participants.tsv or the sidecars.
        grid: of the anatomies.
        labels: participants to take, comma lists allowed; all when empty.
        ages: "low,high" years to keep, or None; option: what the user calls that.
    Raises:
        InputError: none is left.
    """
    from cftools.cohort import find_scans
    from cftools.phantom.anatomy import scan_anatomy
    from cftools.volume import Volume

    wanted = [name for text in labels or [] for name in text.split(",")]
    low, high = options.numbers(ages, 2, option) if ages else (0.0, 130.0)
    scans = [scan for scan in find_scans(folder, labels=wanted) if scan.age is None or low <= scan.age <= high]
    anatomies = []
    with terminal.progress("anatomies") as report:
        for done, scan in enumerate(scans, start=1):
            try:
                if scan.age is None:
                    raise InputError(f"{scan.path}: its age is not known, so it cannot be an anatomy to age")
                volume = Volume.load(scan.path)
                if scan.brain is not None:
                    brain = Volume.load(scan.brain)
                    volume.check_same_grid(brain)
                    volume = volume.with_array(volume.array * (brain.array > 0))
                anatomies.append(scan_anatomy(volume, scan.age, scan.sex, scan.subject, grid))
            except CftoolsError as error:
                warnings.warn(f"left out: {error}", CftoolsWarning, stacklevel=2)
            report(done, len(scans), note=scan.subject)
    if not anatomies:
        raise InputError(f"{folder}: no scan in it can serve as anatomy")
    return anatomies
