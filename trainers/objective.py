"""How records become losses: what every training path does with a model before anything is clipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from dpaudit.trainers.state import ModelState

Batch = Any
"""What the collator returns: a mapping of tensors, or anything with ``.to(device)``."""

LossFunction = Callable[[nn.Module, Batch], Tensor]
"""``loss_fn(model, batch) -> (B,)``: one loss for each example, each depending on that example alone."""

Collate = Callable[[list[Any]], Batch]
"""List of records to a batch on any device."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """A model with its collator and loss function, and which of a batch's rows are clipped as one.

    Parameters
    ----------
    model : nn.Module
    collate : callable
        List of records to a batch.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)``.
    rows : int
        Rows of a record in a batch, such as the two of a pair.
    reduction : str, optional
        How the losses of a unit's records become one ("mean" or "sum"); None where every record is a contribution.
    state : ModelState, optional
        What forward passes write into the model is put back as it has it.
    """

    model: nn.Module
    collate: Collate
    loss_fn: LossFunction
    rows: int = 1
    reduction: str | None = None
    state: ModelState | None = None
