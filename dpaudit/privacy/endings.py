"""How a program ends on an error: one sentence, and an exit code that is never a verdict's by accident."""

from __future__ import annotations

from dpaudit.privacy.errors import DpauditError

INTERNAL = 70
"""Exit code of a fault in dpaudit itself."""
STOPPED = 130
"""Exit code after Ctrl-C."""
TRACEBACK = "DPAUDIT_TRACEBACK"
"""Environment variable under which the traceback of a fault is shown."""


def ending(error: BaseException) -> tuple[str, int]:
    """Sentence and exit code of an error: its own where it was raised on purpose, and 70 where dpaudit is at fault.

    >>> ending(FileNotFoundError(2, "No such file or directory", "scores.csv"))
    ("cannot read or write 'scores.csv': No such file or directory; check the path.", 64)
    """
    if isinstance(error, DpauditError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped before it finished; what was already written is kept.", STOPPED
    if isinstance(error, OSError):
        name = f" {error.filename!r}" if error.filename else ""
        return f"cannot read or write{name}: {error.strerror or error}; check the path.", 64
    if isinstance(error, MemoryError):
        return "there is not enough memory; nothing was decided. Give it more, or smaller files.", INTERNAL
    lines = str(error).strip().splitlines() or [""]
    fault = f"a fault in dpaudit ({type(error).__name__}: {lines[0][:300]}); nothing was decided."
    return f"{fault} Please report it with what is shown when {TRACEBACK}=1 is set in the environment.", INTERNAL
