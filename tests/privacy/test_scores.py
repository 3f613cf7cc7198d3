"""Scores beside their coins: what is refused, once, when the value is made."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.auditing import Scores
from dpaudit.privacy.errors import DpauditError, InvalidEvidence, InvalidValue


@pytest.mark.parametrize(
    "ids, values, members, error, words",
    [
        (["a", "a"], [0.0, 1.0], [0, 1], InvalidEvidence, "id 'a' appears more than once"),
        (["a", "b"], [0.0, np.nan], [0, 1], InvalidEvidence, "1 NaN among 2"),
        (["a", "b"], [[0.0, 1.0]], [0, 1], InvalidValue, "one-dimensional"),
        (["a", "b"], [0.0, 1.0], [0, 2], InvalidEvidence, "other than 0 and 1"),
        (["a", "b"], [0.0, 1.0], [0], InvalidValue, "member has shape"),
        (["a", "b", "c"], [0.0, 1.0], [0, 1], InvalidValue, "3 ids stand beside 2 scores"),
        ([], [], [], InvalidEvidence, "empty"),
    ],
)
def test_what_is_no_set_of_scores_is_refused(
    ids: list[str], values: list[float], members: list[int], error: type[DpauditError], words: str
) -> None:
    with pytest.raises(error, match=words):
        Scores(ids, values, members)


def test_later_changes_of_the_callers_arrays_do_not_reach_it() -> None:
    values, members = np.array([3.0, 1.0, 1.0]), np.array([True, False, False])
    scores = Scores(["a", "b", "c"], values, members)
    values[0], members[0] = 0.0, False
    assert scores.values.tolist() == [3.0, 1.0, 1.0] and scores.member_count == 1
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0] = 7.0
    assert scores.ties == 2 and not scores.constant and not scores.one_class


def test_taken_rows_keep_ids_scores_and_coins_together() -> None:
    scores = Scores(["a", "b", "c"], [3.0, 1.0, 2.0], [1, 0, 1]).take(np.array([2, 0]))
    assert (scores.ids, scores.values.tolist(), scores.members.tolist()) == (("c", "a"), [2.0, 3.0], [True, True])
