"""Level 4: signed, dated, and signed by somebody other than the trainer; only with keys that the reader names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import dpaudit.certificates.verify.verify as verify
from dpaudit.certificates.sign import countersign, envelope_path, new_key_pair, sign
from dpaudit.certificates.verify.report import DIFFERENT, EQUAL, RECORDED, Outcome, Step
from tests.certificates.forgery import Forgery

New = Callable[[Path], Forgery]
TRAINER, AUDITOR, STRANGER = (new_key_pair() for _ in range(3))
POLICY = 'trusted_keys = ["trainer.pem"]\ncountersigners = ["auditor.pem"]\n'


def dated(monkeypatch: pytest.MonkeyPatch, plan: Outcome = EQUAL, certificate: Outcome = EQUAL) -> None:
    """Tokens of an authority, as if they stood beside the certificate."""
    steps = [Step("timestamp.audit_plan", plan, "dated"), Step("timestamp.certificate", certificate, "dated")]
    monkeypatch.setattr(verify, "timestamp_steps", lambda folder, roots: steps)


def signed(release: Path, new: New, *keys: bytes) -> Forgery:
    forgery = new(release)
    path = forgery.folder / "certificate.json"
    data, envelope = path.read_bytes(), None
    for key in keys:
        envelope = sign(data, key) if envelope is None else countersign(envelope, data, key)
    if envelope is not None:
        envelope_path(path).write_bytes(envelope)
    (forgery.folder / "trainer.pem").write_bytes(TRAINER[1])
    (forgery.folder / "auditor.pem").write_bytes(AUDITOR[1])
    return forgery


def test_level_four(deserved: Path, new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    dated(monkeypatch)
    forgery = signed(deserved, new, TRAINER[0], AUDITOR[0])
    report = forgery.verify(POLICY + "minimum_level = 4\n")
    assert (report.level_reached, report.verdict, report.exit_code) == (4, "consistent", 0), report.to_text()
    assert report.lines[-1].standing == "shown" and "countersigned" in report.lines[-1].text
    # Without the reader's own keys the same folder is at level 3: nothing in it says who signed.
    assert forgery.verify().level_reached == 3


@pytest.mark.parametrize(
    "keys, rules, word",
    [
        ((), POLICY, "no key that you trust"),
        ((TRAINER[0],), POLICY, "nobody other than the signer"),
        ((AUDITOR[0],), POLICY, "no key that you trust"),
        ((TRAINER[0], STRANGER[0]), POLICY, "nobody other than the signer"),
        ((TRAINER[0],), POLICY.replace("auditor", "trainer"), "nobody other than the signer"),
        ((TRAINER[0], AUDITOR[0]), POLICY.splitlines()[0], "nobody other than the signer"),
    ],
)
def test_any_signature_that_is_missing_leaves_level_three(
    deserved: Path, new: New, monkeypatch: pytest.MonkeyPatch, keys: tuple[bytes, ...], rules: str, word: str
) -> None:
    dated(monkeypatch)
    report = signed(deserved, new, *keys).verify(f"{rules}\nminimum_level = 4\n")
    assert report.level == 3 and report.exit_code != 0
    assert any(word in reason for reason in report.lines[-1].reasons)


@pytest.mark.parametrize("plan, certificate", [(RECORDED, EQUAL), (EQUAL, RECORDED), (DIFFERENT, EQUAL)])
def test_a_date_that_no_trusted_authority_gave_is_none(
    deserved: Path, new: New, monkeypatch: pytest.MonkeyPatch, plan: Outcome, certificate: Outcome
) -> None:
    dated(monkeypatch, plan, certificate)
    report = signed(deserved, new, TRAINER[0], AUDITOR[0]).verify(POLICY)
    assert report.level_reached < 4 and any("no authority" in reason for reason in report.lines[-1].reasons)


def test_signatures_lift_nothing_below_level_three(
    honest: Path, convicted: Path, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated(monkeypatch)
    assert signed(honest, new, TRAINER[0], AUDITOR[0]).verify(POLICY).level_reached == 2
    report = signed(convicted, new, TRAINER[0], AUDITOR[0]).verify(POLICY)
    assert (report.level_reached, report.verdict) == (0, "violated")
