"""Scores of a run's canaries by its pre-registered attack, alike for the run and for its control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dpaudit.attacks.canaries.canary import CanarySet
    from dpaudit.attacks.canaries.secret import Secret
    from dpaudit.runs.prepare import Prepared


def canary_scores(prepared: Prepared, canaries: CanarySet, model: Any, base_model: Any) -> np.ndarray:
    """Scores (m,) of canaries by the configured attack, without sight of their coins."""
    target, base = _both_losses(prepared, canaries, model, base_model)
    return _attack_scores(prepared.config.audit.attack, target, base, np.arange(len(canaries)))


def scores_with_beacons(
    prepared: Prepared, secret: Secret, beacons: Secret, model: Any, base_model: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the audit's canaries and of the beacons, from losses computed in one pass over both.

    They go through the models in the order of their opaque ids, which mixes them: what shuffles, drops or joins wrongly
    the records of an attack does it to both. A line that the attack fits is fitted over the audit's canaries alone, so
    that beacons do not move their scores.
    """
    m, ids = len(secret.ids), (*secret.ids, *beacons.ids)
    order = np.argsort(np.asarray(ids))
    place = np.argsort(order)
    losses = _both_losses(prepared, secret.canaries.joined(beacons.canaries).take(order), model, base_model)
    target, base = (values[place] for values in losses)
    scores = _attack_scores(prepared.config.audit.attack, target, base, np.arange(m))
    return scores[:m], scores[m:]


def _both_losses(prepared: Prepared, canaries: CanarySet, model: Any, base_model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Losses (m,) by the trained model, and by the base model where the attack looks at them."""
    from dpaudit.attacks import canary_losses
    from dpaudit.attacks.canaries.canary import inserted
    from dpaudit.runs.encoding import losses_of

    def losses(scored: Any) -> np.ndarray:
        if prepared.config.model.task != "text-infilling":
            return np.asarray(canary_losses(scored, canaries))
        return losses_of(prepared, scored, inserted(canaries, np.ones(len(canaries), dtype=np.int64), 1))

    target = losses(model)
    return target, target if prepared.config.audit.attack == "loss" else losses(base_model)


def _attack_scores(attack: str, target: np.ndarray, base: np.ndarray, audited: np.ndarray) -> np.ndarray:
    from dpaudit.attacks import residual_scores
    from dpaudit.attacks.scores.functions import loss_drop_scores, loss_scores

    if attack == "loss":
        return np.asarray(loss_scores(target))
    if attack == "loss-drop":
        return np.asarray(loss_drop_scores(target, base))
    return np.asarray(residual_scores(target, base, line_of=(target[audited], base[audited])))
