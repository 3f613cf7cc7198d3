"""Bounds stored by another version of an accountant, and by one that is not installed."""

from __future__ import annotations

from typing import Any

import pytest

from dpaudit import Guarantee, Relation
from dpaudit.certificates.statement import GuaranteeModel
from dpaudit.certificates.verify.accounting import Fresh, _compare
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL

SHARED: dict[str, Any] = {"accountant": "prv", "assumption": "", "delta": 1e-5, "group_size": 1}


def row(upper: Any, version: str = "1") -> GuaranteeModel:
    """A guarantee as it stands in a certificate."""
    bounds = {"epsilon_lower": None, "epsilon_upper": upper, "epsilon_estimate": None, "rigorous": True}
    return GuaranteeModel.model_validate({**SHARED, **bounds, "relation": "zero_out", "version": version})


def made(upper: float | None, **more: Any) -> Fresh:
    """The same as it is recomputed."""
    fields = {"rigorous": True, "relation": Relation.ZERO_OUT, "version": "1", **more}
    return Fresh(guarantee=Guarantee(**{**SHARED, **fields}, epsilon_upper=upper))


@pytest.mark.parametrize(
    ("stored", "fresh", "outcome"),
    [
        (row(2.0), made(2.0 + 1e-7), EQUAL),
        (row(2.0), made(2.001), DIFFERENT),
        (row(2.001), made(2.0), DIFFERENT),
        (row(2.0, "0"), made(2.001), EQUAL),
        (row(2.0, "0"), made(2.01), DIFFERENT),
        (row(2.015, "0"), made(2.0), EQUAL),
        (row(2.03, "0"), made(2.0), DIFFERENT),
        (row("inf"), made(float("inf")), EQUAL),
        (row("inf"), made(2.0), DIFFERENT),
        (row(2.0), made(None), DIFFERENT),
        (row(2.0), Fresh(), ABSENT),
        (row(2.0), Fresh(unfinished=True), ABSENT),
        (row(2.0), Fresh(refused="shuffle"), DIFFERENT),
        (row(2.0), made(None, rigorous=False, epsilon_estimate=2.0), DIFFERENT),
    ],
)
def test_stored_against_recomputed(stored: GuaranteeModel, fresh: Fresh, outcome: str) -> None:
    assert _compare(stored, fresh).outcome == outcome
