"""Faults of the bookkeeping: steps, resumes, claims."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from dpaudit import Ledger, MemoryJournal
from dpaudit.attacks import ExamPlan
from tests.faults._case import Case, Fault, accountant
from tests.faults._plain import PlainLoop
from tests.faults._problems import first_order


def _counting_loaded_steps_only() -> tuple[Any, ...]:
    real, state = MemoryJournal.count, {"calls": 0}

    def count(self: Any) -> None:
        state["calls"] += 1
        if state["calls"] % 4:  # one optimizer step in four micro-steps is counted as none
            real(self)

    return (patch.object(MemoryJournal, "count", count),)


def _forgetting() -> tuple[Any, ...]:
    real = MemoryJournal.begin

    def begin(self: Any, stage: Any, /) -> None:
        self._sealed = []
        real(self, stage)

    return (patch.object(MemoryJournal, "begin", begin),)


def trainer(seed: int, patches: Callable[[], tuple[Any, ...]]) -> Case:
    adapter, plan = first_order(seed)
    return Case(adapter, plan, patches())


def claimed(change: Callable[[ExamPlan], ExamPlan]) -> Callable[[int], Case]:
    def build(seed: int) -> Case:
        loop = PlainLoop(seed)
        plan = loop.plan()
        return Case(loop.adapter(), change(plan))

    return build


def _true(plan: ExamPlan, relation: str = "add_or_remove_one", delta: float | None = None) -> float:
    ledger = Ledger(stages=(plan.stage,), relation=relation)  # type: ignore[arg-type]
    return accountant(ledger, delta or plan.delta or 1e-3)


def _wrong_relation(plan: ExamPlan) -> ExamPlan:
    return dataclasses.replace(plan, relation="replace_one", epsilon=_true(plan), stage=plan.stage)  # type: ignore[arg-type]


def _wrong_delta(plan: ExamPlan) -> ExamPlan:
    return dataclasses.replace(plan, epsilon=_true(plan, delta=1e-2))


def _large_delta(plan: ExamPlan) -> ExamPlan:
    return dataclasses.replace(plan, delta=0.05)


FAULTS = (
    Fault(
        name="steps-not-all-counted",
        rows=("5.13", "D10", "accumulation"),
        expected="ledger_steps",
        family="ledger",
        group="ledger",
        code="if (step + 1) % accumulation == 0: accountant.step()",
        build=lambda seed: trainer(seed, _counting_loaded_steps_only),
    ),
    Fault(
        name="resume-forgets",
        rows=("5.17",),
        expected="ledger_resume",
        family="ledger",
        group="ledger",
        code="accountant = Accountant()  # on every start",
        build=lambda seed: trainer(seed, _forgetting),
        true_stage=lambda s: dataclasses.replace(s, steps=2 * s.steps),
    ),
    Fault(
        name="replace-one-by-add-remove",
        rows=("5.15", "D3"),
        expected="claimed_epsilon",
        family="ledger",
        group="ledger",
        code="epsilon = add_remove_accountant(...)  # claim: replace_one",
        build=claimed(_wrong_relation),
    ),
    Fault(
        name="epsilon-at-another-delta",
        rows=("5.16",),
        expected="claimed_epsilon",
        family="ledger",
        group="ledger",
        code="epsilon = accountant.get_epsilon(delta=1e-2)  # claim: 1e-3",
        build=claimed(_wrong_delta),
        true_stage=lambda s: s,
    ),
    Fault(
        name="delta-above-one-over-n",
        rows=("5.16",),
        expected="claimed_delta",
        family="ledger",
        group="ledger",
        code="delta = 0.05 with 60 records",
        build=claimed(_large_delta),
        true_stage=lambda s: s,
    ),
)
