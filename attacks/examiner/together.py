"""Tests on several records in one minibatch: contributions add up, one divisor, one clip for each record."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpaudit.attacks.examiner.adapter import UNDEFINED, Vector
from dpaudit.attacks.examiner.alone import norm
from dpaudit.attacks.examiner.sums import COUPLING, TOLERANCE, Sums
from dpaudit.attacks.examiner.values import ExamFinding, found

SINGLE = 2.0**-23
"""Spacing of float32 at 1: a sum beside a contribution of norm n is known up to about n times this."""


def together(seen: Sums, base: list[int], *, excess: bool) -> list[ExamFinding]:
    """Test records added to others: one clip for each, one divisor whatever the batch, and contributions that add up.

    Parameters
    ----------
    excess : bool
        Whether a record alone exceeds C: what records do together then only repeats it, unless it explains it.
    """
    joint, divisor = _one_clip(seen, base), _divisor(seen, base)
    if joint is None and divisor is None:
        joint = _one_bound(seen, base)
    findings = [each for each in (joint, divisor) if each is not None]
    return findings if findings or excess else _coupling(seen, base)


def _divisor(seen: Sums, base: list[int]) -> ExamFinding | None:
    """Whether k records release 1/k of the sum of their shares."""
    if seen.swaps:
        return None  # all minibatches have one size, so there is one divisor and nothing to compare
    # The shares of few released numbers may cancel, so those first records are taken whose shares cancel least.
    group = max((base[:k] for k in range(len(base), 1, -1)), key=lambda some: norm(seen.shares(some)))
    whole, shares = seen.sum(*group), seen.shares(group)
    bound = COUPLING * max(norm(shares), 1e-12) + seen.slack(len(group) + 2)
    gap = norm(whole - shares)
    if not norm(whole * len(group) - shares) < bound < gap:
        return None
    ratio = f"the sum of {len(group)} records is 1/{len(group)} of the sum of their shares"
    witness: dict[str, Any] = {"records": tuple(group), "without": tuple(group[:-1])}
    return found("normaliser_realised_batch", ratio, measured=gap, bound=bound, **witness)


def _one_clip(seen: Sums, base: list[int]) -> ExamFinding | None:
    """Whether a record with a large loss leaves nothing of another's own direction, as one clip for both does."""
    plain = [i for name, i in seen.probe.adversaries.items() if name not in UNDEFINED]
    huge = seen.probe.adversaries.get("huge loss")
    for loud in [huge] if huge is not None else reversed(plain):
        along = seen.share(loud, 1 if seen.swaps else 0)
        if not 0.1 < norm(along) < math.inf:
            continue
        # Few released numbers have few directions, so the record with the largest part of its own is taken.
        chosen = max(base[1:], key=lambda i: norm(_across(seen.beside(i, ()), along)))
        own = norm(_across(seen.beside(chosen, ()), along))
        blurred = 8 * norm(along) * SINGLE * math.sqrt(along.size) + seen.slack(4)
        if own <= max(1e-3, 4 * blurred):
            continue  # rounding of so large a contribution hides another record's
        left = norm(_across(seen.beside(chosen, (loud,)), along))
        if left < 0.3 * own:
            words = f"beside a record with a huge loss, {left:.3g} C is left of the {own:.3g} C of record {chosen}"
            return found(
                "clipped_after_averaging", words, records=(chosen, loud), without=(loud,), measured=left, bound=own,
            )  # fmt: skip
    return None


def _one_bound(seen: Sums, base: list[int]) -> ExamFinding | None:
    """Whether records alone, and all together, release vectors of one same norm that do not add up.

    This is one clip for all of them, told without a record of a huge loss.
    """
    if seen.swaps or len(base) < 3:
        return None
    alone = [norm(seen.share(i)) for i in base]
    bound = sum(alone) / len(alone)
    near = 0.01 * bound + seen.slack(2)
    if not near < bound < math.inf or max(alone) - min(alone) > near:
        return None
    for group in (base[:2], base):
        whole, shares = seen.sum(*group), seen.shares(group)
        if abs(norm(whole) - bound) > near or norm(whole - shares) <= 0.1 * bound + seen.slack(len(group) + 2):
            return None
    words = f"{len(base)} records release {bound:.3g} C together, as each does alone, and not the sum of their shares"
    witness: dict[str, Any] = {"records": tuple(base), "without": ()}
    return found("clipped_after_averaging", words, measured=bound, bound=norm(seen.shares(base)), **witness)


def _coupling(seen: Sums, base: list[int]) -> list[ExamFinding]:
    """Whether two records, and all of them, release the sum of their shares."""
    groups = [tuple(base[:2]), tuple(base[: len(seen.fillers)] if seen.swaps else base)]
    for batch in dict.fromkeys(groups):
        whole, expected = seen.sum(*batch), seen.shares(batch)
        bound = COUPLING * max(norm(expected), 0.1) + seen.slack(2 * len(batch) + 2)
        if (moved := norm(whole - expected)) > bound:
            text = f"the sum of records {batch} differs by {moved:.3g} C from the sum of their shares"
            return [found("coupled_examples", text, records=batch, without=batch[:-1], measured=moved, bound=bound)]
    return []


def others(seen: Sums, base: list[int]) -> list[ExamFinding]:
    """Removing any one record from a batch moves the sum by at most C and leaves the others' shares alone.

    Where minibatches have one size, a record is swapped for a filler, which moves the sum by at most 2 C.
    """
    findings: list[ExamFinding] = []
    candidates = [base[0], base[-1], *(i for name, i in seen.probe.adversaries.items() if name not in UNDEFINED)]
    rest = base[1:-1][: max(len(seen.fillers) - 1, 0)] if seen.swaps else base[1:-1]
    limit = (2.0 if seen.swaps else 1.0) * (1 + TOLERANCE) + seen.slack(4)
    for index in candidates:
        step = seen.beside(index, rest)
        moved = norm(step)
        witness: dict[str, Any] = {"records": (index, *rest), "without": tuple(rest)}
        if not moved <= limit:
            text = f"removing record {index} moves the sum by {moved:.4g} C"
            findings.append(found("sensitivity", text, measured=moved, bound=limit, **witness))
        change = norm(step - seen.beside(index, ()))
        size = norm(seen.sum(*rest)) if rest else 0.0
        bound = COUPLING * max(size, 1.0) + 8 * moved * SINGLE * math.sqrt(step.size) + seen.slack(6)
        if not change <= bound:
            text = f"with record {index} present the others' shares change by {change:.3g} C"
            findings.append(found("coupled_examples", text, measured=change, bound=bound, **witness))
    return findings


def _across(vector: Vector, along: Vector) -> Vector:
    """The part of a vector at right angles to another."""
    length = max(float(along @ along), 1e-300)
    return np.asarray(vector - along * (float(vector @ along) / length), dtype=np.float64)
