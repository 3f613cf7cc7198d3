"""What one uninterrupted part of a training run left."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpaudit.trainers import TrainingStopped


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What ran between two checkpoints."""

    status: str
    steps: int
    """Steps of the run so far, counted from its first."""
    state: Any
    """What the next segment continues from."""
    failure: TrainingStopped | None = None
    """Why it ended early, when a file could not be written."""
