"""The errors dpaudit raises, as a tree, and the exit code each one maps to.

    DpauditError                 64  a mistake the caller can mend
    ├── InvalidValue             64  an argument, key or column out of its bounds
    ├── UnsupportedStage         64  an accountant cannot treat this stage
    ├── UnsupportedModel         64  a parameter whose per-example gradient cannot be bounded
    ├── PrivacyRefusal           64  a request that would break the guarantee
    ├── StorageFailed            64  a file that cannot be written or locked: a full disk, a missing folder
    ├── RunInterrupted    130, 143  a run that was told to stop, finished its step and saved it
    └── InvalidEvidence           3  a record, ledger, certificate or score file that does not hold

Every message is one sentence that names the thing, its value, the bound, and the next step.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Self

from dpaudit.privacy.text import printable

MAX_MESSAGE = 1500


class DpauditError(Exception):
    """Base of every error dpaudit raises on purpose.

    Its message is one line that can be shown, whatever name or cell of somebody else's file stands in it.
    """

    exit_code: int = 64

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_one_line(part) if isinstance(part, str) else part for part in arguments))


def _one_line(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= MAX_MESSAGE else f"{shown[: MAX_MESSAGE - 1]}…"


class InvalidValue(DpauditError, ValueError):
    """An argument, key or column is out of its bounds."""


class UnsupportedStage(DpauditError):
    """An accountant cannot treat a stage; the message names the stage and the remedy."""


class UnsupportedModel(DpauditError):
    """A trainable parameter's per-example gradient cannot be bounded; the message names it."""


class PrivacyRefusal(DpauditError):
    """The request would break the privacy guarantee; the message says how, and the remedy."""


class StorageFailed(DpauditError, OSError):
    """A file could not be written or locked: a full or failing disk, a missing folder, missing permissions.

    What was being written is not to be relied on; ``errno`` is the operating system's number, where it gave one.
    """

    @classmethod
    def of(cls, path: Path, error: BaseException, *, what: str = "") -> Self:
        """The error for a write that failed: one sentence with the file, the cause and the next step.

        Parameters
        ----------
        path : Path
            File or folder that was being written.
        error : BaseException
            What was raised by the operating system, or by a library that wraps it.
        what : str
            Replaces ``path`` as the subject of the sentence.
        """
        number = getattr(error, "errno", None)
        lines = str(error).splitlines() or [type(error).__name__]
        cause = (getattr(error, "strerror", None) or lines[0])[:160].rstrip(".")
        remedy = "check the disk and its permissions, then try again"
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in cause or "StorageFull" in cause:
            cause, remedy = "no space left on the disk", "free space, then run the same again"
        elif number == errno.ENOENT and not path.parent.exists():
            cause, remedy = f"its folder {path.parent} does not exist", "create the folder first"
        failure = cls(f"{what or path} cannot be written: {cause}; {remedy}.")
        failure.errno = number
        return failure


class RunInterrupted(DpauditError):
    """The run was told to stop (Ctrl-C, SIGTERM), finished its step and saved it."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


class PrivacyWarning(UserWarning):
    """A claim that is met and says little; the message says why, and the remedy."""


class InvalidEvidence(DpauditError):
    """Evidence (a record, ledger, certificate or score file) is missing, broken or was changed."""

    exit_code = 3
