"""Tests of a step that is random even without noise, as under dropout or with fresh directions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from dpaudit.attacks.examiner.adapter import UNDEFINED
from dpaudit.attacks.examiner.alone import excess, norm
from dpaudit.attacks.examiner.sums import TOLERANCE, Sums
from dpaudit.attacks.examiner.values import ExamFinding, found

REPEATS = 3
"""Replays of every minibatch."""


def random_step(seen: Sums) -> list[ExamFinding]:
    """Test that every replay of one record has norm at most C, and that two large records release more than one."""
    adversaries = {name: i for name, i in seen.probe.adversaries.items() if name not in UNDEFINED}
    candidates = adversaries | {f"record {i}": i for i in seen.base}
    norms: dict[str, float] = {}
    for name, index in candidates.items():
        batch = (index,) * len(seen.fillers) if seen.swaps else (index,)
        share = [norm(seen.fresh(batch)) / len(batch) for _ in range(REPEATS)]
        norms[name] = max(share)
        seen.cache.setdefault(batch, seen.fresh(batch))
    limit = 1 + TOLERANCE + seen.slack(2)
    bad = {name: value for name, value in norms.items() if not value <= limit}
    findings = [excess(seen, candidates, norms, bad)] if bad else []
    if not bad and not seen.swaps:
        findings += _pair(seen, adversaries, norms)
    return findings


def _pair(seen: Sums, adversaries: dict[str, int], norms: dict[str, float]) -> list[ExamFinding]:
    """Two records that each release C in much the same direction, and no more than C together: one clip for both."""
    large = [i for name, i in adversaries.items() if 0.9 < norms[name] < 1.1]
    for first, second in itertools.pairwise(large):
        one, other = seen.fresh((first,)), seen.fresh((second,))
        cosine = float(one @ other) / max(norm(one) * norm(other), 1e-300)
        if one.size < 8 or cosine < 0.3:
            continue
        together = [norm(seen.fresh((first, second))) for _ in range(REPEATS)]
        if max(together) > 1.05 or not all(map(math.isfinite, together)):
            continue
        due = float(np.sqrt(2 + 2 * cosine))
        witness: dict[str, Any] = {"records": (first, second), "without": (second,)}
        words = f"two records with large losses release {max(together):.3g} C together, where about {due:.3g} C are due"
        return [found("clipped_after_averaging", words, measured=max(together), bound=due, **witness)]
    return []
