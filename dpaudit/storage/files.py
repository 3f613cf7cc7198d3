"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from dpaudit.privacy.errors import StorageFailed
from dpaudit.privacy.parts import PRIVATE_MODE as PRIVATE_MODE


def write_atomically(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write under a temporary name, flush to disk, rename: a crash leaves the old file or the new one.

    Parameters
    ----------
    path : Path
        Its folder must exist.
    content : bytes
        The whole file.
    mode : int or None
        Permissions, such as :data:`PRIVATE_MODE`; by default those of the process's umask.

    Raises
    ------
    StorageFailed
        When any part of it failed. The old file may then still stand; the new one is not to be relied on.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode or 0o666)
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)  # the temporary of an earlier crash may have been wider
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()  # a half-written file takes the space that the next try needs
        raise StorageFailed.of(path, error) from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entry, so that a rename or removal in it survives a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
