"""One line a private step: the realised batch and its mean loss, which never leave ``private/``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import StorageFailed
from dpaudit.storage.files import PRIVATE_MODE


class StepsLog:
    """Appends to ``private/steps.jsonl``, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, step: int, private: Any) -> None:
        """Write one step.

        Raises
        ------
        StorageFailed
            When the disk refuses; no part of the line is then left.
        """
        losses = private.losses
        row = {
            "step": step,
            "batch_size": len(losses),
            "mean_loss": float(losses.mean()) if len(losses) else None,
        }
        line = (json.dumps(row) + "\n").encode()
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_MODE)
            try:
                size = os.fstat(handle).st_size
                if os.write(handle, line) != len(line):
                    os.ftruncate(handle, size)
                    os.write(handle, line)  # raises with the disk's own reason, unless there is room by now
            finally:
                os.close(handle)
        except OSError as error:
            raise StorageFailed.of(self._path, error) from error
