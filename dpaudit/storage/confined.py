"""Running a function of dpaudit in a process with limits on computing time and memory, for files of others.

The process is started once and kept, holds no secrets, and ends with its parent. It is killed when it goes beyond its
limits, and the next call starts another one: whatever a hostile file makes the program do, the caller waits a bounded
time and keeps its own memory.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from dpaudit.privacy import errors
from dpaudit.privacy.errors import DpauditError, InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import positive

_LENGTH = struct.Struct("<Q")
MAX_ANSWER = 128 * 2**20
# A process that shares a busy machine, or waits for a disk, may take longer than its computing time.
WALL_FACTOR = 4.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Computing time and memory that one call may use.

    Attributes
    ----------
    seconds : float
        Computing time (processor time) in seconds; the call is ended by force one second later, or after four times as
        long by the clock.
    megabytes : int
        Memory that the process may allocate, in MiB (not enforced on systems without ``RLIMIT_DATA``).

    Raises
    ------
    InvalidValue
        If a limit is not positive, or above 10⁶ seconds or 10⁷ MiB.
    """

    seconds: float = 8.0
    megabytes: int = 400

    def __post_init__(self) -> None:
        positive(seconds=self.seconds, megabytes=self.megabytes)
        for name, value, most in (("seconds", self.seconds, 10**6), ("megabytes", self.megabytes, 10**7)):
            if not value <= most:
                raise InvalidValue(f"{name}={value:g} must be at most {most}; give a smaller limit.")


LIMITS = Limits()


def call(function: Callable[..., Any], arguments: Mapping[str, Any], limits: Limits = LIMITS) -> Any:
    """Call a module-level function of dpaudit in the confined process.

    Parameters
    ----------
    function : callable
        Defined at the top of a module; takes and returns plain JSON values.
    arguments : mapping
        Keyword arguments, plain JSON values.

    Raises
    ------
    DpauditError
        The error that the function raised, of the same class and with the same message.
    InvalidEvidence
        When the process went beyond its limits or died.
    """
    request = {"module": function.__module__, "name": function.__qualname__, "arguments": dict(arguments)}
    with _LOCK:
        worker = _worker(limits)
        answer = worker.ask({**request, "seconds": limits.seconds}, limits.seconds * WALL_FACTOR + 5.0)
        if answer is None or answer.get("spent"):
            worker.end()
    if answer is None:
        raise InvalidEvidence(
            f"the evidence needs more than {limits.seconds:g} s of computing or {limits.megabytes} MiB of memory, so it"
            " was not recomputed and supports nothing; raise the limits only if you trust who made it."
        )
    if "error" in answer:
        raise _error(answer)
    return answer["value"]


def _error(answer: Mapping[str, Any]) -> Exception:
    kind = getattr(errors, str(answer["kind"]), None)
    if isinstance(kind, type) and issubclass(kind, DpauditError):
        return kind(answer["error"])
    failure = RuntimeError(f"{answer['kind']}: {answer['error']}")
    failure.add_note(str(answer.get("traceback", "")))
    return failure


class _Worker:
    """The other process: requests go to its standard input, answers come from its standard output."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes, self.owner = megabytes, os.getpid()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-X", "utf8", "-c", _START.format(path=_path(), megabytes=megabytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **threads},
                start_new_session=True,  # an interrupt from the keyboard is for the caller, who then ends this process
            )
        except OSError as error:
            raise InvalidEvidence(
                f"the process that reads files of others cannot be started ({error.strerror}); free some memory or"
                " processes and verify again."
            ) from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, queue.SimpleQueue[dict[str, Any] | None]()
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()

    @property
    def usable(self) -> bool:
        return self._process.poll() is None and self.owner == os.getpid()

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """The answer; None when the process died or did not answer in time. Any other way out ends the process."""
        data = json.dumps(request).encode()
        try:
            self._requests.write(_LENGTH.pack(len(data)) + data)
            self._requests.flush()
            return self._answers.get(timeout=seconds)
        except (OSError, queue.Empty):
            return None
        except BaseException:  # an interrupt: the answer would be taken for that of the next request
            self.end()
            raise

    def end(self) -> None:
        """Kill the process with the processes it started."""
        if self.owner != os.getpid():
            return
        try:
            os.killpg(self._process.pid, 9) if hasattr(os, "killpg") else self._process.kill()
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # what a broken pipe still holds
            self._requests.close()


_START = "import sys; sys.path[:] = {path!r}; from dpaudit.storage.confined_process import serve; serve({megabytes})"
_LOCK = threading.Lock()
_CURRENT: list[_Worker] = []


def _worker(limits: Limits) -> _Worker:
    """The running confined process, or a new one where it ended, is a forked parent's, or has other limits."""
    if _CURRENT and _CURRENT[0].usable and _CURRENT[0].megabytes == limits.megabytes:
        return _CURRENT[0]
    while _CURRENT:
        _CURRENT.pop().end()
    _CURRENT.append(_Worker(limits.megabytes))
    return _CURRENT[0]


@atexit.register
def _end() -> None:
    while _CURRENT:
        _CURRENT.pop().end()


def _path() -> list[str]:
    """Import path of the confined process: this one's, without the current folder unless dpaudit lies in it."""
    root = str(Path(__file__).resolve().parents[2])
    found = [entry for entry in sys.path if entry]
    return found if root in found else [*found, root]


def _read(pipe: IO[bytes], answers: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    with pipe:
        try:
            while header := pipe.read(_LENGTH.size):
                (length,) = _LENGTH.unpack(header)
                if length > MAX_ANSWER:
                    break
                answers.put(json.loads(pipe.read(length)))
        except (OSError, ValueError, struct.error, RecursionError):
            pass
    answers.put(None)
