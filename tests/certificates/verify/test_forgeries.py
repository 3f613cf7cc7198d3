"""Forged certificates: nothing stated supports a verdict, and what is left out hides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidEvidence
from dpaudit.certificates.verify.report import ABSENT, EQUAL
from tests.certificates import certificate_run as run
from tests.certificates.forgery import Forgery, scores_of


def test_a_deserved_verdict_stands_and_is_not_read_into_missing_evidence(
    deserved: Path, new: Callable[[Path], Forgery]
) -> None:
    whole = new(deserved).verify()
    assert whole.verdict == "consistent" and whole.power_lower is not None and whole.power_lower >= 0.8
    for lost in (["scores.parquet"], ["control_scores.parquet"], ["scores.parquet", "control_scores.parquet"]):
        forgery = new(deserved)
        for name in lost:
            (forgery.folder / name).unlink()
        report = forgery.verify()
        assert report.ok and report.verdict == "inconclusive" and report.exit_code == 2, lost
        assert report.stated_verdict == "consistent" and report.power_lower is None
        power = next(step for step in report.steps if step.name == "audit.power")
        assert power.outcome == ABSENT and "null" in power.detail
        assert forgery.verify('verdicts = ["consistent"]').exit_code == 1


def test_power_typed_in_supports_nothing(honest: Path, new: Callable[[Path], Forgery]) -> None:
    for gone in ([], ["scores.parquet"], ["scores.parquet", "audit_plan.json", "ledger.jsonl"]):
        forgery = new(honest)
        for name in gone:
            (forgery.folder / name).unlink()
        forgery.claim_consistent()
        forgery.seal(verdict=False)
        forgery.body["verdict"].update(name="consistent", reasons=["no violation was found"])
        forgery.seal(verdict=False)
        report = forgery.verify('minimum_power = 0.8\nverdicts = ["consistent"]\n')
        assert report.exit_code in (1, 2, 3) and report.verdict != "consistent", gone
        assert any(step.name == "audit.power" and step.outcome != EQUAL for step in report.steps)


def test_a_conviction_is_not_lost_by_a_difference_in_version(convicted: Path, new: Callable[[Path], Forgery]) -> None:
    for verifier in ({}, {"version": "0.1.1"}, {"version": "9.9", "rules": "9"}):
        forgery = new(convicted)
        forgery.claim_consistent()
        forgery.result["auc"]["value"] += 1e-3
        forgery.body["verifier"].update(verifier)
        forgery.seal(verdict=False)
        forgery.body["verdict"] = {**forgery.body["verdict"], "name": "consistent", "reasons": []}
        different = forgery.seal(verdict=False).different()
        assert {"audit.result", "audit.findings", "audit.power", "audit.verdict", "verdict"} <= set(different)
        assert forgery.verify().exit_code == 3


def test_a_difference_in_version_never_leaves_numbers_that_support(
    deserved: Path, new: Callable[[Path], Forgery]
) -> None:
    forgery = new(deserved)
    forgery.body["verifier"]["version"] = "0.0.9"
    forgery.result["expected_epsilon_lower"] = 2.9
    steps = {step.name: step for step in forgery.seal(verdict=False).verify().steps}
    assert steps["audit.result"].outcome == ABSENT and "expected_epsilon_lower" in steps["audit.result"].detail
    assert steps["audit.findings"].outcome == steps["audit.power"].outcome == EQUAL


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"plan_sha256": "0" * 64}, "plan_sha256"),
        ({"config_sha256": "0" * 64}, "config_sha256"),
        ({"attack": "another"}, "attack"),
        ({"canaries_sha256": "0" * 64}, "canaries_sha256"),
    ],
)
def test_a_control_of_another_run_is_refused(
    deserved: Path, new: Callable[[Path], Forgery], changes: dict[str, str], word: str
) -> None:
    forgery = new(deserved)
    forgery.write_control(400, 40.0, runs=20, **changes)
    assert word in forgery.seal().different()["audit.power"]


def test_a_control_that_names_no_run_supports_nothing(deserved: Path, new: Callable[[Path], Forgery]) -> None:
    import pandas as pd

    forgery = new(deserved)
    path = forgery.folder / "control_scores.parquet"
    pd.read_parquet(path)[["id", "score", "member", "run"]].to_parquet(path, index=False)
    forgery.body["audit"]["control_digest"] = run.sha256_file(path)
    report = forgery.seal(verdict=False).verify()
    assert report.exit_code != 0 and report.power_lower is None
    power = next(step for step in report.steps if step.name == "audit.power")
    assert power.outcome == ABSENT and "not bound to this run" in power.detail


def test_what_an_earlier_version_called_consistent_reads_as_inconclusive(
    deserved: Path, new: Callable[[Path], Forgery]
) -> None:
    """The rule on power changed since: an honest certificate of that time is not called forged, and not consistent."""
    import pandas as pd

    forgery = new(deserved)
    path = forgery.folder / "control_scores.parquet"
    pd.read_parquet(path)[["id", "score", "member"]].to_parquet(path, index=False)
    forgery.body["audit"]["control_digest"] = run.sha256_file(path)
    forgery.body["verifier"] = {"name": "dpaudit", "version": "0.1.0"}
    del forgery.result["power_lower"]
    report = forgery.seal(verdict=False).verify()
    assert report.stated_verdict == "consistent" and report.ok and report.exit_code == 2, report.to_text()


def test_the_audited_canaries_are_no_control(deserved: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(deserved)
    ids = [row[0] for row in forgery.body["audit"]["canaries"]]
    forgery.write_control(400, 40.0, id=None)
    import pandas as pd

    path = forgery.folder / "control_scores.parquet"
    pd.read_parquet(path).assign(id=ids).to_parquet(path, index=False)
    forgery.body["audit"]["control_digest"] = run.sha256_file(path)
    assert "audited canaries" in forgery.seal().different()["audit.power"]


@pytest.mark.parametrize("status", ["Violated", "VIOLATED", "violated ", "failed", "", None, 3])
def test_an_unknown_status_is_refused(honest: Path, new: Callable[[Path], Forgery], status: Any) -> None:
    for place in ("findings", "result", "examination"):
        forgery = new(honest)
        holder = {"findings": forgery.body, "result": forgery.result, "examination": forgery.body["examination"]}[place]
        holder["findings"] = [{"name": "noise_scale", "status": status, "claim": "x", "text": "the noise is missing"}]
        forgery.body["digest"] = "0" * 64
        with pytest.raises(InvalidEvidence, match="status"):
            forgery.seal(verdict=False).verify()


def test_an_earlier_key_of_a_finding_still_counts(honest: Path, new: Callable[[Path], Forgery]) -> None:
    forgery = new(honest)
    forgery.body["findings"] = [{"name": "membership", "verdict": "violated", "text": "more was right than may be"}]
    report = forgery.seal(verdict=False).verify()
    assert report.exit_code == 3 and "violated" in forgery.different()["verdict"]


def test_the_group_claim_is_the_recomputed_one(honest: Path, new: Callable[[Path], Forgery]) -> None:
    from dpaudit.certificates.group import group_epsilon

    def grouped(stated: float | None, status: str = "complete") -> Forgery:
        forgery = new(honest)
        audit, stage = forgery.body["audit"], forgery.body["ledger"]["stages"][0]
        stage.update(noise_multiplier=6.0)
        for key in ("expected_batch_size", "public_size"):
            stage.pop(key)
        forgery.body["claim"]["epsilon"] = 0.8
        forgery.body["mechanism"]["normaliser"] = "none"
        forgery.account(("gdp",))
        true = group_epsilon(forgery.ledger(), delta=1e-5, accountants=("gdp",), copies=4)
        assert true is not None
        audit["copies"] = 4
        audit["plan"].update(copies=4, claimed_epsilon=0.8, group_epsilon=true if stated is None else stated)
        audit["plan"]["alpha_split"] = {"primary": 0.04, "declared_mechanism": 0.0, "examiner": 0.0}
        forgery.body["run_status"] = status
        forgery.body["exposure"] = None
        forgery.write_plan()
        forgery.write_ledger()
        forgery.write_scores(scores_of(forgery, 8.0))
        forgery.audit_again()
        return forgery.seal()

    true = grouped(None)
    assert true.body["verdict"]["name"] == "violated" and "audit.group_claim" not in true.different()
    for stated in (99.0, 1.0):
        forgery = grouped(stated)
        assert "audit.group_claim" in forgery.different()
        # Tested at the recomputed value, the leak convicts, whatever the plan says.
        forgery.result["verdict"] = "inconclusive"
        assert "verdict" in forgery.different() or forgery.verify().stated_verdict == "violated"
    # A run that stopped early may have planned for more, and is tested at what it cost.
    early = grouped(99.0, "unfinished")
    assert "audit.group_claim" not in early.different() and early.body["verdict"]["name"] == "violated"


def coins_none(f: Forgery) -> None:
    """Coins that open their commitment are called none, and every bound is left out."""
    f.result["design"]["coins"] = "none"
    f.result.update(findings=[], verdict="inconclusive", ceiling=None, ceiling_at_verdict=None)
    f.result["primary"] = dict.fromkeys(f.result["primary"])


def no_result(f: Forgery) -> None:
    f.body["audit"]["result"] = None


def no_digest(f: Forgery) -> None:
    f.body["audit"]["scores_digest"] = None
    f.result.update(findings=[], verdict="inconclusive")


def control_in_words(f: Forgery) -> None:
    text = "On a control with a planted fault the attack was right in 92 of 92 guesses."
    f.result["findings"].append({"name": "positive_control", "status": "note", "claim": "audit", "text": text})


@pytest.mark.parametrize("change", [coins_none, no_result, no_digest, control_in_words])
def test_a_conviction_is_not_lost_by_what_is_left_out(
    convicted: Path, new: Callable[[Path], Forgery], change: Callable[[Forgery], None]
) -> None:
    forgery = new(convicted)
    change(forgery)
    forgery.seal()
    forgery.body["verdict"].update(name="inconclusive")
    assert forgery.seal(verdict=False).verify().exit_code == 3


def test_many_runs_without_scores_support_nothing(honest: Path, new: Callable[[Path], Forgery]) -> None:
    from dpaudit.auditing import design

    forgery = new(honest)
    audit, claim = forgery.body["audit"], forgery.body["claim"]
    plan = design(
        400,
        claim["epsilon"],
        claim["delta"],
        relation=claim["relation"],
        unit=claim["unit"],
        kind="many_runs",
        attack="loss",
    )
    audit["plan"] = plan.to_dict()
    forgery.write_plan()
    forgery.write_ledger()
    forgery.write_control(2400, 40.0)
    forgery.audit_again()
    assert forgery.seal().verify().exit_code == 0  # with its scores and a control of enough runs it is deserved
    (forgery.folder / "scores.parquet").unlink()
    report = forgery.verify('minimum_power = 0.8\nverdicts = ["consistent"]\n')
    assert report.verdict == "inconclusive" and report.exit_code == 1 and report.power_lower is None
    assert forgery.verify().exit_code == 2
