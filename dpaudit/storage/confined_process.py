"""The confined process itself: it answers requests on standard input until that is closed; see :mod:`.confined`."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import struct
import sys
import time
import traceback
from typing import IO, Any

from dpaudit.storage.budget import Budget, OutOfTime, spending

_LENGTH = struct.Struct("<Q")
_SELDOM = 100_000
"""New objects between two searches for garbage: what imports make stays, and looking through it costs a tenth."""
_KEEP_BELOW = 0.6  # of the memory limit; a process that grew beyond it makes room for a fresh one


def serve(megabytes: int) -> None:
    """Answer requests one at a time; whatever libraries print goes nowhere."""
    gc.set_threshold(_SELDOM)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_DATA", megabytes * 2**20)
    while header := requests.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(header)
        _answer(json.loads(requests.read(length)), answers, megabytes)


def _answer(request: dict[str, Any], answers: IO[bytes], megabytes: int) -> None:
    seconds = float(request["seconds"])
    # An alarm interrupts Python code alone, so the kernel is told to end the process where none runs.
    _limit("RLIMIT_CPU", math.ceil(time.process_time() + seconds + 1))
    budget = Budget(seconds)
    answer: dict[str, Any]
    try:
        function = getattr(importlib.import_module(request["module"]), request["name"])
        with spending(budget):
            answer = {"value": function(**request["arguments"])}
        data = json.dumps(answer, allow_nan=False).encode()
    except (OutOfTime, MemoryError):
        os._exit(1)
    except Exception as error:
        text = traceback.format_exc()
        data = json.dumps({"kind": type(error).__name__, "error": str(error), "traceback": text}).encode()
    if budget.cut or _peak_megabytes() > _KEEP_BELOW * megabytes:
        data = data[:-1] + b', "spent": true}'
    answers.write(_LENGTH.pack(len(data)) + data)
    answers.flush()


def _limit(name: str, value: int) -> None:
    try:
        import resource
    except ImportError:  # no such limits here; the caller's clock remains
        return
    kind = getattr(resource, name, None)
    if kind is None:
        return
    try:
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    except (ValueError, OverflowError, OSError):
        pass


def _peak_megabytes() -> float:
    """Most memory this process has held, in MiB; 0 where it cannot be known (``getrusage`` counts the parent's too)."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM:")), 0.0)
    except OSError:
        return 0.0
