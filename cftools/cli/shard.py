"""--shard: which part of the scans one task of an array job takes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cftools.errors import UsageError

Item = TypeVar("Item")
Table = TypeVar("Table", str, Path)


@dataclass(frozen=True)
class Shard:
    """The index-th of `count` parts, from 1.

    Scans are dealt out in turn, as cards are: parts differ by one scan at most, and neighbours, which often are of one
    site and one size, go to different tasks.
    """

    index: int = 1
    count: int = 1

    def of(self, items: Sequence[Item]) -> list[Item]:
        """This part of all items; the parts have no item in common and leave none out."""
        return list(items[self.index - 1 :: self.count])

    def own(self, table: Table | None) -> Table | None:
        """A table's name for this part alone: summary.tsv -> summary_shard-2of10.tsv; tasks share no file."""
        if self.count == 1 or table is None or str(table) == "-":
            return table
        path = Path(table)
        return type(table)(path.with_name(f"{path.stem}_shard-{self.index}of{self.count}{path.suffix}"))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard()


def parse_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard:
    """What --shard says: i/n, auto, or auto/n where the scheduler does not tell n; None is all scans.

    Raises:
        UsageError: none of these, no array job, or one with gaps, whose missing tasks' scans nobody would do.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"(auto|[0-9]+)(?:/([0-9]+))?", text)
    if not match or (match[1] != "auto" and match[2] is None):
        raise UsageError(f"--shard {text}: write i/n, such as 2/10, or auto within an array job")
    count = int(match[2]) if match[2] else None
    if match[1] == "auto":
        return _of_array(count, environment)
    return _checked(int(match[1]), count, f"--shard {text}")


def _of_array(count: int | None, environment: Mapping[str, str]) -> Shard:
    """The part of the array task that the scheduler's variables describe."""

    def number(name: str, otherwise: int | None = None) -> int:
        word = environment.get(name, "")
        if re.fullmatch("[0-9]+", word):
            return int(word)
        if otherwise is None or word:
            raise UsageError(f"--shard auto: {name} is {word!r}, no number: give --shard i/n")
        return otherwise

    if "SLURM_ARRAY_TASK_ID" in environment:
        task, names = "SLURM_ARRAY_TASK_ID", [f"SLURM_ARRAY_TASK_{word}" for word in ("MIN", "MAX", "STEP")]
    elif environment.get("SGE_TASK_ID", "undefined") != "undefined":
        task, names = "SGE_TASK_ID", ["SGE_TASK_FIRST", "SGE_TASK_LAST", "SGE_TASK_STEPSIZE"]
    elif "PBS_ARRAY_INDEX" in environment:
        if count is None:
            raise UsageError("--shard auto: PBS does not tell how many tasks there are: --shard auto/N with -J 1-N")
        return _checked(number("PBS_ARRAY_INDEX"), count, "--shard auto: PBS_ARRAY_INDEX")
    else:
        raise UsageError("--shard auto: this is no task of a SLURM, PBS or SGE array job: give --shard i/n")
    first, last, step = number(names[0]), number(names[1]), max(number(names[2], 1), 1)
    tasks = (last - first) // step + 1
    if number("SLURM_ARRAY_TASK_COUNT", tasks) != tasks or (number(task) - first) % step:
        raise UsageError(
            f"--shard auto: the array has gaps between {first} and {last}, and their scans would be left out: "
            f"submit it as one range, or give --shard i/n"
        )
    if count not in (None, tasks):
        raise UsageError(f"--shard auto/{count}: the array has {tasks} tasks")
    return _checked((number(task) - first) // step + 1, tasks, f"--shard auto: {task}")


def _checked(index: int, count: int | None, what: str) -> Shard:
    if not count or not 1 <= index <= count:
        raise UsageError(f"{what}: part {index} of {count} is none: parts count from 1")
    return Shard(index, count)
