"""An exclusive lock on a path: between processes, between two holders in one process, and across ``fork``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from dpaudit.privacy.errors import InvalidValue, StorageFailed
from dpaudit.storage.files import PRIVATE_MODE

_HELD: set[int] = set()
"""Open handles of this process's locks; a forked child closes its copies, so that they cannot outlive the holder."""


class FileLock:
    """Hold ``path`` exclusively until :meth:`release`, the end of the process, or the end of this object.

    The kernel drops the lock with the process that holds it, so that a crash never leaves one behind. The file is
    removed on release; one that a crash left is empty and is taken over.

    Parameters
    ----------
    path : Path
        The lock's own file; its folder must exist.
    what : str
        The thing protected, as the subject of a sentence: "ledger a.jsonl".

    Raises
    ------
    InvalidValue
        When another process, or another holder in this process, has it.
    StorageFailed
        When the folder is missing, cannot be written, or lies on a file system without locks.
    """

    def __init__(self, path: Path, *, what: str) -> None:
        self._handle = _locked(path, what)
        _HELD.add(self._handle)
        self._finalizer = weakref.finalize(self, _let_go, self._handle, path, os.getpid())

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        self._finalizer()


def _locked(path: Path, what: str) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        except OSError as error:
            raise StorageFailed.of(path, error, what=what) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_there(handle, path):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise InvalidValue(
                f"{what} is in use by another process, or by another holder in this one; wait for it to end, or close"
                " it."
            ) from error
        except OSError as error:
            os.close(handle)
            raise StorageFailed(
                f"{what} cannot be locked ({error.strerror}), so that two writers could not be told apart; put it on a"
                " local disk."
            ) from error
        os.close(handle)  # the holder before removed the file after we had opened it: take the new one


def _still_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _let_go(handle: int, path: Path, process: int) -> None:
    if os.getpid() != process:  # a forked child: its copy of the handle was closed when it began
        return
    with contextlib.suppress(OSError):
        path.unlink()  # while the lock is held, so that nobody's new file is removed
    _HELD.discard(handle)
    os.close(handle)


def _after_fork_in_child() -> None:
    for handle in _HELD:
        with contextlib.suppress(OSError):
            os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
