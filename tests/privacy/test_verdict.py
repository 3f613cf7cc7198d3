"""One tolerance, one tightest bound, one verdict, and findings whose status is never ignored."""

from __future__ import annotations

import itertools
import json

import pytest

from dpaudit import Guarantee, InvalidEvidence, InvalidValue, Relation
from dpaudit.privacy.finding import STATUSES, Finding, finding_status
from dpaudit.privacy.guarantee import smallest_upper, tightest
from dpaudit.privacy.tolerance import exceeds
from dpaudit.privacy.verdict import Verdict, decide, worse


def guarantee(name: str, upper: float | None, *, rigorous: bool = True) -> Guarantee:
    return Guarantee(
        accountant=name,
        version="1",
        delta=1e-5,
        relation=Relation.ADD_OR_REMOVE_ONE,
        epsilon_upper=upper,
        epsilon_estimate=None if rigorous else 0.5,
        rigorous=rigorous,
    )


def test_the_smallest_certified_bound_decides_whatever_the_order() -> None:
    every = [guarantee("a", 3.0), guarantee("b", 2.0), guarantee("c", None), guarantee("e", None, rigorous=False)]
    for order in itertools.permutations(every):
        best = tightest(order)
        assert best is not None and best.accountant == "b" and smallest_upper(order) == 2.0
    rows = [{**g.to_dict()} for g in every]
    assert smallest_upper(rows) == 2.0
    assert smallest_upper([{"rigorous": False, "epsilon_upper": 0.1}, {"rigorous": True, "epsilon_upper": "inf"}]) == (
        float("inf")
    )
    assert tightest([]) is None and smallest_upper([guarantee("c", None)]) is None


def test_one_tolerance() -> None:
    assert not exceeds(3.0, 3.0) and not exceeds(3.0 * (1 + 1e-10), 3.0)
    assert exceeds(3.0000005, 3.0) and not exceeds(float("inf"), float("inf")) and exceeds(float("inf"), 3.0)


def test_precedence() -> None:
    def found(status: str) -> Finding:
        return Finding(name="x", status=status, claim="audit", text="")

    for first, second in itertools.product(list(Verdict)[:-1], repeat=2):
        assert decide([found(first), found(second)], power=1.0) == worse(first, second)
    assert decide([found("note")], power=0.8) == "consistent"
    assert decide([found("note")], power=0.7999) == decide([], power=None) == "inconclusive"
    assert decide([], power=float("nan")) == "inconclusive"


def test_status_of_a_recorded_finding_is_never_ignored() -> None:
    for status in STATUSES:
        assert finding_status({"name": "x", "status": status}) == status
    assert finding_status({"name": "x", "verdict": "note"}) == "note"
    for row in (
        {"name": "x", "status": "Violated"},
        {"name": "x", "status": "fine"},
        {"name": "x", "status": ["violated"]},
        {"name": "x", "text": "no status"},
        {"name": "x", "status": "note", "verdict": "violated"},
        {"status": "note"},
        "violated",
        None,
    ):
        with pytest.raises(InvalidEvidence):
            finding_status(row)
    with pytest.raises(InvalidValue):
        Finding(name="x", status="Violated", claim="", text="")


def test_audit_certificate_and_plan_agree_on_what_exceeds_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tolerances used to stand here: a claim of 3 with 3.0000005 accounted passed the audit alone."""
    import numpy as np

    import dpaudit.runs.prepare as prepare
    from dpaudit import PrivacyRefusal
    from dpaudit.auditing import Scores, audit, design
    from dpaudit.certificates.verdict import Compared, verdict_of, weigh
    from dpaudit.runs.config import parse_config
    from tests.runs.run_helpers import small_config

    plan = design(100, 3.0, 1e-5, relation="add_or_remove_one", unit="record")
    coins = np.arange(100) % 2
    config = parse_config(small_config(), "c.toml")
    for accounted, above in ((3.0, False), (3.0 * (1 + 1e-10), False), (3.0000005, True), (3.1, True)):
        result = audit(
            Scores([str(i) for i in range(100)], coins + 0.01 * np.arange(100), coins), plan, accounted_upper=accounted
        )
        assert any(f.status == "accounting_mismatch" for f in result.findings) == above
        weighed = weigh(
            Compared(claim_epsilon=3.0, epsilon_upper=accounted),
            audit=None,
            audit_faults=[],
            findings=[],
            run_status="complete",
        )
        assert (verdict_of(weighed).name == "accounting_mismatch") == above
        monkeypatch.setattr(prepare, "account_for", lambda *_, a=accounted, **__: (guarantee("prv", a),))
        try:
            prepare.refuse_overspending(config, None)  # type: ignore[arg-type]  # the ledger is not read
            refused = False
        except PrivacyRefusal:
            refused = True
        assert refused == above


def test_a_verdict_is_its_word_everywhere() -> None:
    """Equal to it, printed as it and written as it, in every form that reaches a file or a person."""
    for verdict, code in zip(Verdict, (1, 1, 3, 2, 0), strict=True):
        word = verdict.value
        assert verdict == word and f"{verdict} {verdict!r}" == f"{word} {word!r}" and {word: 1}[verdict] == 1
        assert json.dumps({"verdict": verdict}) == f'{{"verdict": "{word}"}}' and type(str(verdict)) is str
        assert verdict.exit_code == code and verdict.meaning.endswith((".", "here."))
    with pytest.raises(ValueError, match="private"):
        Verdict("private")
