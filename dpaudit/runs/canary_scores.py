"""Scores of a run's canaries by its pre-registered attack, alike for the run and for its control."""

from __future__ import annotations

from typing import Any

import numpy as np


def canary_scores(attack: str, canaries: Any, model: Any, base_model: Any) -> np.ndarray:
    """Scores (m,) of canaries by a named attack, without sight of their coins."""
    from dpaudit.attacks import canary_losses, residual_scores
    from dpaudit.attacks.scores.functions import loss_drop_scores, loss_scores

    target = canary_losses(model, canaries)
    if attack == "loss":
        return np.asarray(loss_scores(target))
    base = canary_losses(base_model, canaries)
    return np.asarray(loss_drop_scores(target, base) if attack == "loss-drop" else residual_scores(target, base))
