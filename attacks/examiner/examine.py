"""The examiner: white-box tests of a training step against the plan that it claims to follow."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from dpaudit.attacks.examiner.adapter import StepAdapter
from dpaudit.attacks.examiner.bookkeeping import Accountant, composed, ledger
from dpaudit.attacks.examiner.footing import Footing, NotExamined, footing, returned
from dpaudit.attacks.examiner.noise import noise
from dpaudit.attacks.examiner.outputs import published_outputs
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, StepRaised, set_public_seeds
from dpaudit.attacks.examiner.replay import released_numbers, replay
from dpaudit.attacks.examiner.sampling import sampler
from dpaudit.attacks.examiner.state import released_statistics
from dpaudit.attacks.examiner.step_audit import paired_sensitivity, step_audit
from dpaudit.attacks.examiner.units import refuse_other_units
from dpaudit.attacks.examiner.update import update
from dpaudit.attacks.examiner.values import PARTS, ExamFinding, ExamTest, Excluded, Findings, by_root_cause, found
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue

ALPHA = 1e-3
"""Probability, at most, that an examination of a correct step reports anything statistical."""

GROUPS = ("replay", "noise", "sampler", "ledger", "update", "step_audit")
"""Groups of tests, in the order in which they run."""

SHARES = {"noise": 0.5, "sampler": 0.3, "step_audit": 0.1, "sensitivity": 0.1}
"""How :data:`ALPHA` is split over the groups, before anything is observed."""

SPENT = {"replay": 0.3, "noise": 0.35, "sampler": 0.1, "ledger": 0.04, "update": 0.03, "step_audit": 0.18}
"""How the budget is split over the groups; what one leaves over is divided among those after it."""


def examine(
    adapter: StepAdapter,
    plan: Any,
    budget: str | float = "1min",
    accountant: Accountant | None = None,
    *,
    groups: Collection[str] = GROUPS,
    alpha: float = ALPHA,
    remake: Callable[[], StepAdapter] | None = None,
) -> Findings:
    """Test a training step against the plan that it claims to follow.

    Parameters
    ----------
    adapter : StepAdapter
        The step; see :class:`FirstOrderAdapter`, :class:`ZerothOrderAdapter`, :class:`LoopAdapter` and
        :class:`OpacusAdapter`. It is left in the state it came in.
    plan : ExamPlan or PrivacyPlan
        What the step claims: stage, clipping norm, normaliser, relation, claim.
    budget : str or float
        Time, as "30s", "1min" or seconds, counted from the second step on (the first one pays for imports); or
        "400 steps", which observes the same on every machine. Sample sizes follow from it and from the cost of a step
        alone. Every group of tests gets its part; a test that does not fit is listed in ``untested``.
    accountant : callable or None
        ``accountant(ledger, delta)`` returns a certified upper bound on ε; without it the claim is not recomputed.
    groups : collection of str
        Groups of ``GROUPS`` to run; all by default. Those left out are listed in ``untested``.
    alpha : float
        Probability of a statistical finding for a correct step, at most; smaller where one run has several steps.
    remake : callable or None
        Makes the adapter anew, for a library that an empty minibatch breaks.

    Returns
    -------
    Findings
        Root causes first, each with its witness; with what ran, at which false-alarm probability, and what did not.

    Raises
    ------
    NotExamined
        Where ordinary minibatches do not run, or the step does not return to its start: a mistake of the adapter, or of
        its library, is never a finding.

    Notes
    -----
    All statistical tests together raise a false alarm with probability at most ``alpha`` on a correct step. Finding
    nothing excludes the faults named in ``tests`` and no others.
    """
    limit, counted = _budget(budget)
    plan = ExamPlan.read(plan)
    validate.open_unit(alpha=alpha)
    begun = time.monotonic()
    held = _Held()
    with _global_randomness_kept():
        set_public_seeds(0)
        probe = _begin(adapter, limit, counted, remake)
        try:
            held.mu = _groups(probe, plan, alpha, accountant, held, groups)
        finally:
            with suppress(StepRaised):  # a step that does not run any more cannot be put back either
                probe.rewind()
    return Findings(
        findings=by_root_cause(held.findings),
        tests=tuple(held.tests),
        untested=tuple(held.untested),
        alpha=sum(test.alpha for test in held.tests),
        excluded=Excluded.by(held.tests),
        partial=tuple(part for part in PARTS if part in held.partial),
        mu_lower=held.mu,
        epsilon_lower=None if held.mu is None else composed(plan, held.mu, accountant),
        seconds=time.monotonic() - begun,
    )


def _begin(adapter: StepAdapter, limit: float, counted: bool, remake: Callable[[], StepAdapter] | None) -> Probe:
    try:
        return Probe(adapter, limit, counted=counted, remake=remake)
    except StepRaised as error:
        raise NotExamined(f"snapshot() raised {error}; mend the adapter.") from error


def _groups(
    probe: Probe,
    plan: ExamPlan,
    alpha: float,
    accountant: Accountant | None,
    held: _Held,
    groups: Collection[str],
) -> float | None:
    """All groups of tests in order; the step audit's bound, if it ran. What an error cuts off is said."""
    base, single = footing(probe, plan)
    if single is not None and base.asks_empty:
        held.findings.append(found("step_failed", f"on a minibatch of one record it raised {single}"))
    mu = None
    for group in GROUPS:
        if group not in groups:
            held.untested.append(f"{group}: left out by the caller")
            held.partial.add(group)
            continue
        to_come = [SPENT[name] for name in GROUPS[GROUPS.index(group) :] if name in groups]
        probe.allot(SPENT[group] / sum(to_come))
        try:
            if group == "step_audit":
                mu = _step_audit(probe, plan, base, alpha, held)
            else:
                _GROUP[group](probe, plan, base, alpha, accountant, held)
        except StepRaised as error:
            held.cut_off(group, str(error), base)
    refuse_other_units(held.findings, base)
    if (why := returned(probe, base)) is not None:
        held.untested.append(f"whether the step returned to its start: {why}")
    return mu


def examine_stages(
    steps: Sequence[tuple[StepAdapter, Any]],
    budget: str | float = "1min",
    accountant: Accountant | None = None,
    *,
    remake: Callable[[], StepAdapter] | None = None,
) -> Findings:
    """Examine the step of every stage of one run: half of the budget for the first, the rest for the others.

    Parameters
    ----------
    steps : sequence of (adapter, plan)
        In the run's order. The first plan holds the claim of the whole run.
    budget, accountant, remake
        As :func:`examine` takes them; ``remake`` where there is one stage.

    Returns
    -------
    Findings
        Together, with the stage in every name of a test. False alarms stay below :data:`ALPHA` for all stages; the
        step audit's bound is the first stage's.
    """
    if len(steps) == 1:
        return examine(*steps[0], budget=budget, accountant=accountant, remake=remake)
    (limit, counted), others = _budget(budget), len(steps) - 1
    done = []
    for number, (adapter, plan) in enumerate(steps):
        part = limit / 2 if number == 0 else limit / 2 / others
        part = max(part, 50 if counted else 1)
        groups = GROUPS if number == 0 else GROUPS[:-1]
        done.append(
            examine(
                adapter, plan, budget=f"{part:.0f} steps" if counted else part, accountant=accountant, groups=groups,
                alpha=ALPHA / len(steps),
            )
        )  # fmt: skip
    named = [(f"stage {number}", each) for number, each in enumerate(done)]
    return Findings(
        findings=by_root_cause(
            [
                dataclasses.replace(finding, detail={**finding.detail, "stage": number})
                for number, each in enumerate(done)
                for finding in each.findings
            ]
        ),
        tests=tuple(dataclasses.replace(t, name=f"{t.name} ({stage})") for stage, each in named for t in each.tests),
        untested=tuple(f"{stage}: {reason}" for stage, each in named for reason in each.untested),
        alpha=sum(each.alpha for each in done),
        excluded=functools.reduce(Excluded.worst, (each.excluded for each in done)),
        partial=tuple(part for part in PARTS if any(part in each.partial for each in done)),
        mu_lower=done[0].mu_lower,
        epsilon_lower=done[0].epsilon_lower,
        seconds=sum(each.seconds for each in done),
    )


class _Held:
    """Findings, tests and gaps of the test groups so far."""

    def __init__(self) -> None:
        self.findings: list[ExamFinding] = []
        self.tests: list[ExamTest] = []
        self.untested: list[str] = []
        self.partial: set[str] = set()
        self.mu: float | None = None

    def join(
        self, group: str, findings: list[ExamFinding], tests: list[ExamTest], untested: Sequence[str] = ()
    ) -> None:
        """Add a group's results; a group that left something untested does not count as examined in full."""
        self.findings += findings
        self.tests += tests
        self.untested += untested
        if untested:
            self.partial.add(group)

    def cut_off(self, group: str, error: str, base: Footing) -> None:
        """A group that an error ended: the step's own, or an optional method of the adapter."""
        self.partial.add(group)
        self.untested.append(f"{group}: cut off, it raised {error}")
        if group in ("replay", "noise", "step_audit") and base.empty != "dead":
            self.findings.append(found("step_failed", f"in the tests of the {group} it raised {error}"))


def _replay(probe: Probe, plan: ExamPlan, base: Footing, alpha: float, _: Accountant | None, held: _Held) -> None:
    held.findings += released_numbers(probe, plan, base)
    if probe.has("clean"):
        held.join("replay", *replay(probe, plan, base))
    else:
        held.untested.append("replay without noise: the adapter has no clean()")
        held.partial.add("replay")
        held.join("replay", *paired_sensitivity(probe, plan, base, alpha * SHARES["sensitivity"]))
    if not probe.has("resized"):
        held.untested.append("normaliser at N−1: the adapter has no resized()")
    if base.exact and not base.fixed and base.empty != "dead":
        held.join("replay", *published_outputs(probe, plan, base))
        held.join("replay", *released_statistics(probe, plan, base))


def _noise(probe: Probe, plan: ExamPlan, base: Footing, alpha: float, _: Accountant | None, held: _Held) -> None:
    held.join("noise", *noise(probe, plan, base, alpha * SHARES["noise"]))


def _sampler(probe: Probe, plan: ExamPlan, _: Footing, alpha: float, __: Accountant | None, held: _Held) -> None:
    held.join("sampler", *sampler(probe, plan, alpha * SHARES["sampler"]))
    if probe.size is None:
        held.untested.append("sampler: the adapter has no size")
        held.partial.add("sampler")


def _ledger(probe: Probe, plan: ExamPlan, base: Footing, _: float, accountant: Accountant | None, held: _Held) -> None:
    held.join("ledger", *ledger(probe, plan, base, accountant))


def _update(probe: Probe, plan: ExamPlan, _: Footing, __: float, ___: Accountant | None, held: _Held) -> None:
    held.join("update", *update(probe, plan))


def _step_audit(probe: Probe, plan: ExamPlan, base: Footing, alpha: float, held: _Held) -> float | None:
    if not probe.has("clean") or not base.exact or base.empty == "dead":
        return None
    if any(finding.status == "violated" for finding in held.findings):
        return None
    audit = step_audit(probe, plan, base, alpha * SHARES["step_audit"])
    if isinstance(audit, str):
        held.untested.append(f"step-level audit: {audit}")
        return None
    held.join("step_audit", audit.findings, audit.tests)
    return audit.mu_lower


_GROUP = {"replay": _replay, "noise": _noise, "sampler": _sampler, "ledger": _ledger, "update": _update}


def read_budget(budget: str | float) -> float:
    """Seconds of "90s", "1min", "2 min" or a number.

    >>> read_budget("1min")
    60.0
    """
    if isinstance(budget, (int, float)) and not isinstance(budget, bool):
        seconds = float(budget)
    else:
        text = str(budget).strip().lower()
        for suffix, factor in (("min", 60.0), ("m", 60.0), ("s", 1.0), ("", 1.0)):
            if text.endswith(suffix):
                try:
                    seconds = float(text.removesuffix(suffix)) * factor
                    break
                except ValueError:
                    continue
        else:
            raise InvalidValue(f"budget={budget!r} is no time; write it as '30s', '1min' or '400 steps'.")
    if not 1 <= seconds <= 86_400:
        raise InvalidValue(f"budget={budget!r} must be from 1 second to a day; a usual choice is '1min'.")
    return seconds


def _budget(budget: str | float) -> tuple[float, bool]:
    """The budget and whether it counts steps."""
    text = str(budget).strip().lower()
    if not text.endswith("steps"):
        return read_budget(budget), False
    number = text.removesuffix("steps").strip()
    if not number.isdigit() or not 50 <= int(number) <= 10**7:
        raise InvalidValue(f"budget={budget!r} must count from 50 to 10000000 steps; a usual choice is '2000 steps'.")
    return float(number), True


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """The examiner sets public seeds; the process gets its own states back."""
    held = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
        torch.set_rng_state(held[2])
