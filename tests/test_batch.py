"""The loop over many inputs: in order, beside one another, bounded, and no subject in the way of the others."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from cftools.cli import terminal
from cftools.cli.batch import Batch, Record, Stages
from cftools.cli.summary import FIRST, LAST, summarised
from cftools.errors import CftoolsWarning, DomainWarning, OutputError, VolumeError

#: How long a thread waits for another one before the test fails, seconds.
PATIENCE = 20


@pytest.fixture(autouse=True)
def running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "running", terminal.Running("cf-test"))


class Work:
    """Stages that write down what happens, and fail or warn where a subject's name says so: "bad-read", "odd-make"."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.alive: set[str] = set()
        self.most = 0

    @property
    def stages(self) -> Stages[str, str, str]:
        return Stages(self.read, self.make, self.write)

    def read(self, subject: str) -> str:
        self.alive.add(subject)
        self.most = max(self.most, len(self.alive))
        self._play(subject, "read")
        return subject

    def make(self, subject: str, ready: str) -> Iterator[str]:
        assert ready == subject
        yield f"{subject}.1"
        self._play(subject, "make")
        yield f"{subject}.2"

    def write(self, record: Record[str], made: str) -> None:
        if made.endswith(".2"):
            self._play(record.subject, "write")
            self.alive.discard(record.subject)
        record.quality["similarity"] = "0.9"
        self.written.append(made)

    def _play(self, subject: str, stage: str) -> None:
        if subject.startswith(f"odd-{stage}"):
            warnings.warn(f"is odd in {stage}", DomainWarning if stage == "read" else CftoolsWarning, stacklevel=1)
        if subject.startswith(f"bad-{stage}"):
            raise VolumeError(f"{subject}: is damaged")
        if subject.startswith(f"stop-{stage}"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("threads", [1, 2])
def test_results_come_in_order_and_few_are_in_memory(threads: int) -> None:
    subjects = [f"s{number}" for number in range(20)]
    work, batch = Work(), Batch[str]()
    assert batch.work_through(subjects, work.stages, threads=threads) == 0
    assert work.written == [f"{subject}.{part}" for subject in subjects for part in (1, 2)]
    assert [record.name for record in batch.records] == subjects
    assert work.most <= (1 if threads == 1 else 3)


def test_the_next_is_read_and_the_last_written_beside_the_making() -> None:
    """The second's making waits for the third's reading and the first's writing, which must be going on."""
    reading, writing = threading.Event(), threading.Event()

    def read(subject: int) -> int:
        if subject == 3:
            reading.set()
        return subject

    def make(subject: int, _: int) -> Iterator[int]:
        if subject == 2:
            assert reading.wait(PATIENCE) and writing.wait(PATIENCE)
        yield subject

    def write(record: Record[int], made: int) -> None:
        if made == 1:
            assert reading.wait(PATIENCE)  # the third is read only when the second's turn has come
            writing.set()

    assert Batch[int]().work_through([1, 2, 3], Stages(read, make, write), threads=2) == 0


def test_results_wait_for_the_writer() -> None:
    """A sweep of many edits is not held in memory while a slow disk takes them."""
    made: list[int] = []
    written: list[int] = []
    waiting: list[int] = []

    def make(subject: int, _: int) -> Iterator[int]:
        for number in range(8):
            made.append(number)
            waiting.append(len(made) - len(written))
            yield number

    def write(record: Record[int], number: int) -> None:
        time.sleep(0.01)
        written.append(number)

    assert Batch[int]().work_through([1, 2], Stages(lambda subject: subject, make, write), threads=2) == 0
    assert len(written) == 16 and max(waiting) <= 3


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("stage", ["read", "make", "write"])
def test_who_fails_is_reported_and_left_out(stage: str, threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    work, batch = Work(), Batch[str]()
    assert batch.work_through(["a", f"bad-{stage}", "b"], work.stages, threads=threads) == 1
    assert {"a.2", "b.2"} <= set(work.written) and f"bad-{stage}.2" not in work.written
    assert [(record.name, record.status) for record in batch.records] == [
        ("a", "done"),
        (f"bad-{stage}", "failed"),
        ("b", "done"),
    ]
    assert capsys.readouterr().err.splitlines() == [
        f"cf-test: error: bad-{stage}: is damaged",
        f"cf-test: error: 1 of 3 failed: bad-{stage}",
    ]
    assert Batch[str]().work_through([f"bad-{stage}1", f"bad-{stage}2"], Work().stages, threads=threads) == 3


@pytest.mark.parametrize("threads", [1, 2])
def test_a_warning_is_the_subjects_in_whose_work_it_came(threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    subjects = ["odd-read1", "a", "odd-make", "odd-write", "odd-read2"]
    batch = Batch[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest, **more: terminal.warning(message)
        assert batch.work_through(subjects, Work().stages, threads=threads) == 0
    said = {
        record.name: record.warnings for record in sorted(batch.records, key=lambda record: subjects.index(record.name))
    }
    assert said == {
        "odd-read1": ["odd-read1: is odd in read"],
        "a": [],
        "odd-make": ["odd-make: is odd in make"],
        "odd-write": ["odd-write: is odd in write"],
        "odd-read2": ["odd-read2: is odd in read"],
    }
    assert [record.name for record in batch.records if record.out_of_domain] == ["odd-read1", "odd-read2"]
    shown = capsys.readouterr().err.splitlines()
    assert sorted(shown) == sorted(f"cf-test: warning: {text}" for texts in said.values() for text in texts)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_summary_holds_what_was_done_before_an_interruption(threads: int, tmp_path: Path) -> None:
    path = tmp_path / "summary.tsv"
    subjects = ["a", "bad-make", "stop-make", "b"]
    with pytest.raises(KeyboardInterrupt), summarised(path, ("similarity",), subjects, [], False, False) as batch:
        batch.work_through(subjects, Work().stages, threads=threads)
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert lines[0] == [*FIRST, "similarity", *LAST]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert [(row["scan"], row["status"]) for row in rows][:1] == [("a", "done")]
    assert float(rows[0]["peak_mib"]) > 10 and rows[0]["similarity"] == "0.9" and rows[0]["error"] == "n/a"
    assert "b" not in {row["scan"] for row in rows}


def test_a_resumed_summary_keeps_the_lines_of_those_left_out(tmp_path: Path) -> None:
    path = tmp_path / "summary.tsv"
    everyone = ["a", "b", "c"]
    with summarised(path, ("similarity",), everyone, [], False, False) as batch:
        batch.work_through(["a", "bad-read"], Work().stages)
    before = path.read_text().splitlines()
    with pytest.raises(OutputError, match="exists already"), summarised(path, ("similarity",), [], [], False, False):
        raise AssertionError("nothing is worked on")
    assert path.read_text().splitlines() == before
    with summarised(path, ("similarity",), everyone, ["a", "b"], False, True) as batch:
        batch.work_through(["c"], Work().stages)
    after = path.read_text().splitlines()
    assert after[1] == before[1] and [line.split("\t")[:2] for line in after[2:]] == [["b", "skipped"], ["c", "done"]]
    path.write_text("participant_id\tage\n")
    with pytest.raises(OutputError), summarised(path, ("similarity",), everyone, ["a"], False, True):
        raise AssertionError("nothing is worked on")
    assert path.read_text() == "participant_id\tage\n"
