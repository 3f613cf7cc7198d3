"""Secret random streams whose state is never written and never shared by two processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from dpaudit.privacy.errors import PrivacyRefusal

Value = TypeVar("Value")

_forks = 0  # forks between the interpreter's start and this process


class Secret:
    """Base of what holds a secret stream: it refuses to be pickled, copied or written.

    A minibatch that is released twice is one release at σ/√2, and noise that is drawn twice is no noise.
    """

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PrivacyRefusal(
            f"{type(self).__name__} holds secret random state and is never written; make a fresh one after a resume."
        )


class PerProcess(Generic[Value]):
    """A value that every process makes for itself, so that a forked child never continues its parent's stream.

    Parameters
    ----------
    make : callable
        Makes the value, from the operating system's entropy; called once in each process, at the first use there.

    Notes
    -----
    A process is told by its number and by the forks Python saw, since the system gives numbers out again. A snapshot
    of a virtual machine that is started twice looks like one process to both copies and cannot be told here.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._held: tuple[tuple[int, int], Value] | None = None

    def get(self) -> Value:
        """The value of the process that asks."""
        held, process = self._held, (os.getpid(), _forks)
        if held is None or held[0] != process:
            held = self._held = (process, self._make())
        return held[1]


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # absent on systems that cannot fork, where nothing is to be counted
    os.register_at_fork(after_in_child=_forked)
