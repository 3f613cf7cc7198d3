"""Dead and reversed scores are told apart in words; neither decides anything, and nothing is turned round."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.auditing import Scores, audit, design
from dpaudit.auditing.liveness import liveness


def simulate(m: int, mu: float, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    member = rng.integers(0, 2, m)
    return [f"c{i}" for i in range(m)], rng.normal(size=m) + mu * member, member


@pytest.mark.parametrize("mu", [3.0, 1.0, 0.4])
@pytest.mark.parametrize("coins", ["asserted", "none"])
def test_reversed_scores_are_called_reversed_and_never_flipped(mu: float, coins: str) -> None:
    ids, scores, member = simulate(1000, mu)
    plan = design(1000, 4.0, 1e-5, relation="add_or_remove_one", unit="record")
    result = audit(Scores(ids, -scores, member), plan, coins=coins, secondary=False)
    (found,) = [f for f in result.findings if f.name in ("reversed_scores", "null_scores")]
    assert result.verdict == "inconclusive" and found.name == "reversed_scores"
    assert "look reversed" in found.text and "wrongly" in found.text and "look reversed" in result.summary
    assert "live attack" not in found.text
    assert not result.epsilon_lower and result.auc is not None and result.auc["value"] < 0.5


def test_reversed_scores_stay_inconclusive_under_a_strong_control() -> None:
    from dpaudit.auditing import Control

    ids, scores, member = simulate(1000, 3.0)
    strong = Control(scores=Scores(ids, scores * 1.5, member), fault="no noise")
    plan = design(1000, 2.0, 1e-5, relation="add_or_remove_one", unit="record")
    assert audit(Scores(ids, -scores, member), plan, control=strong, secondary=False).verdict == "inconclusive"


def test_scores_without_a_direction_are_called_dead() -> None:
    _, scores, member = simulate(1000, 0.0)
    found = liveness(Scores([str(i) for i in range(len(scores))], scores, member))
    assert found is not None and found.name == "null_scores"
    _, live, member = simulate(1000, 1.0)
    assert liveness(Scores([str(i) for i in range(len(live))], live, member)) is None


def test_dead_scores_are_called_reversed_in_about_one_of_a_thousand() -> None:
    named = 0
    for seed in range(3000):
        _, scores, member = simulate(60, 0.0, seed)
        found = liveness(Scores([str(i) for i in range(len(scores))], scores, member))
        named += found is not None and found.name == "reversed_scores"
    assert 0 <= named <= 10  # 3 expected; above 10 has probability 0.0003
