"""What the commands write, and where: results on stdout, everything else on stderr.

One process runs one command, so its name and verbosity are kept once, in `running`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cftools.errors import UsageError

Progress = Callable[..., None]
"""Called as progress(done, total, note=""): the one thing lower floors are given to say how far they are."""

SECONDS_BETWEEN_LOG_LINES = 30.0


@dataclass
class Running:
    """The running command's name and words, verbosity (-1 with -q, 0, 1 with -v, 2 with -vv), and who owns stdout."""

    name: str = "cftools"
    words: Sequence[str] = ()
    verbosity: int = 0
    stdout_is_data: bool = False


running = Running()


def result(text: object) -> None:
    """Print one result line (a path, a number) on stdout, unless stdout carries bytes or JSON."""
    if not running.stdout_is_data:
        print(text, flush=True)


def say(text: str, verbosity: int = 0) -> None:
    """Print one line on stderr; silent with -q, and below the verbosity asked for."""
    if running.verbosity >= verbosity:
        print(f"{running.name}: {text}", file=sys.stderr, flush=True)


def error(text: object) -> None:
    """Print an error as one line on stderr, also with -q."""
    print(f"{running.name}: error: {_one_line(text)}", file=sys.stderr, flush=True)


def warning(text: object) -> None:
    """Print a warning as one line on stderr; silent with -q."""
    say(f"warning: {_one_line(text)}")


def read_bytes() -> bytes:
    """All of stdin, for an input named `-`."""
    if sys.stdin.isatty():
        raise UsageError("the input - is stdin, which is a terminal: pipe a file into it, or name one")
    return sys.stdin.buffer.read()


def write_bytes(data: bytes) -> None:
    """Bytes to stdout, for an output named `-`; nothing else may then go there."""
    if sys.stdout.isatty():
        raise UsageError("the output - is stdout, which is a terminal: pipe it into a file, or name one")
    running.stdout_is_data = True
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_json(facts: Mapping[str, Any] | Sequence[Any], destination: str, force: bool = False) -> None:
    """Write facts as JSON to a file, atomically, or to stdout when the destination is `-`."""
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # What is no UTF-8 in the name of a file becomes \udcXX, as JSON escapes it.
    data = text.encode(errors="backslashreplace")
    if destination == "-":
        sys.stdout.write(data.decode())
        return
    from cftools.volume import write_atomic

    write_atomic(Path(destination), data, force=force)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows for eyes on a terminal; tab-separated lines, whole and without a frame, for a pipe."""
    if running.stdout_is_data:
        return
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(str(cell) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*(escape(str(cell)) for cell in row))
    Console().print(drawn)


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A callback that shows how far some work is: a bar on a terminal, in a log a line now and then.

    Example:
        with progress("training") as report:
            train(settings, report)
    """
    if running.verbosity < 0:
        yield _silence
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(label) as report:
            yield report
    else:
        yield _log_lines(label)


def _silence(done: int, total: int, note: str = "") -> None:
    """Progress that nobody asked to see."""


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    words = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Bar(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        words,
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(label, total=None, note="")

        def report(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


def _log_lines(label: str) -> Progress:
    # The first line waits too: work that ends before it need not be spoken of.
    last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LOG_LINES:
            last = now
            say(f"{label} {done}/{total} ({done / max(total, 1):.0%}) {note}".rstrip())

    return report


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
