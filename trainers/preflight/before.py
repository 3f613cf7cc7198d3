"""The preflight that every training path runs before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.objective import Objective
from dpaudit.trainers.preflight.check import PreflightReport, preflight, preflight_losses
from dpaudit.trainers.preflight.sources import CollatedRecords

Wanted = bool | Sequence[Any]
"""True: records made up in the form of the data set's; False: none; a sequence: these made-up records."""


def before_training(
    objective: Objective,
    records: Sequence[Any],
    *,
    physical_batch_size: int,
    wanted: Wanted,
    forward_only: bool = False,
) -> PreflightReport | None:
    """Run the preflight that a training path asks for; None where none was wanted, or there is no record at all.

    Raises
    ------
    PrivacyRefusal, UnsupportedModel, InvalidValue
        As :func:`preflight` does.
    """
    model, loss_fn, rows = objective.model, objective.loss_fn, objective.rows
    if wanted is False or (wanted is True and len(records) == 0):
        return None
    if isinstance(wanted, bool):
        source = CollatedRecords(records, objective.collate, physical_batch_size)
    else:
        source = CollatedRecords(wanted, objective.collate, physical_batch_size, made_up=True)
    if not forward_only:
        if rows == 1:
            return preflight(model, source, loss_fn=loss_fn)

        def of_rows(model: nn.Module, bound: float) -> GhostClipping:
            return GhostClipping(model, bound, group=rows)

        return preflight(model, source, loss_fn=loss_fn, clipper=of_rows)
    preflight_losses(model, source, loss_fn=loss_fn)
    return None
