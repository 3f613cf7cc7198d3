"""Corrections and power act on a policy: it is met before and after them, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpaudit.certificates.amendments import amend
from tests.certificates.forgery import Forgery

RULES = 'max_epsilon = 4.0\nunits = ["paragraph"]\nverdicts = ["inconclusive"]\n'


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"claim.unit": "page"}, "unit='page'"),
        ({"predicate.claim.unit": "page"}, "unit='page'"),
        ({"claim.epsilon": 99.0}, "max_epsilon"),
        ({"ledger.stages.0.noise_multiplier": 0.3}, "max_epsilon"),
        ({"verdict.name": "violated"}, "violated"),
        ({"verdict": "violated"}, "violated"),
        ({"deviations": ["the loader was not Poisson"]}, "deviates"),
        ({"claim.unitt": "page"}, "'claim.unitt'"),
        ({"claim": None}, "no claim"),
        ({"claim": "none"}, "after its corrections"),
    ],
)
def test_a_correction_acts_on_the_policy(
    honest: Path, new: Callable[[Path], Forgery], changes: dict[str, Any], word: str
) -> None:
    forgery = new(honest)
    rules = RULES + "allow_deviations = false\n"
    assert forgery.verify(rules).exit_code == 0
    amend(forgery.folder / "certificate.json", kind="correction", author="owner", text="A mistake.", changes=changes)
    report = forgery.verify(rules)
    assert report.exit_code == 1 and word in " ".join(report.policy_failures), report.policy_failures


def test_a_correction_never_makes_a_policy_laxer(honest: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(honest)
    changes = {"claim.epsilon": 0.1, "claim.unit": "user", "verdict.name": "consistent"}
    amend(forgery.folder / "certificate.json", kind="correction", author="me", text="Better.", changes=changes)
    report = forgery.verify('max_epsilon = 1.0\nunits = ["user"]\nverdicts = ["consistent"]\n')
    assert report.exit_code == 1 and len(report.policy_failures) >= 3 and report.verdict == "inconclusive"
    amend(
        forgery.folder / "certificate.json",
        kind="correction",
        author="me",
        text="Worse.",
        changes={"verdict.name": "violated"},
    )
    assert forgery.verify().verdict == "violated" and forgery.verify().exit_code == 1


def test_minimum_power_reads_the_recomputed_lower_limit(deserved: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(deserved)
    assert forgery.verify("minimum_power = 0.8\n").exit_code == 0
    forgery.write_control(400, 40.0, runs=2)
    forgery.audit_again()
    report = forgery.seal().verify('minimum_power = 0.8\nverdicts = ["inconclusive"]\n')
    assert forgery.result["power"] == 1.0 and report.exit_code == 1 and "power=" in report.policy_failures[0]
