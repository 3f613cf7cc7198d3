"""Replay: neighbouring minibatches with the noise off, and what one record moves.

With g the clipped sum, a record may move it by at most the sensitivity, ‖g(D) − g(D∖i)‖ ≤ C, for every record and
every batch, and the other records' contributions must stay as they are. Both are checked on ordinary and on
adversarial records; a breach needs no statistics and is explained by the smallest example that shows it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpaudit.attacks.examiner.adapter import Vector
from dpaudit.attacks.examiner.plan import ExamPlan
from dpaudit.attacks.examiner.probe import Probe, StepRaised
from dpaudit.attacks.examiner.values import ExamFinding, ExamTest, found

TOLERANCE = 1e-3
"""Relative slack for fp32 rounding of weights and sums: a breach is larger than this share of C."""

COUPLING = 5e-3
"""Relative change of the others' contributions that counts as coupling, beyond rounding of another padding."""

ALONE = 16
"""Ordinary records replayed alone: rounding in a norm shows in some and not in others."""

UNDEFINED = ("infinite loss", "undefined loss")
SCALED = ("large loss", "huge loss")


class OutOfTime(Exception):
    """The group's part of the budget is used up."""


@dataclasses.dataclass(slots=True)
class _Replayer:
    """The clipped sum of any batch, in units of the sensitivity."""

    probe: Probe
    plan: ExamPlan
    cache: dict[tuple[int, ...], Vector]
    cost: float = 0.0
    """Of a record in the dearest minibatch so far, and of a step, whichever says more of the next one."""

    def sum(self, *indices: int) -> Vector:
        """g of a batch divided by the sensitivity: one record's share has norm at most 1."""
        key = tuple(indices)
        if key not in self.cache:
            self.cache[key] = self.fresh(indices)
        return self.cache[key]

    def fresh(self, indices: Sequence[int]) -> Vector:
        """The same, run again."""
        if self.probe.left() < max(self.probe.cost, self.cost):
            raise OutOfTime
        begun = self.probe.used()
        with np.errstate(all="ignore"):
            released = self.probe.clean(indices)
        self.cost = max(self.cost, self.probe.used() - begun)
        return released * (self.plan.normaliser / self.plan.sensitivity)

    def shares(self, indices: Sequence[int]) -> Vector:
        """Σ of what every record of a batch contributes alone."""
        return np.asarray(np.sum([self.sum(i) for i in indices], axis=0))


def released_numbers(probe: Probe, plan: ExamPlan) -> list[ExamFinding]:
    """A step releases as many numbers as the plan has directions, where it has any."""
    if plan.stage.clip is None:
        return []
    try:
        size = probe.release((0,)).size
    except StepRaised:
        return []  # the tests that follow say so by name
    if size == plan.stage.releases_per_step:
        return []
    text = f"{size} numbers released where the plan says {plan.stage.releases_per_step}"
    return [found("ledger_directions", text, deterministic=True, claim="ledger", measured=size)]


def replay(probe: Probe, plan: ExamPlan) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Deterministic tests of sensitivity; needs ``clean``. Also returns what the budget did not reach."""
    seen = _Replayer(probe, plan, {})
    size = probe.size or 8
    base = list(range(min(size, 6)))
    findings: list[ExamFinding] = []
    untested: list[str] = []
    at = "empty minibatches"
    try:
        findings += _empty(seen)
        if any(f.name == "carried_over" for f in findings):
            return findings, [_test(seen, base)], ["replay: what is left from step to step hides the rest"]
        empty = bool(findings)
        at = "undefined losses"
        findings += _undefined(seen, base)
        try:
            at = "records alone"
            candidates = {name: i for name, i in probe.adversaries.items() if name not in UNDEFINED}
            alone = _alone(seen, candidates | {f"record {i}": i for i in base}, shifted=not empty)
            findings += alone
            at = "records together"
            findings += _together(seen, base, excess=bool(alone))
            at = "a record removed"
            findings += _others(seen, base)
        except StepRaised as error:  # a step that raises on a record tells that the record is there
            findings.append(found("step_failed", f"it raised {error}"))
        at = "another number of records"
        findings += _sizes(seen, base)
        at = "further records alone"
        if not findings:
            further = range(len(base), min(size, ALONE))
            findings += _alone(seen, {f"record {i}": i for i in further}, shifted=True)
    except OutOfTime:
        untested.append(f"replay: its part of the budget ({probe.words(probe.part)}) ended in the tests of {at}")
    return findings, [_test(seen, base)], untested


def _test(seen: _Replayer, base: list[int]) -> ExamTest:
    ordinary = {key[0] for key in seen.cache if len(key) == 1 and key[0] < (seen.probe.size or 0)} | set(base)
    compared = f"{len(seen.cache)} minibatches replayed without noise, {len(ordinary)} ordinary and"
    return ExamTest(
        name="replay", group="replay", evidence=f"{compared} {len(seen.probe.adversaries)} adversarial records",
        excludes=f"a contribution above {1 + TOLERANCE:g} C on the records replayed", power=1.0,
    )  # fmt: skip


def _empty(seen: _Replayer) -> list[ExamFinding]:
    """Without noise an empty minibatch releases nothing, whatever ran before it."""
    record, kept = seen.probe.adversaries.get("large loss", 0), []
    try:
        empty = [seen.sum()]
        for index in (record, 1):
            last = seen.fresh((index,))
            empty.append(seen.fresh(()))
            kept.append(_norm(empty[-1]) > 0.05 and _cosine(empty[-1], last) > 0.99)
    except StepRaised:
        return []  # the tests of the noise and those that follow say so by name
    if other := _remembered(seen, record):
        return [other]
    largest = max(map(_norm, empty))
    if all(kept):
        words = f"an empty step after one with record {record} still moves the sum by {largest:.3g} C"
        return [found("carried_over", words, records=((record,), ()), without=((), ()), measured=largest, bound=0.0)]
    if not largest <= TOLERANCE:
        words = f"without noise it moves the sum by {largest:.3g} C"
        return [found("empty_batch", words, measured=largest, bound=0.0, records=(), without=())]
    return []


def _remembered(seen: _Replayer, record: int) -> ExamFinding | None:
    """A minibatch replayed after another one and after itself gives the same; steps that are random give no answer."""
    after: dict[int, list[Vector]] = {record: [], 1: []}
    for _ in range(2):
        for before in (record, 1):
            seen.fresh((before,))
            after[before].append(seen.fresh((1,)))
    (a, again), (b, once_more) = after[record], after[1]
    change = _norm(a - b)
    if not change > 0.05 or max(_norm(a - again), _norm(b - once_more)) > 0.01 * change:
        return None
    words = f"record 1 moves the sum by {_norm(a):.3g} C after record {record}, by {_norm(b):.3g} C after itself"
    return found("carried_over", words, records=((record,), (1,)), without=((1,), (1,)), measured=change, bound=0.0)


def _cosine(first: Vector, second: Vector) -> float:
    return float(first @ second) / max(_norm(first) * _norm(second), 1e-300)


def _norm(vector: Vector) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(vector))


def _undefined(seen: _Replayer, base: list[int]) -> list[ExamFinding]:
    """Records with infinite or undefined losses leave the release finite, and raise nothing."""
    for name in UNDEFINED:
        if (index := seen.probe.adversaries.get(name)) is None:
            continue
        for batch in ((index,), (base[0], index)):
            try:
                share = _norm(seen.sum(*batch))
            except StepRaised as error:
                words = f"a record with an {name} makes the step raise, which shows that it is there: {error}"
                return [found("non_finite", words, records=batch, without=batch[:-1])]
            if not math.isfinite(share):
                words = f"with an {name} in the minibatch the released vector has norm {share:g}"
                return [found("non_finite", words, records=batch, without=batch[:-1], measured=share, bound=1.0)]
        huge = seen.probe.adversaries.get("huge loss")
        share = _norm(seen.sum(index))
        if share > 1 + TOLERANCE and huge is not None and _norm(seen.sum(huge)) <= 1 + TOLERANCE:
            words = f"a record with an {name} moves the sum by {share:.3g} C, one with a huge loss by no more than C"
            return [found("non_finite", words, records=(index,), without=(), measured=share, bound=1.0)]
    return []


def _alone(seen: _Replayer, candidates: dict[str, int], *, shifted: bool) -> list[ExamFinding]:
    """A batch of one record has norm at most C, also for adversarial records; what an empty one releases is taken off,
    unless that is itself a record's."""
    norms = {name: _norm(seen.sum(i) - seen.sum() if shifted else seen.sum(i)) for name, i in candidates.items()}
    bad = {name: norm for name, norm in norms.items() if not norm <= 1 + TOLERANCE}
    if not bad:
        return []
    worst = max(bad, key=lambda name: bad[name] if math.isfinite(bad[name]) else math.inf)
    detail: dict[str, Any] = {
        "records": (candidates[worst],),
        "without": (),
        "measured": norms[worst],
        "bound": 1.0,
        "kind": worst,
    }
    if not math.isfinite(norms[worst]):
        return [found("non_finite", f"{worst} alone releases a vector of norm {norms[worst]}", **detail)]
    grown = _growth(seen)
    if grown is not None:
        names, every = grown
        if not every:
            return [
                found(
                    "unclipped_parameter", f"{worst} alone moves the sum by {norms[worst]:.4g} C, growing with the"
                    f" loss in {', '.join(names[:4])}", parameters=names, **detail,
                )
            ]  # fmt: skip
        return [
            found("unclipped", f"{worst} alone moves the sum by {norms[worst]:.4g} C, growing with the loss", **detail)
        ]
    return [
        found(
            "norm_underestimated", f"{worst} alone moves the sum by {norms[worst]:.4g} C, however large its loss",
            **detail,
        )
    ]  # fmt: skip


def _growth(seen: _Replayer) -> tuple[list[str], bool] | None:
    """Blocks whose contribution grows with the loss beyond C; whether that is all of them; None where none does."""
    scaled = [seen.probe.adversaries.get(name) for name in SCALED]
    if None in scaled:
        return None
    first, second = (seen.sum(i) for i in scaled if i is not None)
    blocks = seen.probe.blocks(first.size)
    grown, live = [], 0
    for name, part in blocks:
        before, after = _norm(first[part]), _norm(second[part])
        live += before > 1e-9 or after > 1e-9
        if after > 1 and after > 3 * before:
            grown.append(name)
    if not grown:
        return None
    return grown, len(grown) >= max(live, 1)


def _together(seen: _Replayer, base: list[int], *, excess: bool) -> list[ExamFinding]:
    """Records added to others: their shares add up, with one divisor whatever the batch."""
    pair = (base[0], base[1])
    # few released numbers may cancel: the first records whose shares do so least
    group = max((base[:k] for k in range(len(base), 1, -1)), key=lambda some: _norm(seen.shares(some)))
    whole, shares = seen.sum(*group), seen.shares(group)
    scale = max(_norm(shares), 1e-12)
    gap = _norm(whole - shares)
    detail: dict[str, Any] = {
        "records": tuple(group),
        "without": tuple(group[:-1]),
        "measured": gap,
        "bound": COUPLING * scale,
    }
    if _norm(whole * len(group) - shares) < COUPLING * scale < gap:
        ratio = f"the sum of {len(group)} records is 1/{len(group)} of the sum of their shares"
        return [found("normaliser_realised_batch", ratio, **detail)]
    if excess:
        return []  # the shares themselves are wrong; what they do together says nothing more
    huge = seen.probe.adversaries.get("huge loss")
    if huge is not None:
        # when a clip acts on the mean, a record with a huge loss leaves nothing of the other's own direction
        alone = seen.sum(huge)
        # few released numbers point few ways: the record that has most of its own
        chosen = max(base[1:], key=lambda i: _norm(_across(seen.sum(i), alone)))
        own = _norm(_across(seen.sum(chosen), alone))
        left = _norm(_across(seen.sum(chosen, huge), alone)) if own > 1e-3 else 0.0
        if own > 1e-3 and left < 0.3 * own and _norm(alone) > 0.1:
            words = f"beside a record with a huge loss, {left:.3g} C is left of the {own:.3g} C of record {chosen}"
            return [
                found(
                    "clipped_after_averaging", words, records=(chosen, huge), without=(huge,), measured=left, bound=own
                )
            ]  # fmt: skip
    for batch in (pair, tuple(base)):
        whole, expected = seen.sum(*batch), seen.shares(batch)
        if _norm(whole - expected) > COUPLING * max(_norm(expected), 0.1):
            moved = _norm(whole - expected)
            return [
                found(
                    "coupled_examples", f"the sum of records {batch} differs by {moved:.3g} C from the sum of their"
                    " shares", records=batch, without=batch[:-1], measured=moved,
                    bound=COUPLING * max(_norm(expected), 0.1),
                )
            ]  # fmt: skip
    return []


def _across(vector: Vector, along: Vector) -> Vector:
    """The part of a vector at right angles to another."""
    length = max(float(along @ along), 1e-300)
    return np.asarray(vector - along * (float(vector @ along) / length), dtype=np.float64)


def _others(seen: _Replayer, base: list[int]) -> list[ExamFinding]:
    """Removing any one record from a batch moves the sum by at most C and leaves the others' shares alone."""
    findings: list[ExamFinding] = []
    candidates = [base[0], base[-1], *(i for name, i in seen.probe.adversaries.items() if name not in UNDEFINED)]
    rest = [i for i in base[1:-1]]
    for index in candidates:
        with_it, without = seen.sum(*rest, index), seen.sum(*rest)
        moved = _norm(with_it - without)
        detail: dict[str, Any] = {"records": (*rest, index), "without": tuple(rest)}
        if not moved <= 1 + TOLERANCE:
            text = f"removing record {index} moves the sum by {moved:.4g} C"
            findings.append(found("sensitivity", text, measured=moved, bound=1.0, **detail))
        change = _norm(with_it - without - seen.sum(index))
        bound = COUPLING * max(_norm(without), 1.0)
        if not change <= bound:
            text = f"with record {index} present the others' shares change by {change:.3g} C"
            findings.append(found("coupled_examples", text, measured=change, bound=bound, **detail))
    return findings


def _sizes(seen: _Replayer, base: list[int]) -> list[ExamFinding]:
    """The divisor stays when the data set has one record fewer; sizes around a rounding boundary are tried."""
    probe = seen.probe
    if not probe.has("resized") or probe.size is None:
        return []
    q = seen.plan.stage.sampling_probability
    span = min(max(2, math.ceil(1 / max(q, 1e-9)) + 1), 24, probe.size - len(base) - 1)
    batch = base[:4]

    def shown(size: int) -> Vector:
        if probe.left() < max(probe.cost, seen.cost):
            raise OutOfTime
        probe.rewind()
        probe.releases += 1
        released = np.asarray(probe.adapter.resized(size).clean(batch), dtype=np.float64)
        return released * (seen.plan.normaliser / seen.plan.sensitivity)

    fewer, more = probe.size - span, probe.size
    low, high = shown(fewer), shown(more)
    if _norm(high - low) <= TOLERANCE * max(_norm(high), 1e-9):
        return []  # a divisor that follows the size moves over as many records as make one more expected record
    while more - fewer > 1:
        size = (fewer + more) // 2
        middle = shown(size)
        if _norm(high - middle) > TOLERANCE * max(_norm(high), 1e-9):
            fewer, low = size, middle
        else:
            more, high = size, middle
    ratio = _norm(low) / max(_norm(high), 1e-300)
    words = f"the same records release {ratio:.4g} times as much with {fewer} records as with {more}"
    return [found("normaliser_data_size", words, records=(more,), without=(fewer,), measured=ratio, bound=1.0)]


def published_outputs(probe: Probe, plan: ExamPlan) -> tuple[list[ExamFinding], list[ExamTest], list[str]]:
    """Numbers published beside the release: one that follows the records and never varies carries no noise."""
    if not (probe.has("published") and probe.adapter.published()):
        return [], [], []  # nothing was published beside the steps so far
    batches: list[tuple[int, ...]] = [(0, 1, 2, 3, 4), (0, 1, 2, 3), (5,), ()]
    seen: list[dict[str, list[float]]] = []
    for batch in batches:
        if probe.left() < 7 * probe.cost:
            if len(seen) < 2:
                return [], [], [f"published outputs: {probe.words(6 * probe.cost)} a minibatch do not fit the budget"]
            batches = batches[: len(seen)]
            break
        values: dict[str, list[float]] = {}
        for _ in range(2):
            probe.release(batch)
            for name, value in probe.adapter.published().items():
                values.setdefault(name, []).append(float(value))
            probe.run([batch, ()])
            for name, value in probe.adapter.published().items():
                values.setdefault(f"{name} a step later", []).append(float(value))
        seen.append(values)
    findings = []
    for name in seen[0]:
        columns = [values.get(name, [math.nan]) for values in seen]
        steady = all(len(set(map(repr, column))) == 1 for column in columns)
        if steady and len({repr(column[0]) for column in columns}) > 1:
            first = next(i for i in range(1, len(columns)) if repr(columns[i][0]) != repr(columns[0][0]))
            text = f"{name} is {columns[0][0]:.6g} for one minibatch and {columns[first][0]:.6g} for another"
            findings.append(
                found(
                    "private_output", f"{text}, the same at every repetition", records=batches[0],
                    without=batches[first], measured=columns[0][0], bound=columns[first][0], output=name,
                )
            )  # fmt: skip
    test = ExamTest(
        name="published_outputs", group="replay", evidence=f"{6 * len(batches)} noisy steps on {len(batches)} batches",
        excludes="a published number that is a function of the records alone", power=1.0,
    )  # fmt: skip
    return findings, [test], []
