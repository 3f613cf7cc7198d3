"""ε under the relation that is not claimed: verify computes it again, and a number that differs is a difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpaudit.certificates.other_relation import other_relation
from dpaudit.certificates.verify.report import Step
from tests.certificates.forgery import Forgery

NAME = "accounting.other_relation"


def found(forgery: Forgery) -> list[Step]:
    return [step for step in forgery.seal().verify().steps if step.name == NAME]


def stated(forgery: Forgery, *, sigma: float) -> str:
    """The sentence for the embedded ledger with another noise multiplier."""
    stage = forgery.body["ledger"]["stages"][0]
    true, stage["noise_multiplier"] = stage["noise_multiplier"], sigma
    text = other_relation(forgery.ledger(), delta=forgery.body["claim"]["delta"], accountants=("rdp",))
    stage["noise_multiplier"] = true
    return text


@pytest.mark.parametrize("accountants", [("rdp",), ("prv", "rdp")])
def test_the_number_is_made_again(honest: Path, new: Callable[[Path], Forgery], accountants: tuple[str, ...]) -> None:
    forgery = new(honest)
    assert found(forgery) == []  # an older certificate states none
    forgery.account(accountants)
    forgery.body["provenance"]["other_relation"] = stated(forgery, sigma=1.6)
    (step,) = found(forgery)
    assert step.outcome == "recomputed and equal", step
    forgery.body["provenance"]["other_relation"] = stated(forgery, sigma=1.61)
    (step,) = found(forgery)
    assert step.outcome == "recomputed and different", step
    assert forgery.verify().exit_code == 3


def test_a_bound_where_nobody_has_one_is_a_difference(honest: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(honest)
    bounded = stated(forgery, sigma=1.6)
    stage = {"sampling": "without_replacement", "sampling_probability": 0.1}
    forgery.body["ledger"]["stages"][0].update(stage)
    forgery.body["ledger"]["relation"] = forgery.body["claim"]["relation"] = "replace_one"
    forgery.body["provenance"]["other_relation"] = bounded.replace("replace_one", "add_or_remove_one").replace(
        "replaced by another", "added or removed"
    )
    (step,) = found(forgery)
    assert step.outcome == "recomputed and different", step
