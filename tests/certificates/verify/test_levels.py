"""Levels and lines of a certificate: what they need, and forgeries of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates.forgery import Forgery

New = Callable[[Path], Forgery]


def _standings(forgery: Forgery) -> dict[str, str]:
    return {line.name: line.standing for line in forgery.verify().lines}


def test_a_run_that_deserves_it_reaches_level_three(deserved: Path, new: New) -> None:
    report = new(deserved).verify()
    assert (report.level_reached, report.verdict, report.ok) == (3, "consistent", True)
    assert [line.standing for line in report.lines] == ["shown", "shown", "shown", "not shown"]
    text = report.to_text()
    assert text.index("Accounting") < text.index("Released model") < text.index("\nlevel    3 of 4")
    assert report.to_dict()["level"] == 3 and len(report.to_dict()["lines"]) == 4


def test_an_audit_without_an_examination_is_not_consistent(deserved: Path, new: New) -> None:
    forgery = new(deserved)
    forgery.body["examination"] = None
    (forgery.folder / "examination.json").unlink()
    report = forgery.seal().verify()
    assert (report.level_reached, report.verdict, report.exit_code) == (1, "inconclusive", 2)
    assert _standings(forgery)["released_model"] == "shown"


def test_an_examination_without_an_audit_reaches_level_two(honest: Path, new: New) -> None:
    report = new(honest).verify()
    assert (report.level_reached, report.verdict) == (2, "inconclusive")


@pytest.mark.parametrize("level", [0, 1, 3])
def test_a_typed_in_level_is_a_difference(honest: Path, new: New, level: int) -> None:
    forgery = new(honest)
    forgery.body["level"] = level
    assert "level" in forgery.seal(verdict=False).different()
    assert forgery.verify().level_reached == 0


def test_level_four_cannot_be_stated(deserved: Path, new: New) -> None:
    from dpaudit import InvalidEvidence

    forgery = new(deserved)
    forgery.body["level"] = 4
    with pytest.raises(InvalidEvidence, match=r"predicate\.level"):
        forgery.seal(verdict=False).verify()


@pytest.mark.parametrize("number, name", enumerate(["accounting", "implementation", "released_model", "origin"]))
def test_an_edited_line_is_a_difference(honest: Path, new: New, number: int, name: str) -> None:
    for change in ({"text": "all is well"}, {"standing": "shown", "reasons": []}, {"standing": "against the claim"}):
        forgery = new(honest)
        if {**forgery.body["lines"][number], **change} != forgery.body["lines"][number]:
            forgery.body["lines"][number].update(change)
            assert f"line.{name}" in forgery.seal(verdict=False).different(), change


def test_lines_in_another_order_or_left_out_are_differences(honest: Path, new: New) -> None:
    forgery = new(honest)
    forgery.body["lines"].reverse()
    assert {"line.accounting", "line.origin"} <= set(forgery.seal(verdict=False).different())
    for lost in (["level"], ["lines"], ["level", "lines"]):
        forgery = new(honest)
        for key in lost:
            del forgery.body[key]
        assert "level" in forgery.seal(verdict=False).different()


def test_rules_of_an_earlier_version_buy_no_verdict(honest: Path, new: New) -> None:
    """Without levels nothing is called consistent here, whichever version a certificate says it is from."""
    for rules in ({"rules": "2"}, {}):
        forgery = new(honest)
        verifier = {"name": "dpaudit", "version": "0.1.0", **rules}
        forgery.body["verifier"] = verifier
        del forgery.body["level"], forgery.body["lines"]
        forgery.body["verdict"].update(name="consistent", reasons=["no violation was found"])
        report = forgery.seal(verdict=False).verify('minimum_level = 3\nverdicts = ["consistent"]\n')
        assert report.verdict != "consistent" and report.exit_code in (1, 2, 3) and report.level_reached < 3


def test_the_chain_has_to_be_seen(deserved: Path, new: New) -> None:
    forgery = new(deserved)
    (forgery.folder / "ledger.jsonl").unlink()
    report = forgery.verify()
    assert report.ok and (report.level_reached, report.verdict) == (0, "inconclusive")
    assert "ledger.jsonl" in next(line for line in report.lines if line.name == "accounting").reasons[0]


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda e: e["excluded"].update(noise=None), "fault of σ"),
        (lambda e: e.update(tests=[t for t in e["tests"] if t["name"] != "noise_scale"]), "noise_scale"),
        (lambda e: e.update(partial=["noise"]), "cut short"),
        (lambda e: e.update(in_full=False), "in full"),
        (lambda e: e.pop("partial"), "cut short"),
        (lambda e: e.pop("excluded"), "fault of C"),
        (lambda e: e.update(config_sha256="0" * 64), "another configuration"),
        (lambda e: e.pop("config_sha256"), "which configuration"),
        (lambda e: e.update(tests=[]), "did not run"),
        (lambda e: e["tests"].append({"name": "replay (stage 1)", "excludes": "x"}), "of stage 1 did not run"),
    ],
)
def test_an_examination_that_is_not_in_full_fails_its_line(deserved: Path, new: New, change: object, word: str) -> None:
    from dpaudit.storage.commitment import canonical_json

    forgery = new(deserved)
    change(forgery.body["examination"])  # type: ignore[operator]
    (forgery.folder / "examination.json").write_bytes(canonical_json(forgery.body["examination"]) + b"\n")
    # Claimed in full all the same: the stated level, lines and verdict stay those of the run that deserves them.
    assert {"verdict", "level", "line.implementation"} <= set(forgery.seal(verdict=False).different())
    report = forgery.seal().verify()
    assert (report.level_reached, report.verdict) == (1, "inconclusive")
    implementation = next(line for line in report.lines if line.name == "implementation")
    assert any(word in reason for reason in implementation.reasons)


def test_a_loop_without_a_configuration_is_examined_by_its_owners_word(deserved: Path, new: New) -> None:
    from dpaudit.storage.commitment import canonical_json

    forgery = new(deserved)
    del forgery.body["examination"]["config_sha256"], forgery.body["provenance"]["config_sha256"]
    (forgery.folder / "examination.json").write_bytes(canonical_json(forgery.body["examination"]) + b"\n")
    implementation = next(line for line in forgery.seal().verify().lines if line.name == "implementation")
    assert implementation.standing == "shown" and "no configuration that binds it" in implementation.text


def test_a_graver_verdict_wins_over_every_level(convicted: Path, new: New) -> None:
    report = new(convicted).verify()
    assert (report.verdict, report.level_reached) == ("violated", 0)
    assert _standings(new(convicted))["released_model"] == "against the claim"


def test_a_finding_of_the_examination_cannot_be_dropped(deserved: Path, new: New) -> None:
    forgery = new(deserved)
    finding = {"name": "unclipped", "status": "violated", "claim": "step function", "text": "A record is not clipped."}
    forgery.body["examination"]["findings"] = [finding]
    forgery.body["findings"] = [finding]
    report = forgery.seal().verify()
    assert report.derived_verdict == "violated"
    forgery.body["findings"] = []
    assert {"consistency", "verdict"} <= set(forgery.seal(verdict=False).different())
