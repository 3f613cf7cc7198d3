"""The in-run audit of a certificate: an observer of every update, made again from its evidence, and forged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpaudit.certificates.in_run import observed_in_run
from dpaudit.certificates.statement import Statement
from dpaudit.certificates.verify.in_run import result_steps
from dpaudit.certificates.verify.report import DIFFERENT
from dpaudit.storage.commitment import canonical_json, sha256_bytes
from tests.certificates.forgery import Forgery
from tests.certificates.in_run_case import case_of, replan, write_in_run

New = Callable[[Path], Forgery]


@pytest.fixture(scope="module")
def watched(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The honest run, whose model attack shows nothing, with an in-run audit: consistent at level 3."""
    forgery = Forgery(honest, tmp_path_factory.mktemp("watched") / "release")
    return write_in_run(forgery, case_of(forgery.ledger())).seal().folder


def rewrite_evidence(forgery: Forgery, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change in_run.json, with the digest that binds it made to fit."""
    path = forgery.folder / "in_run.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(canonical_json(value) + b"\n")
    forgery.body["in_run"]["evidence_digest"] = sha256_bytes(path.read_bytes())


def missed(evidence: dict[str, Any]) -> None:
    """A control that the audit does not convict."""
    for counts in evidence["control"][0]["counts"]:
        counts["inside"] = 0


def test_an_in_run_audit_carries_the_run_to_level_three(watched: Path, new: New) -> None:
    report = new(watched).verify()
    assert report.ok, report.to_text()
    assert (report.verdict, report.level_reached, report.exit_code) == ("consistent", 3, 0)
    assert report.power_lower is not None and report.power_lower >= 0.8
    standings = {line.name: line.standing for line in report.lines}
    # The model attack has no control: its own line stays open, and says so.
    assert standings["released_model"] == "not shown" and standings["implementation"] == "shown"
    assert new(watched).verify('minimum_power = 0.8\nminimum_level = 3\nverdicts = ["consistent"]').exit_code == 0


def test_without_its_evidence_it_supports_nothing(watched: Path, new: New) -> None:
    forgery = new(watched)
    (forgery.folder / "in_run.json").unlink()
    report = forgery.verify()
    assert report.ok and (report.verdict, report.level_reached) == ("inconclusive", 2)
    assert report.power_lower is None


def test_a_dead_observer_is_never_consistent(honest: Path, new: New) -> None:
    forgery = new(honest)
    report = write_in_run(forgery, case_of(forgery.ledger(), shuffled=True)).seal().verify()
    assert report.ok and (report.verdict, report.level_reached) == ("inconclusive", 2)
    # Called alive, with the power of a control that was alive.
    result = forgery.body["in_run"]["result"]
    result.update(alive=True, power_lower=0.99)
    result["findings"] = [row for row in result["findings"] if row["status"] == "note"]
    assert {"in_run.result", "in_run.findings", "verdict", "level"} <= set(forgery.seal().different())


def test_less_noise_than_declared_is_convicted(honest: Path, new: New) -> None:
    forgery = new(honest)
    report = write_in_run(forgery, case_of(forgery.ledger(), noise_factor=0.5)).seal().verify()
    assert (report.verdict, report.level_reached, report.exit_code) == ("violated", 0, 1)
    assert {line.name: line.standing for line in report.lines}["implementation"] == "against the claim"


def _numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every number and truth in a plain value."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in _numbers(item, (*path, key))]
    if isinstance(value, list):
        return [p for number, item in enumerate(value) for p in _numbers(item, (*path, number))]
    return [path] if isinstance(value, (int, float)) else []


def test_every_edited_number_is_a_difference(watched: Path, new: New) -> None:
    body = Statement.from_plain(new(watched).statement).predicate
    assert body.in_run is not None
    original = json.dumps(body.in_run.result)
    paths = [p for p in _numbers(json.loads(original)) if p[:1] != ("findings",)]
    assert len(paths) > 30
    assert not any(step.outcome == DIFFERENT for step in result_steps(body, body.in_run.result, body.in_run.result))
    for path in paths:
        result = json.loads(original)
        place = result
        for key in path[:-1]:
            place = place[key]
        old = place[path[-1]]
        place[path[-1]] = (not old) if isinstance(old, bool) else old + max(1e-3, abs(old) * 1e-3)
        assert result_steps(body, result, json.loads(original))[0].outcome == DIFFERENT, path


def test_an_edited_bound_is_a_difference_where_all_else_is_made_to_fit(watched: Path, new: New) -> None:
    forgery = new(watched)
    forgery.body["in_run"]["result"]["primary"]["epsilon_lower"] += 0.5
    assert "in_run.result" in forgery.seal().different()


@pytest.mark.parametrize(
    "change, step",
    [
        (lambda f: f.body["in_run"].update(coins="A" + f.body["in_run"]["coins"][1:]), "in_run.coins"),
        (lambda f: f.body["in_run"].update(nonce="0" * 64), "in_run.coins"),
        (lambda f: f.body["in_run"].update(evidence_digest="0" * 64), "in_run.evidence"),
        (lambda f: rewrite_evidence(f, lambda e: e["energy"].update(sizes=[49_999])), "in_run.result"),
        (
            lambda f: rewrite_evidence(f, missed),
            "in_run.result",
        ),
        (lambda f: rewrite_evidence(f, lambda e: e["control"].pop()), "in_run.result"),
        (lambda f: rewrite_evidence(f, lambda e: e.update(energy=None)), "in_run.result"),
        (lambda f: rewrite_evidence(f, lambda e: e.update(scores="AAAA" + e["scores"][4:])), "in_run.result"),
        (lambda f: rewrite_evidence(f, lambda e: e.update(coordinates="BA" + e["coordinates"][2:])), "in_run.coins"),
        (lambda f: f.body["audit"]["plan"]["in_run"].update(m=3_999), "audit.plan"),
        (lambda f: f.body["audit"]["plan"]["in_run"]["control"].update(noise_factor=0.9), "audit.plan"),
    ],
)
def test_edited_evidence_is_a_difference(watched: Path, new: New, change: Callable[[Forgery], Any], step: str) -> None:
    forgery = new(watched)
    change(forgery)
    assert step in forgery.seal(verdict=False).different()
    assert forgery.verify().verdict == "invalid_evidence"


def test_an_announced_observer_cannot_be_left_out(watched: Path, new: New) -> None:
    forgery = new(watched)
    del forgery.body["in_run"]
    (forgery.folder / "in_run.json").unlink()
    report = forgery.seal().verify()
    assert "in_run.plan" in forgery.different() and report.derived_verdict == "invalid_audit"
    assert report.exit_code == 3 and report.level_reached == 0


def test_an_observer_that_no_plan_announces_is_refused(watched: Path, new: New) -> None:
    forgery = new(watched)
    del forgery.body["audit"]["plan"]["in_run"]
    replan(forgery)
    assert "in_run.plan" in forgery.seal().different()


def test_an_unbound_evidence_file_is_a_difference(honest: Path, watched: Path, new: New) -> None:
    forgery = new(honest)
    (forgery.folder / "in_run.json").write_bytes((watched / "in_run.json").read_bytes())
    assert "in_run.evidence" in forgery.different()


def test_steps_left_out_of_the_record_support_nothing(honest: Path, new: New) -> None:
    """A run could leave its noiseless steps out of the energy record; only an unclean stop explains missing ones."""
    forgery = new(honest)
    write_in_run(forgery, case_of(forgery.ledger()))
    forgery.body["in_run"]["result"]["steps"] = 0
    body = Statement.from_plain(forgery.seal().statement).predicate
    observed = observed_in_run(body, 2.0)
    assert observed is not None and "no unclean stop explains" in observed.weak[0]
    stopped = body.replaced(deviations=("The run stopped uncleanly 1 times; each stop is charged.",))
    again = observed_in_run(stopped, 2.0)
    assert again is not None and again.supports


def test_an_observer_of_another_claim_is_invalid(watched: Path, new: New) -> None:
    forgery = new(watched)
    forgery.body["audit"]["plan"]["in_run"]["claimed_epsilon"] = 30.0
    replan(forgery)
    assert "in_run.plan" in forgery.seal().different()


def test_a_section_with_100_000_canaries_stays_small(watched: Path, new: New) -> None:
    """Bits for coins: the certificate grows by an eighth of a byte a canary, times 4/3 for base64."""
    forgery = new(watched)
    assert len(forgery.body["in_run"]["coins"]) == -(-4_000 // 8 // 3) * 4
    assert len(canonical_json(forgery.body["in_run"])) < 12_000
