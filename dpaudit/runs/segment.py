"""What one uninterrupted part of a training run left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpaudit.privacy.errors import StorageFailed
    from dpaudit.runs.in_run.watch import Watch
    from dpaudit.runs.prepare import Prepared
    from dpaudit.runs.processes import Team


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """What the next segment of a run trains: steps ``start`` up to ``stop`` of one stage."""

    prepared: Prepared
    model: Any
    records: list[dict[str, Any]]
    team: Team
    stage: int
    """Number of the stage in the plan."""
    start: int
    stop: int
    state: Any
    """What the segment before left; None at the beginning."""
    after_step: Callable[[Any], bool]
    """Called with every step's report; True ends the segment."""
    watch: Watch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What ran between two checkpoints."""

    status: str
    steps: int
    """Steps of the run so far, counted from its first."""
    state: Any
    """What the next segment continues from, whole."""
    weights: Mapping[str, Any] | None = None
    """Of a model in shards, whole, in the first process; None where the model itself is whole."""
    failure: StorageFailed | None = None
    """Why it ended early, when a file could not be written."""
