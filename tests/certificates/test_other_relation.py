"""ε under the relation that is not claimed, from the ledger alone."""

from __future__ import annotations

import pytest

from dpaudit import InvalidEvidence, Ledger, Stage, account
from dpaudit.certificates.other_relation import other_relation, stated_upper
from dpaudit.privacy.rounding import upper_text

STAGE = Stage(sampling_probability=1.0, noise_multiplier=10.0, steps=100, sampling="none")


@pytest.mark.parametrize(
    ("relation", "same_as", "sigma", "words"),
    [
        # Without sampling, replacing a record moves the sum by twice as much: half the noise, in closed form.
        ("add_or_remove_one", "add_or_remove_one", 5.0, "if one mail were replaced by another (replace_one)"),
        ("zero_out", "add_or_remove_one", 5.0, "if one mail were replaced by another (replace_one)"),
        ("replace_one", "add_or_remove_one", 10.0, "if one mail were added or removed (add_or_remove_one)"),
    ],
)
def test_the_other_promise_has_its_own_number(relation: str, same_as: str, sigma: float, words: str) -> None:
    found = other_relation(Ledger(stages=(STAGE,), relation=relation, unit="mail"), delta=1e-5, accountants=("prv",))
    twin = Stage(sampling_probability=1.0, noise_multiplier=sigma, steps=100, sampling="none")
    (expected,) = account(Ledger(stages=(twin,), relation=same_as), delta=1e-5)
    assert expected.epsilon_upper is not None
    assert found == f"epsilon <= {upper_text(expected.epsilon_upper)} at delta=1e-5 {words}"


def test_what_nobody_bounds_is_said() -> None:
    stage = Stage(sampling_probability=0.1, noise_multiplier=1.0, steps=10, sampling="without_replacement")
    ledger = Ledger(stages=(stage,), relation="replace_one", unit="mail")
    assert other_relation(ledger, delta=1e-5, accountants=("prv",)) == (
        "no accountant bounds epsilon if one mail were added or removed (add_or_remove_one)"
    )


@pytest.mark.parametrize(
    ("old", "made"),
    [
        ("replace_one", "zero_out"),
        ("epsilon <= ", "epsilon <= -"),
        ("epsilon <= ", "epsilon <= about "),
        ("delta=", "delta=1"),
        ("one mail were", "one file were"),
        (" if ", " if, in truth, "),
    ],
)
def test_words_that_promise_something_else_are_read_as_nothing(old: str, made: str) -> None:
    ledger = Ledger(stages=(STAGE,), relation="zero_out", unit="mail")
    text = "epsilon <= 17.5 at delta=1e-5 if one mail were replaced by another (replace_one)"
    assert stated_upper(text, ledger, delta=1e-5) == "17.5"
    with pytest.raises(InvalidEvidence, match="is not what is said of epsilon"):
        stated_upper(text.replace(old, made), ledger, delta=1e-5)
