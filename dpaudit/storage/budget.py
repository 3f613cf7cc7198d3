"""A budget of computing time that sections of a long computation share, so that none of them can spend all of it."""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import signal
import threading
from collections.abc import Iterator


class OutOfTime(BaseException):
    """A section's computing time is spent; no ``except Exception`` on the way may take it for an ordinary failure."""


def cpu_seconds() -> float:
    """Processor time of this process and of the children it waited for, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Budget:
    """Computing time for everything that runs inside :func:`spending`.

    Attributes
    ----------
    seconds : float
        Processor time; infinity for no limit.
    cut : bool
        Whether any section was ended.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds, self.cut = seconds, False
        self._start = cpu_seconds()

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self.seconds - (cpu_seconds() - self._start))


_UNLIMITED = Budget()
_BUDGET: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget", default=_UNLIMITED)


def seconds_left() -> float:
    """Computing time that is left of the budget in force; infinity without one."""
    return _BUDGET.get().left


@contextlib.contextmanager
def spending(budget: Budget) -> Iterator[Budget]:
    """Make ``budget`` the one that sections draw on; all of it is one section as well."""
    token = _BUDGET.set(budget)
    try:
        with _alarm(budget.left):
            yield budget
    finally:
        _BUDGET.reset(token)


@contextlib.contextmanager
def section(share: float = 0.5) -> Iterator[None]:
    """End what runs inside once it took ``share`` of what was left of the budget.

    Raises
    ------
    OutOfTime
        Inside the block. Where no timer of processor time exists (Windows, threads) nothing is ended here.
    """
    budget = _BUDGET.get()
    try:
        with _alarm(budget.left * share):
            yield
    except OutOfTime:
        budget.cut = True
        raise


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    timers = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if math.isinf(seconds) or not timers:
        yield
        return
    outer, began = signal.getitimer(signal.ITIMER_PROF)[0], cpu_seconds()
    before = signal.signal(signal.SIGPROF, _raise)
    # An exception is lost where Python cannot raise one, such as in a destructor, so the alarm repeats every half
    # second.
    signal.setitimer(signal.ITIMER_PROF, max(1e-3, min(seconds, outer or math.inf)), 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        if outer:
            signal.setitimer(signal.ITIMER_PROF, max(1e-3, outer - (cpu_seconds() - began)), 0.5)


def _raise(number: int, frame: object) -> None:
    raise OutOfTime
