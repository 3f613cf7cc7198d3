"""A plan in a checkpoint's record, and how many of its steps a budget allows."""

from __future__ import annotations

import dataclasses
from typing import Any

from dpaudit import Ledger
from dpaudit.privacy.protocols import Budget
from dpaudit.trainers.plan import PrivacyPlan


def steps_within(budget: Budget, ledger: Ledger, plan: PrivacyPlan, planned: int) -> int:
    """The largest number of further steps that the budget allows, by bisection: ε grows with every step."""

    def affordable(steps: int) -> bool:
        return budget(dataclasses.replace(ledger, stages=(*ledger.stages, plan.stage(steps)))) >= 0

    if planned < 1 or affordable(planned):
        return planned
    low, high = 0, planned  # low is affordable (or nothing), high is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if affordable(middle) else (low, middle)
    return low


def plain_plan(plan: PrivacyPlan) -> dict[str, Any]:
    values = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    return {k: v if v is None or isinstance(v, (int, float)) else str(v) for k, v in values.items()}


def later_fields() -> dict[str, Any]:
    """Fields of a plan that an older checkpoint does not name, at what they were then."""
    return {"secure_noise": False, "sampling_unit": "record", "records_per_unit": None, "unit_reduction": "mean"}
