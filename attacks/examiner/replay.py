"""Tests on neighbouring minibatches with the noise off: how far one record moves the release.

With g the clipped sum, a record may move it by at most the sensitivity, ‖g(D) − g(D∖i)‖ ≤ C, for every record and
every batch, and the other records' contributions must stay as they are. Both are checked on ordinary and on
adversarial records; a breach needs no statistics and is explained by the smallest example that shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dpaudit.attacks.examiner.adapter import SCALED, UNDEFINED, Vector
from dpaudit.attacks.examiner.alone import alone, norm
from dpaudit.attacks.examiner.empty import ask_empty
from dpaudit.attacks.examiner.footing import Footing
from dpaudit.attacks.examiner.movement import public_movement
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, StepRaised
from dpaudit.attacks.examiner.random_step import random_step
from dpaudit.attacks.examiner.sums import COUPLING, TOLERANCE, OutOfTime, Sums
from dpaudit.attacks.examiner.together import others, together
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found

ALONE = 16
"""Ordinary records replayed alone: rounding in a norm shows in some and not in others."""


def released_numbers(probe: Probe, plan: ExamPlan, base: Footing) -> list[ExamFinding]:
    """Test that a step releases as many numbers as the plan has directions, where it has any."""
    if plan.stage.clip is None:
        return []
    size = probe.release(base.usual).size
    if size == plan.stage.releases_per_step:
        return []
    text = f"{size} numbers released where the plan says {plan.stage.releases_per_step}"
    return [found("ledger_directions", text, deterministic=True, claim="ledger", measured=size)]


def replay(probe: Probe, plan: ExamPlan, base: Footing) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Deterministic tests of sensitivity; needs ``clean``. Also returns what was not tested."""
    seen = Sums(probe, plan, base)
    findings: list[ExamFinding] = []
    untested: list[str] = []
    parts = _parts(seen, findings, untested)
    for place, (name, part) in enumerate(parts):
        try:
            findings += part()
        except StepRaised as error:  # raising on a record tells that the record is in the minibatch, so it is a finding
            findings.append(found("step_failed", f"in the tests of {name} it raised {error}"))
            untested.append(f"replay: the tests of {name} were cut off by an error")
        except OutOfTime:
            left = ", ".join(each for each, _ in parts[place:])
            untested.append(f"replay: its part of the budget ({probe.words(probe.part)}) ended in the tests of {left}")
            break
        if any(finding.name == "carried_over" for finding in findings):
            findings = [finding for finding in findings if finding.name in ("carried_over", "empty_batch")]
            untested.append("replay: what is left from step to step hides the rest")
            break
    return findings, [_test(seen)], untested


def _parts(
    seen: Sums, findings: list[ExamFinding], untested: list[str]
) -> list[tuple[str, Callable[[], list[ExamFinding]]]]:
    """The tests in order, each with its name; the empty minibatch, on which some steps raise, comes last."""
    if not (seen.footing.exact or seen.footing.aligned):
        how = "follows the position of a record" if seen.footing.repeats == "seeded" else "is random"
        untested.append(
            f"replay: what the step releases without noise {how}, so that sums of records cannot be compared: only"
            " norms and what two records release together were tested; give the adapter fix() to hold dropout masks"
            " and directions still"
        )
        return [
            ("remembered steps", lambda: remembered(seen)),
            ("undefined losses", lambda: _undefined(seen)),
            ("records alone", lambda: random_step(seen)),
            ("the empty minibatch", lambda: ask_empty(seen.probe, seen.plan, seen.footing)),
            ("steps on empty minibatches", lambda: kept(seen)),
        ]
    if len(seen.base) < 2:
        untested.append("replay: fewer than two records stand outside a minibatch, so that none could be swapped")

    def ordinary() -> list[ExamFinding]:
        candidates = {name: i for name, i in seen.probe.adversaries.items() if name not in UNDEFINED}
        return alone(seen, candidates | {f"record {i}": i for i in seen.base})

    def joint() -> list[ExamFinding]:
        excess = any("kind" in finding.detail for finding in findings)
        return together(seen, seen.base, excess=excess) if len(seen.base) > 1 else []

    def further() -> list[ExamFinding]:
        numbers = range(max(seen.base, default=0) + 1, min(seen.probe.size or 8, ALONE))
        bad = any(finding.status == "violated" for finding in findings)
        return [] if bad else alone(seen, {f"record {i}": i for i in numbers if i not in seen.fillers})

    return [
        ("remembered steps", lambda: remembered(seen)),
        ("undefined losses", lambda: _undefined(seen)),
        ("public movement", lambda: public_movement(seen)),
        ("records alone", ordinary),
        ("records together", joint),
        ("a record removed", lambda: others(seen, seen.base) if len(seen.base) > 1 else []),
        ("the empty minibatch", lambda: ask_empty(seen.probe, seen.plan, seen.footing, seen.movement)),
        ("steps on empty minibatches", lambda: kept(seen)),
        ("another number of records", lambda: _sizes(seen)),
        ("further records alone", further),
    ]


def _test(seen: Sums) -> ExamTest:
    probe = seen.probe
    replayed = {i for batch in seen.cache for i in batch}
    ordinary = [i for i in replayed if i < (probe.size or 0)]
    adversarial = replayed & set(probe.adversaries.values())
    largest = 1 + TOLERANCE + seen.slack(2)
    if seen.swaps and not seen.doubles:
        largest = 2 * largest
    measured = len(seen.cache) > 0
    return ExamTest(
        name="replay", group="replay", power=1.0, size=largest if measured else None, unit="C",
        evidence=(
            f"{len(seen.cache)} minibatches replayed without noise, {len(ordinary)} ordinary and"
            f" {len(adversarial)} adversarial records"
        ),
        excludes=f"a contribution above {largest:.4g} C on the records replayed" if measured else "",
    )  # fmt: skip


def remembered(seen: Sums) -> list[ExamFinding]:
    """Test that a minibatch gives the same after another one as after itself; random steps are not tested."""
    record = seen.probe.adversaries.get("large loss", 0)
    one = seen.base[-1] if seen.base else 1
    if record == one:
        return []
    after: dict[int, list[Vector]] = {record: [], one: []}
    for _ in range(2):
        for before in (record, one):
            seen.fresh(seen.batch((before,)))
            after[before].append(seen.fresh(seen.batch((one,))))
    (a, again), (b, once_more) = after[record], after[one]
    change = norm(a - b)
    noise = max(norm(a - again), norm(b - once_more))
    if not change > 0.05 + seen.slack(4) or noise > 0.01 * change + seen.slack(2):
        return []
    words = f"record {one} moves the sum by {norm(a):.3g} C after record {record}, by {norm(b):.3g} C after itself"
    witness: dict[str, Any] = {"records": ((record,), (one,)), "without": ((one,), (one,))}
    return [found("carried_over", words, measured=change, bound=0.0, **witness)]


def kept(seen: Sums) -> list[ExamFinding]:
    """Test that without noise an empty minibatch releases zeros, whatever ran before it."""
    if seen.footing.empty not in ("usable", "unusable"):
        return []
    record, still, largest = seen.probe.adversaries.get("large loss", 0), [], 0.0
    try:
        for index in (record, 1):
            last = seen.fresh(seen.batch((index,)))
            left = seen.fresh(())
            cosine = float(left @ last) / max(norm(left) * norm(last), 1e-300)
            still.append(norm(left) > 0.05 + seen.slack(2) and cosine > 0.99)
            largest = max(largest, norm(left))
    except StepRaised:
        return []  # an empty minibatch that raises is another finding
    if not all(still):
        return []
    words = f"an empty step after one with record {record} still moves the sum by {largest:.3g} C"
    witness: dict[str, Any] = {"records": ((record,), ()), "without": ((), ())}
    return [found("carried_over", words, measured=largest, bound=0.0, **witness)]


def _undefined(seen: Sums) -> list[ExamFinding]:
    """Test that records with infinite or undefined losses leave the release finite and raise no error."""
    first = seen.base[0] if seen.base else 0
    for name in UNDEFINED:
        if (index := seen.probe.adversaries.get(name)) is None:
            continue
        for batch in ((index,), (first, index)):
            witness: dict[str, Any] = {"records": batch, "without": batch[:-1]}
            try:
                share = norm(seen.raw(seen.batch(batch)))
            except StepRaised as error:
                words = f"a record with an {name} makes the step raise, which shows that it is there: {error}"
                return [found("non_finite", words, **witness)]
            if not math.isfinite(share):
                words = f"with an {name} in the minibatch the released vector has norm {share:g}"
                return [found("non_finite", words, measured=share, bound=1.0, **witness)]
        scaled = [seen.probe.adversaries[each] for each in SCALED if each in seen.probe.adversaries]
        (own, bound), limit = seen.alone(index), TOLERANCE + seen.slack(2)
        share = norm(own)
        if share > bound * (1 + limit) and scaled and norm(seen.alone(scaled[-1])[0]) <= bound * (1 + limit):
            words = f"a record with an {name} moves the sum by {share:.3g} C, one with a huge loss by no more than C"
            return [found("non_finite", words, records=(index,), without=(), measured=share, bound=bound)]
    return []


def _sizes(seen: Sums) -> list[ExamFinding]:
    """The divisor stays when the data set has one record fewer; sizes around a rounding boundary are tried."""
    probe = seen.probe
    if not probe.has("resized") or probe.size is None:
        return []
    q = seen.plan.stage.sampling_probability
    batch = seen.batch(seen.base[:4])
    span = min(max(2, math.ceil(1 / max(q, 1e-9)) + 1), 24, probe.size - max(batch) - 2)
    if span < 1:
        return []

    def shown(size: int) -> Vector:
        if probe.left() < max(probe.cost, seen.cost):
            raise OutOfTime
        probe.rewind()
        probe.releases += 1
        released = np.asarray(probe.called("resized", size).clean(batch), dtype=np.float64)
        return released * (seen.plan.normaliser / seen.plan.sensitivity)

    fewer, more = probe.size - span, probe.size
    low, high = shown(fewer), shown(more)
    limit = max(TOLERANCE, COUPLING if seen.footing.rounding else 0.0) * max(norm(high), 1e-9) + seen.slack(2)
    if norm(high - low) <= limit:
        # Nothing moved, though the sizes are so far apart that they make one more expected record: the divisor is
        # fixed.
        return []
    while more - fewer > 1:
        size = (fewer + more) // 2
        middle = shown(size)
        if norm(high - middle) > limit:
            fewer, low = size, middle
        else:
            more, high = size, middle
    ratio = norm(low) / max(norm(high), 1e-300)
    words = f"the same records release {ratio:.4g} times as much with {fewer} records as with {more}"
    return [found("normaliser_data_size", words, records=(more,), without=(fewer,), measured=ratio, bound=1.0)]
