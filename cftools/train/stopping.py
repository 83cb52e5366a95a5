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


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Let these signals wait; processes that are forked meanwhile never get them.

    A cluster signals all processes of a job, and those that make data are still needed for the step at hand.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
