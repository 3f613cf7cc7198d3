"""The examiner: white-box tests of a training step against the plan that it claims to follow."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dpaudit._errors import InvalidValue
from dpaudit.attacks._adapters import StepAdapter
from dpaudit.attacks._exam_plan import ExamPlan
from dpaudit.attacks._exam_probe import Probe, StepRaised, set_public_seeds
from dpaudit.attacks._exam_update import update
from dpaudit.attacks._exam_values import ExamFinding, ExamTest, Findings, by_root_cause, found
from dpaudit.attacks._ledger_test import Accountant, composed, ledger
from dpaudit.attacks._noise_test import noise
from dpaudit.attacks._replay import published_outputs, replay
from dpaudit.attacks._sampler_test import sampler
from dpaudit.attacks._step_audit import paired_sensitivity, step_audit

ALPHA = 1e-3
"""Probability, at most, that an examination of a correct step reports anything statistical."""

GROUPS = ("replay", "noise", "sampler", "ledger", "update", "step_audit")
"""Groups of tests, in the order in which they run."""

SHARES = {"noise": 0.5, "sampler": 0.3, "step_audit": 0.1, "sensitivity": 0.1}
"""How :data:`ALPHA` is split over the groups, before anything is observed."""


def examine(
    adapter: StepAdapter,
    plan: Any,
    dataset: Sequence[Any] | None = None,
    budget: str | float = "1min",
    accountant: Accountant | None = None,
    *,
    groups: Collection[str] = GROUPS,
) -> Findings:
    """Hold a training step against its plan, from inside.

    Parameters
    ----------
    adapter : StepAdapter
        The step; see :class:`FirstOrderAdapter`, :class:`ZerothOrderAdapter`, :class:`LoopAdapter` and
        :class:`OpacusAdapter`. It is left in the state it came in.
    plan : ExamPlan or PrivacyPlan
        What the step claims: stage, clipping norm, normaliser, relation, claim.
    dataset : sequence or None
        Records to examine on, for an adapter with ``with_records(records)``; by default the adapter's own, which
        should be synthetic, since a finding's witness names them.
    budget : str or float
        Time, as "30s", "1min" or seconds. Sample sizes follow from it and from the cost of a step alone.
    accountant : callable or None
        ``accountant(ledger, delta)`` returns a certified upper bound on ε; without it the claim is not recomputed.
    groups : collection of str
        Groups of :data:`GROUPS` to run; all by default. Those left out are listed in ``untested``.

    Returns
    -------
    Findings
        Root causes first, each with its witness; with what ran, at which false-alarm probability, and what did not.

    Notes
    -----
    All statistical tests together raise a false alarm with probability at most 0.001 on a correct step. Finding
    nothing excludes the faults named in ``tests`` and no others.
    """
    seconds, plan = read_budget(budget), ExamPlan.read(plan)
    if dataset is not None:
        if not hasattr(adapter, "with_records"):
            raise InvalidValue(
                f"dataset was given and {type(adapter).__name__} has no with_records(); build the adapter on it."
            )
        adapter = adapter.with_records(dataset)
    begun = time.monotonic()
    findings: list[ExamFinding] = []
    tests: list[ExamTest] = []
    untested: list[str] = []
    mu = None
    with _global_randomness_kept():
        set_public_seeds(0)
        probe = Probe(adapter, seconds)
        try:
            has_clean = probe.has("clean")
            if "replay" in groups:
                if has_clean:
                    _join(findings, tests, replay(probe, plan))
                else:
                    untested.append("replay without noise: the adapter has no clean()")
                    _join(findings, tests, paired_sensitivity(probe, plan, ALPHA * SHARES["sensitivity"]))
                if not probe.has("resized"):
                    untested.append("normaliser at N−1: the adapter has no resized()")
                _join(findings, tests, published_outputs(probe, plan))
            if "noise" in groups:
                _join(findings, tests, noise(probe, plan, ALPHA * SHARES["noise"]))
            if "sampler" in groups:
                _join(findings, tests, sampler(probe, plan, ALPHA * SHARES["sampler"]))
                if probe.size is None:
                    untested.append("sampler: the adapter has no size")
            if "ledger" in groups:
                books, more, skipped = ledger(probe, plan, accountant)
                _join(findings, tests, (books, more))
                untested += skipped
            if "update" in groups:
                _join(findings, tests, update(probe, plan))
            if "step_audit" in groups and has_clean and not any(f.status == "violated" for f in findings):
                audit = step_audit(probe, plan, ALPHA * SHARES["step_audit"])
                if audit is None:
                    untested.append("step-level audit: no budget left, or no record that shows in the release")
                else:
                    mu = audit.mu_lower
                    _join(findings, tests, (audit.findings, audit.tests))
            untested += [f"{group}: left out by the caller" for group in GROUPS if group not in groups]
        except StepRaised as error:
            findings.append(found("step_failed", f"it raised {error}"))
        finally:
            probe.rewind()
    return Findings(
        findings=by_root_cause(findings),
        tests=tuple(tests),
        untested=tuple(untested),
        alpha=sum(test.alpha for test in tests),
        mu_lower=mu,
        epsilon_lower=None if mu is None else composed(plan, mu, accountant),
        seconds=time.monotonic() - begun,
    )


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
            raise InvalidValue(f"budget={budget!r} is no time; write it as '30s' or '1min'.")
    if not 1 <= seconds <= 86_400:
        raise InvalidValue(f"budget={budget!r} must be from 1 second to a day; a usual choice is '1min'.")
    return seconds


def _join(findings: list[ExamFinding], tests: list[ExamTest], more: tuple[list[ExamFinding], list[ExamTest]]) -> None:
    findings += more[0]
    tests += more[1]


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
