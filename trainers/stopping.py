"""End a training run between two steps: after a signal, or because a file cannot be written."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from dpaudit.privacy.errors import StorageFailed
from dpaudit.privacy.protocols import Journal, seal_reason

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingStopped(StorageFailed):
    """Training ended between two steps because the journal or a log could not be written.

    No step is half applied, and none was released that is not counted. ``result`` is what the call would have returned
    (a ``TrainingResult`` or ``ZOResult``) for the steps that ran, so that they can be saved.
    """

    result: Any

    @classmethod
    def after(cls, failure: StorageFailed, result: Any) -> TrainingStopped:
        """The error of ``failure``, with the result of the steps that ran."""
        stopped = cls(str(failure))
        stopped.errno, stopped.result = failure.errno, result
        return stopped


class Interruption:
    """Whether the process was told to stop, and by which signal."""

    signal: int | None = None

    def end(self) -> None:
        """End the program as the signal would have, now that the step is saved."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped by {self.name} after the step was saved")
        if self.signal is not None:
            raise SystemExit(128 + self.signal)

    @property
    def name(self) -> str:
        """Name of the signal, such as "SIGINT"; "" when there was none."""
        return "" if self.signal is None else signal.Signals(self.signal).name


@contextmanager
def finish_the_step() -> Iterator[Interruption]:
    """Note the first Ctrl-C or SIGTERM inside the block instead of stopping, so that the loop ends after its step.

    A step that was counted is charged whether or not it is finished, so it is worth finishing. The second signal stops
    at once. Outside the main thread, and for a signal that the process ignores, nothing is changed.
    """
    told = Interruption()

    def receive(number: int, frame: FrameType | None) -> None:
        if told.signal is not None:
            raise KeyboardInterrupt
        told.signal = number
        if sys.stderr.isatty():  # the handler may have interrupted a print, whose lock os.write does not need
            os.write(2, b"\nstopping after this step; once more stops at once\n")

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, receive)
    try:
        yield told
    finally:
        for taken, handler in before.items():
            signal.signal(taken, handler)


def sealed(
    journal: Journal, reason: str, failure: StorageFailed | None, *, is_test: bool = False
) -> StorageFailed | None:
    """Seal the journal at the end of a loop; returns the first thing that could not be written, if any.

    With ``is_test`` the ledger says that randomness was injected, so that nobody can certify the run from it.
    """
    try:
        journal.seal(seal_reason(reason, is_test=is_test))
    except StorageFailed as error:
        return failure or error
    return failure
