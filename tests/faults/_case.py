"""A fault as a value: what it is called, what the code looked like, how to build it, and what it truly costs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from dpaudit import Ledger, Stage
from dpaudit.accounting import epsilon_upper
from dpaudit.attacks import ExamPlan, examine
from dpaudit.attacks.examiner.values import Findings


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A training step and the plan it claims to follow, with what must be patched while it is examined."""

    adapter: Any
    plan: Any
    patches: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One planted fault.

    Parameters
    ----------
    name : str
        Short and unique.
    rows : tuple of str
        Where it is known from: "5.7" is row 7 of the bug catalogue in the audit literature's survey, "D4" a
        published program's fault.
    expected : str
        Cause that the examiner must name first.
    family : str
        "plain" (a PyTorch loop), "first order" or "zeroth order" (this library's trainers), "ledger".
    code : str
        What the code looked like, in our words.
    build : callable
        ``build(seed) -> Case``.
    true_stage : callable or None
        The stage that really ran, from the planned one; None where no finite ε holds.
    group : str
        Group of tests that convicts it, for the fast subset.
    steps : int
        Budget, in released steps, that convicts it among all tests: 1,000 where evidence is statistical, 500 where it
        is not. A minute is far more on these small problems.
    """

    name: str
    rows: tuple[str, ...]
    expected: str
    family: str
    code: str
    build: Callable[[int], Case]
    true_stage: Callable[[Stage], Stage] | None = None
    group: str = "noise"
    steps: int = 0

    def __post_init__(self) -> None:
        if not self.steps:
            object.__setattr__(self, "steps", 1000 if self.group in ("noise", "sampler") else 500)

    @property
    def budget(self) -> str:
        """The budget as an examination takes it."""
        return f"{self.steps} steps"


def accountant(ledger: Ledger, delta: float) -> float:
    """The certified accountant that the examiner is handed."""
    return epsilon_upper(ledger, delta, "pld")


def examine_case(case: Case, *, budget: str | float = 20, **options: Any) -> Findings:
    """Examine with the fault in place."""
    with contextlib.ExitStack() as stack:
        for patch in case.patches:
            stack.enter_context(patch)
        return examine(case.adapter, case.plan, budget=budget, accountant=accountant, **options)


def epsilons(fault: Fault, delta: float = 1e-5) -> tuple[float, float]:
    """Claimed and true ε of a fault's plan at δ; infinity where nothing finite holds."""
    plan = ExamPlan.read(fault.build(0).plan)
    claimed = accountant(plan.ledger(), delta)
    if fault.true_stage is None:
        return claimed, float("inf")
    ledger = dataclasses.replace(plan.ledger(), stages=(fault.true_stage(plan.stage),))
    return claimed, accountant(ledger, delta)
