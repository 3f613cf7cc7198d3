"""Tests on minibatches of one record: its contribution must have norm at most C, and the cause is named where not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpaudit.attacks.examiner.adapter import SCALED, UNDEFINED, Vector
from dpaudit.attacks.examiner.sums import TOLERANCE, Sums
from dpaudit.attacks.examiner.values import ExamFinding, found

FEW = 64
"""Released numbers, at most, that are looked at as directions of their own."""


def norm(vector: Vector) -> float:
    """‖x‖, also of vectors that are not finite."""
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(vector))


def alone(seen: Sums, candidates: dict[str, int]) -> list[ExamFinding]:
    """A batch of one record has norm at most C, also for adversarial records."""
    norms = {}
    for name, index in candidates.items():
        vector, bound = seen.alone(index)
        norms[name] = norm(vector) / bound
    _stands(seen, norms)
    limit = 1 + TOLERANCE + seen.slack(2)
    bad = {name: value for name, value in norms.items() if not value <= limit}
    return [excess(seen, candidates, norms, bad)] if bad else []


def _stands(seen: Sums, norms: dict[str, float]) -> None:
    """Note the bound that records with large losses reach alike."""
    reached = [norms[name] for name in SCALED if name in norms]
    if len(reached) > 1 and 0 < max(reached) < math.inf and max(reached) - min(reached) <= 0.01 * max(reached):
        seen.footing.bound = max(reached)


def excess(seen: Sums, candidates: dict[str, int], norms: dict[str, float], bad: dict[str, float]) -> ExamFinding:
    """What a contribution above C is called."""
    worst = max(bad, key=lambda name: bad[name] if math.isfinite(bad[name]) else math.inf)
    detail: dict[str, Any] = {
        "records": (candidates[worst],), "without": (), "measured": norms[worst], "bound": 1.0, "kind": worst,
    }  # fmt: skip
    moves = f"{worst} alone moves the sum by {norms[worst]:.4g} C"
    if not math.isfinite(norms[worst]):
        return found("non_finite", f"{worst} alone releases a vector of norm {norms[worst]}", **detail)
    grown = _growth(seen)
    if grown is not None:
        names, every = grown
        if not every:
            text = f"{moves}, growing with the loss in {', '.join(names[:4])}"
            return found("unclipped_parameter", text, parameters=names, **detail)
        return found("unclipped", f"{moves}, growing with the loss", **detail)
    if _apart(seen, candidates[worst]):
        size = seen.alone(candidates[worst])[0].size
        text = f"{moves}: each of its {size} numbers is clipped at C by itself, and the plan has one"
        return found("ledger_directions", text, **detail)
    if _scaled(seen) is None or not seen.probe.adversaries:
        return found("norm_underestimated", f"{moves}; no record of a larger loss shows whether it grows", **detail)
    return found("norm_underestimated", f"{moves}, however large its loss", **detail)


def _apart(seen: Sums, index: int) -> bool:
    """Whether a few numbers that are no parameters all stand at C: directions that the plan does not count."""
    vector = seen.alone(index)[0]
    if seen.probe.names_blocks or seen.plan.stage.clip is not None or not 1 < vector.size <= FEW:
        return False
    sizes = np.abs(vector) * (seen.plan.sensitivity / seen.plan.clipping_norm)
    return bool(np.all(sizes <= 1 + 0.01) and np.mean(sizes > 1 - 0.01) >= 0.5)


def _growth(seen: Sums) -> tuple[list[str], bool] | None:
    """Blocks whose contribution grows with the loss beyond C; whether that is all of them; None where none does."""
    pair = _scaled(seen)
    if pair is None:
        return None
    (first, second), ratio = (seen.alone(i)[0] for i in pair[:2]), pair[2]
    blocks = seen.probe.blocks(first.size)
    grown, live = [], 0
    for name, part in blocks:
        before, after = norm(first[part]), norm(second[part])
        live += before > 1e-9 or after > 1e-9
        if after > 1 and after > ratio * before:
            grown.append(name)
    if not grown:
        return None
    return grown, len(grown) >= max(live, 1)


def _scaled(seen: Sums) -> tuple[int, int, float] | None:
    """Two records of which the second has the larger loss, and the growth that is no chance: by their roles, or by the
    smallest and the largest contribution of all where the adversaries have no roles."""
    adversaries = seen.probe.adversaries
    known = [adversaries.get(name) for name in SCALED]
    if None not in known:
        return known[0], known[1], 3.0  # type: ignore[return-value]
    plain = [i for name, i in adversaries.items() if name not in UNDEFINED]
    sizes = {i: norm(seen.alone(i)[0]) for i in [*seen.base, *plain]}
    large = [i for i in sizes if sizes[i] > 1 and math.isfinite(sizes[i])]
    if len(large) < 1:
        return None
    top = max(large, key=lambda i: sizes[i])
    # Where a clip acts at a wrong bound, the largest contributions all have that norm, so the two largest tell the
    # bound.
    rest = [i for i in sizes if i != top and math.isfinite(sizes[i])]
    second = max(rest, key=lambda i: sizes[i], default=top)
    return (second, top, 3.0) if second != top else None
