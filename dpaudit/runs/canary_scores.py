"""Scores of a run's canaries by its pre-registered attack, alike for the run and for its control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dpaudit.runs.prepare import Prepared


def canary_scores(prepared: Prepared, canaries: Any, model: Any, base_model: Any) -> np.ndarray:
    """Scores (m,) of canaries by the configured attack, without sight of their coins."""
    from dpaudit.attacks import canary_losses, residual_scores
    from dpaudit.attacks.canaries.canary import inserted
    from dpaudit.attacks.scores.functions import loss_drop_scores, loss_scores
    from dpaudit.runs.encoding import losses_of

    def losses(scored: Any) -> np.ndarray:
        if prepared.config.model.task != "text-infilling":
            return np.asarray(canary_losses(scored, canaries))
        return losses_of(prepared, scored, inserted(canaries, np.ones(len(canaries), dtype=np.int64), 1))

    attack, target = prepared.config.audit.attack, losses(model)
    if attack == "loss":
        return np.asarray(loss_scores(target))
    base = losses(base_model)
    return np.asarray(loss_drop_scores(target, base) if attack == "loss-drop" else residual_scores(target, base))
