"""Plans and claims of all rows: Poisson batches, add-or-remove-one, ε from the certified accountant."""

from __future__ import annotations

import dataclasses
from typing import Any

from dpaudit import MemoryJournal
from dpaudit.accounting import account, calibrate
from dpaudit.trainers import PrivacyPlan


def delta_of(size: int) -> float:
    """δ = 1/(2n), the choice of Li et al."""
    return 1 / (2 * size)


def planned(
    size: int, *, batch: int, steps: int, clipping_norm: float, epsilon: float | None, **more: Any
) -> PrivacyPlan:
    """A calibrated plan on ``size`` records; without ε it has no noise (and a ledger that says ε = ∞)."""
    plan = PrivacyPlan(
        delta=more.pop("delta", delta_of(size)),
        relation="add_or_remove_one",
        sampling="poisson",
        unit="record",
        public_size=size,
        expected_batch_size=min(batch, size),
        steps=steps,
        clipping_norm=clipping_norm,
        target_epsilon=epsilon,
        noise_multiplier=None if epsilon else 0.0,
        **more,
    )
    return calibrate(plan) if epsilon else plan


def spent(plan: Any, journal: MemoryJournal) -> dict[str, Any]:
    """The ε of what ran, and the ledger behind it."""
    ledger = dataclasses.replace(plan.ledger(), stages=journal.ledger_stages())
    stages = [
        {
            "q": round(s.sampling_probability, 6),
            "sigma": round(s.noise_multiplier, 4),
            "steps": s.steps,
            "directions": s.releases_per_step,
            "clip": None if s.clip is None else str(s.clip),
        }
        for s in ledger.merged().stages
    ]
    if not all(s.noise_multiplier for s in ledger.stages):
        return {"epsilon_upper": None, "delta": plan.delta, "stages": stages}
    (found,) = account(ledger, delta=plan.delta, accountants=("prv",))
    return {"epsilon_upper": found.epsilon_upper, "delta": plan.delta, "stages": stages}
