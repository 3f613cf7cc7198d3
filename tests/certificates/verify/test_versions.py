"""Bounds stored by another version of an accountant, and by one that is not installed."""

from __future__ import annotations

from typing import Any

import pytest

from dpaudit.certificates.verify.accounting import _compare
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL


def row(upper: Any, version: str = "1", **more: Any) -> dict[str, Any]:
    fields = {"accountant": "prv", "epsilon_lower": None, "epsilon_estimate": None, "rigorous": True}
    return {**fields, "epsilon_upper": upper, "version": version, **more}


@pytest.mark.parametrize(
    ("stored", "fresh", "outcome"),
    [
        (row(2.0), row(2.0 + 1e-7), EQUAL),
        (row(2.0), row(2.001), DIFFERENT),
        (row(2.001), row(2.0), DIFFERENT),
        (row(2.0, "0"), row(2.001), EQUAL),
        (row(2.0, "0"), row(2.01), DIFFERENT),
        (row(2.015, "0"), row(2.0), EQUAL),
        (row(2.03, "0"), row(2.0), DIFFERENT),
        (row("inf"), row(float("inf")), EQUAL),
        (row("inf"), row(2.0), DIFFERENT),
        (row(2.0), row(None), DIFFERENT),
        (row(2.0), None, ABSENT),
        (row(2.0), {"refused": "shuffle"}, DIFFERENT),
        (row(2.0), row(None, rigorous=False, epsilon_estimate=2.0), DIFFERENT),
    ],
)
def test_stored_against_recomputed(stored: dict[str, Any], fresh: dict[str, Any] | None, outcome: str) -> None:
    assert _compare(stored, fresh).outcome == outcome
