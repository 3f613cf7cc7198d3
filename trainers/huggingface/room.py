"""Reserve disk space for the next checkpoint, so that a disk that fills up loses no counted step.

A step that was counted is charged whether or not its update is kept. A disk that fills up must therefore be met with
room for one more checkpoint in hand: it is given back when something cannot be written, and the steps so far are saved
into it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from dpaudit.privacy.errors import StorageFailed

SLACK = 4 * 2**20
"""Bytes beside weights and optimizer: the trainer's state, the ledger, a small tokenizer."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_PROMISE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class CheckpointRoom:
    """One file that keeps the bytes of a checkpoint free.

    Parameters
    ----------
    folder : Path
        Folder on the disk that checkpoints are written to; the file lies in it.
    size : int
        Bytes of a checkpoint; 0 reserves nothing.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._path, self._size = folder, folder / "room.tmp", size

    def reserve(self, written: Path | None = None) -> None:
        """Reserve the room; a checkpoint that was ``written`` says how large one really is.

        Raises
        ------
        StorageFailed
            When the disk has not that much; nothing is reserved then.
        """
        if not self._size:
            return
        if written is not None:
            self._size = max(self._size, SLACK + sum(p.stat().st_size for p in written.rglob("*") if p.is_file()))
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(handle, 0, self._size)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno in _NO_PROMISE:
                return  # a file system that cannot promise room
            self.give_back()
            raise self._none_left(error) from error

    def _none_left(self, error: OSError) -> StorageFailed:
        megabytes = max(1, round(self._size / 10**6))
        failure = StorageFailed(
            f"{self._folder.parent} has no room for a checkpoint of about {megabytes} MB ({error.strerror}); free"
            " space, then run the same again."
        )
        failure.errno = error.errno
        return failure

    def give_back(self) -> None:
        """Free what was reserved."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def explains(self, error: BaseException) -> bool:
        """Whether a full disk is why something could not be written; libraries report it in ways of their own."""
        if getattr(error, "errno", None) in _FULL or "No space left" in str(error):
            return True
        return bool(self._size) and shutil.disk_usage(self._folder).free < self._size


def checkpoint_size(model: nn.Module, *, tokenizer: Any = None) -> int:
    """Bytes of a checkpoint: what is saved of the model, two fp32 moments for each trained number, and slack.

    Of a PEFT model the adapters alone are saved.
    """
    trained = {p.data_ptr(): p for p in model.parameters() if p.requires_grad}  # tied ones are stored once
    saved = trained if hasattr(model, "peft_config") else {t.data_ptr(): t for t in model.state_dict().values()}
    weights = sum(t.numel() * t.element_size() + 2048 for t in saved.values())
    moments = sum(p.numel() * 8 + 4096 for p in trained.values())
    words = len(tokenizer) if hasattr(tokenizer, "__len__") else 0
    return weights + moments + 128 * words + SLACK
