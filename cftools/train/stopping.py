"""Signals that ask a training to stop, kept until the step at hand is done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What SLURM sends before it takes a node away: SIGTERM on preemption, either as `--signal` says.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Request:
    """Whether somebody asked, and by which signal."""

    def __init__(self) -> None:
        self.name = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Note signals instead of dying of them, as long as this lasts; in a thread, where none arrive, do nothing."""
    request, former = Request(), {}
    try:
        for number in SIGNALS:
            former[number] = signal.signal(number, request)
    except ValueError:
        pass  # only the main thread may set handlers
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def ignore_stop_requests() -> None:
    """For processes that work for one that heard them: a cluster signals all of a job."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
