"""The loop of every command that takes many inputs: one process, one model, and no scan in the way of the others.

While the network works on one scan, one thread reads and prepares the next and another writes the last. At most
three scans are in memory, results come in the order of the inputs, and their bytes do not depend on any of this.
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cftools.cli import terminal
from cftools.cli.app import SOME_FAILED, describe_fault, report_fault
from cftools.errors import CftoolsWarning, DomainWarning

Subject = TypeVar("Subject")
Ready = TypeVar("Ready")
Made = TypeVar("Made")


@dataclass(eq=False)
class Record(Generic[Subject]):
    """What became of one subject.

    Attributes:
        subject: what was worked on; name: of it, in messages.
        status: done, failed, or skipped: its output was there.
        seconds: of work on it, in all threads together.
        peak_mib: the most memory that the process had until it was done.
        quality: the command's own figures, by column of the summary.
        warnings: about it, each once; out_of_domain: whether one says that it is unlike what the weights know.
        error: why it failed.
    """

    subject: Subject
    name: str
    status: str = "done"
    seconds: float = 0.0
    peak_mib: float = 0.0
    quality: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    out_of_domain: bool = False
    error: str = ""


@dataclass(frozen=True)
class Stages(Generic[Subject, Ready, Made]):
    """The work on one subject, in three parts that may run in threads of their own.

    Attributes:
        read: all that goes before the network.
        make: results one after the other, in the thread of the caller.
        write: puts one result where it goes, and may fill the record's quality.
        end: called once for each subject, when it is known how it went.
    """

    read: Callable[[Subject], Ready]
    make: Callable[[Subject, Ready], Iterable[Made]]
    write: Callable[[Record[Subject], Made], None]
    end: Callable[[Record[Subject]], None] = lambda record: None


@dataclass
class Batch(Generic[Subject]):
    """What became of all subjects; filled as they are done, so that it holds when the work is interrupted."""

    records: list[Record[Subject]] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)

    @property
    def code(self) -> int:
        """0 if all went well; the shared exit code if every subject failed alike (3: all refused); else 1."""
        worked_on = [record for record in self.records if record.status != "skipped"]
        failed = [record for record in worked_on if record.status == "failed"]
        if failed and len(failed) == len(worked_on) and len(self.codes) == 1:
            return min(self.codes)
        return SOME_FAILED if failed else 0

    def skip(self, subject: Subject, name: str) -> None:
        """Record that a subject is left out, its output being there."""
        self.records.append(Record(subject, name, "skipped", peak_mib=_peak_mib()))

    def take_failures(self, other: Batch[Subject]) -> None:
        """Record what failed in an earlier pass over the same subjects, and is not worked on again."""
        self.records += [record for record in other.records if record.status == "failed"]
        self.codes |= other.codes

    def work_through(
        self,
        subjects: Iterable[Subject],
        stages: Stages[Subject, Ready, Made],
        name: Callable[[Subject], str] = str,
        threads: int = 1,
        report: terminal.Progress | None = None,
        total: int = 0,
    ) -> int:
        """Work on every subject, whatever happens to the others, then name those that failed.

        Args:
            threads: with more than one, reading and writing go beside the making.
            report: told after each result how many there are, of a total.
        Returns:
            the exit code.
        """
        subjects = list(subjects)
        known = len(self.records)
        lag = 1 if threads > 1 and len(subjects) > 1 else 0
        turns: deque[_Turn[Subject]] = deque()
        count = itertools.count(1)

        def write(turn: _Turn[Subject], made: Made) -> None:
            turn.run(stages.write, turn.record, made)
            done = next(count)
            if report and total > 1:
                report(done, total, note=turn.record.name)

        with _listening(), _worker(lag) as reader, _worker(lag) as writer:
            for turn in _read_ahead(subjects, stages, name, reader, lag):
                turns.append(turn)
                _make(turn, stages, writer, write)
                while len(turns) > lag:
                    self._settle(turns.popleft(), stages)
            for turn in turns:
                self._settle(turn, stages)
        failed = [record.name for record in self.records[known:] if record.status == "failed"]
        if failed and len(subjects) > 1:
            terminal.error(f"{len(failed)} of {len(subjects)} failed: {', '.join(failed)}")
        return self.code

    def _settle(self, turn: _Turn[Subject], stages: Stages[Subject, Ready, Made]) -> None:
        """Wait until a subject's last result is written, and record how it went."""
        record = turn.record
        fault = turn.fault
        for writing in turn.writings:
            fault = fault or writing.exception()
        self._note(record, fault)
        try:
            turn.run(stages.end, record)
        except Exception as late:
            self._note(record, late)
        record.seconds = sum(turn.spans)
        record.peak_mib = _peak_mib()
        self.records.append(record)

    def _note(self, record: Record[Subject], fault: BaseException | None) -> None:
        """Record what went wrong with a subject; raise what ends all work."""
        if isinstance(fault, Exception) and not isinstance(fault, BrokenPipeError):
            record.status, record.error = "failed", describe_fault(fault)[1]
            self.codes.add(report_fault(fault, record.name))
        elif fault is not None:
            raise fault


def for_each(
    subjects: Iterable[Subject], work: Callable[[Subject], object], name: Callable[[Subject], str] = str
) -> int:
    """Work on one subject after the other, in one piece; the exit code as for `Batch.work_through`."""

    def make(subject: Subject, _: Subject) -> Iterator[object]:
        yield work(subject)

    batch: Batch[Subject] = Batch()
    return batch.work_through(subjects, Stages(lambda subject: subject, make, lambda record, made: None), name)


@dataclass(eq=False)
class _Turn(Generic[Subject]):
    """A subject on its way through the stages.

    Attributes:
        spans: seconds of each piece of work; appended to from several threads.
        held: warnings that came before it was the subject's turn.
        is_up: whether it is, so that warnings are shown at once.
    """

    record: Record[Subject]
    reading: Future[Any] | None = None
    writings: list[Future[None]] = field(default_factory=list)
    fault: BaseException | None = None
    spans: list[float] = field(default_factory=list)
    held: list[Callable[[], None]] = field(default_factory=list)
    is_up: bool = False

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function; its time and its warnings are the subject's, in whatever thread."""
        token = _current.set(self)
        began = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self.spans.append(time.monotonic() - began)
            _current.reset(token)

    def begin(self) -> Any:
        """What was read of the subject, when its turn has come; raises what went wrong."""
        assert self.reading is not None
        self.reading.exception()
        self.is_up = True
        for show in self.held:
            show()
        ready, self.reading = self.reading, None  # not kept: it is large
        return ready.result()

    def note(self, message: Warning | str, category: type[Warning], show: Callable[[Warning], None]) -> None:
        """Keep a warning about the subject, and show it with the subject's name."""
        record = self.record
        text = str(message) if record.name in str(message) else f"{record.name}: {message}"
        record.out_of_domain |= issubclass(category, DomainWarning)
        if text in record.warnings:
            return
        record.warnings.append(text)
        if self.is_up:
            show(category(text))
        else:
            self.held.append(lambda: show(category(text)))


#: Whose work the running thread does.
_current: ContextVar[_Turn[Any] | None] = ContextVar("_current", default=None)


def _read_ahead(
    subjects: Iterable[Subject],
    stages: Stages[Subject, Ready, Made],
    name: Callable[[Subject], str],
    reader: Executor,
    lag: int,
) -> Iterator[_Turn[Subject]]:
    """A turn for each subject, when that many more have been asked to be read."""
    waiting: deque[_Turn[Subject]] = deque()
    for subject in subjects:
        turn = _Turn(Record(subject, name(subject)))
        turn.reading = reader.submit(turn.run, stages.read, subject)
        waiting.append(turn)
        if len(waiting) > lag:
            yield waiting.popleft()
    yield from waiting


def _make(
    turn: _Turn[Subject],
    stages: Stages[Subject, Ready, Made],
    writer: Executor,
    write: Callable[[_Turn[Subject], Made], None],
) -> None:
    """Make and hand on every result of a subject; what goes wrong is kept."""
    try:
        results = iter(stages.make(turn.record.subject, turn.begin()))
        while (made := turn.run(next, results, _END)) is not _END:
            if turn.writings:
                turn.writings[-1].result()  # one at a time, or they would heap up
            turn.writings.append(writer.submit(write, turn, made))
    except Exception as fault:
        turn.fault = fault


_END: Any = object()


class _Inline(Executor):
    """Does what it is given at once."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as fault:
            future.set_exception(fault)
        return future


@contextmanager
def _worker(lag: int) -> Iterator[Executor]:
    """One thread, or none; what it has begun is finished, even when the work is interrupted."""
    if not lag:
        yield _Inline()
        return
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _listening() -> Iterator[None]:
    """Give every warning to the subject that is worked on in its thread."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            turn = _current.get()
            if turn is None or not issubclass(category, CftoolsWarning):
                show(message, category, *where, **more)
            else:
                turn.note(message, category, lambda text: show(text, category, *where, **more))

        warnings.showwarning = note
        yield


def _peak_mib() -> float:
    kilobytes = 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobytes / 1024
