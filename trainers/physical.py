"""Number of records in one forward pass: it depends on memory and changes no release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from dpaudit.privacy import validate

_FIRST_GUESS = 8
_SHARE_OF_FREE_MEMORY = 0.7


class PhysicalBatch:
    """The micro-batch size: fixed, or fitted to the memory that is left; it halves on out-of-memory.

    Parameters
    ----------
    size : int or "auto"
        "auto" starts at 8. On a CUDA device the peak of the first non-empty step gives the bytes that a record takes,
        and the size becomes what fits into 70% of the free memory. Elsewhere it stays at 8, where a CPU is busy anyway.

    Notes
    -----
    The size depends on private records (their lengths) and stays in the process: no result depends on it.
    """

    def __init__(self, size: int | Literal["auto"]) -> None:
        self._fit = size == "auto"
        self.size = _FIRST_GUESS if size == "auto" else size
        validate.integer_at_least(1, physical_batch_size=self.size)

    def halve(self) -> None:
        """Half the size, at least 1; fitting stops, since the estimate was wrong."""
        self.size, self._fit = max(1, self.size // 2), False
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def measured(self, device: torch.device, records: int) -> Iterator[None]:
        """Around the forward and backward passes of one step over ``records`` records."""
        if not self._fit or device.type != "cuda" or records < self.size:
            yield
            return
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        used = torch.cuda.max_memory_allocated(device) - before
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
        self.size, self._fit = fitted(self.size, used, free), False


def fitted(size: int, used: int, free: int) -> int:
    """Records that fit when ``size`` of them took ``used`` bytes and ``free`` bytes are free.

    >>> fitted(8, used=800, free=10_000)
    70
    """
    return max(1, int(_SHARE_OF_FREE_MEMORY * free * size / max(used, 1)))
