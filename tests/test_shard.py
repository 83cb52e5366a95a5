"""--shard: parts that leave nothing out and share nothing, and array jobs whose variables say which part."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cftools.cli.shard import WHOLE, Shard, parse_shard
from cftools.errors import UsageError


@given(count=st.integers(1, 12), items=st.integers(0, 40))
def test_parts_leave_nothing_out_and_share_nothing(count: int, items: int) -> None:
    parts = [Shard(index, count).of(range(items)) for index in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def slurm(task: int, low: int, high: int, step: int, count: int) -> dict[str, str]:
    words = {"ID": task, "MIN": low, "MAX": high, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{word}": str(number) for word, number in words.items()}


def sge(task: str, first: str, last: str, step: str) -> dict[str, str]:
    return {"SGE_TASK_ID": task, "SGE_TASK_FIRST": first, "SGE_TASK_LAST": last, "SGE_TASK_STEPSIZE": step}


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        (None, slurm(1, 1, 2, 1, 2), WHOLE),  # never unasked
        ("2/10", {}, Shard(2, 10)),
        ("auto", slurm(0, 0, 9, 1, 10), Shard(1, 10)),
        ("auto", slurm(9, 0, 9, 1, 10), Shard(10, 10)),
        ("auto", slurm(7, 3, 11, 4, 3), Shard(2, 3)),
        ("auto", slurm(4, 4, 4, 1, 1), Shard(1, 1)),
        ("auto/10", slurm(0, 0, 9, 1, 10), Shard(1, 10)),
        ("auto", sge("5", "1", "10", "4"), Shard(2, 3)),
        ("auto/10", {"PBS_ARRAY_INDEX": "3"}, Shard(3, 10)),
    ],
)
def test_which_part(text: str | None, environment: dict[str, str], shard: Shard) -> None:
    assert parse_shard(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment", "reason"),
    [
        ("0/10", {}, "count from 1"),
        ("11/10", {}, "count from 1"),
        ("1/0", {}, "count from 1"),
        ("3", {}, "write i/n"),
        ("-1/2", {}, "write i/n"),
        ("auto", {}, "no task of a SLURM, PBS or SGE array job"),
        ("auto", sge("undefined", "undefined", "undefined", "undefined"), "no task"),
        ("auto", slurm(7, 1, 7, 1, 3), "gaps between 1 and 7"),
        ("auto", slurm(2, 1, 7, 3, 3), "gaps between 1 and 7"),
        ("auto", {**slurm(2, 1, 7, 3, 3), "SLURM_ARRAY_TASK_MAX": "x"}, "MAX is 'x'"),
        ("auto/4", slurm(0, 0, 9, 1, 10), "has 10 tasks"),
        ("auto", {"PBS_ARRAY_INDEX": "3"}, "auto/N"),
        ("auto/10", {"PBS_ARRAY_INDEX": "0"}, "count from 1"),
    ],
)
def test_what_is_no_part(text: str, environment: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_shard(text, environment)


def test_tasks_share_no_table() -> None:
    assert Shard(2, 10).own(Path("out/summary.tsv")) == Path("out/summary_shard-2of10.tsv")
    assert Shard(2, 10).own("facts.json") == "facts_shard-2of10.json"
    assert Shard(2, 10).own("-") == "-" and Shard(2, 10).own(None) is None
    assert WHOLE.own("facts.json") == "facts.json"
