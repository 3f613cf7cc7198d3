"""Timestamps of a third party: checked offline, against given roots, over exactly these bytes.

``tests/data/timestamp`` was made with ``openssl ts``: an authority below ``root.pem`` dated ``plan.json``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dpaudit.certificates.timestamp import attach_timestamp, check_timestamp, timestamp_request, timestamp_steps
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from tests import DATA
from tests.certificates.certificate_run import release
from tests.runs.run_helpers import run_cli, small_config, write_toml

pytest.importorskip("rfc3161_client")
HERE = DATA / "timestamp"
PLAN, TOKEN = (HERE / "plan.json").read_bytes(), (HERE / "plan.json.tsr").read_bytes()
ROOT, OTHER = (HERE / "root.pem").read_text(), (HERE / "other.pem").read_text()


def test_a_token_gives_its_time_digest_and_issuer() -> None:
    found = check_timestamp(PLAN, TOKEN, [OTHER, ROOT])
    assert found.time == "2026-11-26T18:57:45+00:00"
    assert found.issuer == "CN=dpaudit test TSA"
    assert found.sha256 == "e346432021b04179518d9614f3560ccd71354a4ee101ddcb893d6959a9d6301c"


@pytest.mark.parametrize(
    ("data", "token", "roots", "words"),
    [
        (PLAN + b" ", TOKEN, [ROOT], "over other bytes"),
        (PLAN, TOKEN, [OTHER], "none of the given roots"),
        (PLAN, TOKEN[:-5], [ROOT], "cannot be read"),
        (PLAN, b"", [ROOT], "cannot be read"),
        (PLAN, TOKEN.replace(b"dpaudit test TSA", b"dpaudit best TSA"), [ROOT], "timestamp"),
    ],
)
def test_anything_else_does_not_hold(data: bytes, token: bytes, roots: list[str], words: str) -> None:
    with pytest.raises(InvalidEvidence, match=words):
        check_timestamp(data, token, roots)


def test_every_changed_byte_of_the_signed_part_is_found() -> None:
    """One byte at a time, every 37th: the token never holds for another time or imprint."""
    for at in range(0, len(TOKEN), 37):
        changed = TOKEN[:at] + bytes([TOKEN[at] ^ 1]) + TOKEN[at + 1 :]
        try:
            found = check_timestamp(PLAN, changed, [ROOT])
        except InvalidEvidence:
            continue
        assert found == check_timestamp(PLAN, TOKEN, [ROOT])  # a byte outside what is signed


def test_roots_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidValue, match="no PEM certificates"):
        check_timestamp(PLAN, TOKEN, ["not a certificate"])


def test_steps_say_who_was_trusted(tmp_path: Path) -> None:
    assert timestamp_steps(tmp_path, [ROOT]) == []
    shutil.copy(HERE / "plan.json", tmp_path / "audit_plan.json")
    shutil.copy(HERE / "plan.json.tsr", tmp_path / "audit_plan.json.tsr")
    (told,) = timestamp_steps(tmp_path, [])
    assert told.outcome == "recorded" and "2026-11-26" in told.detail
    (proved,) = timestamp_steps(tmp_path, [ROOT])
    assert proved.outcome == "recomputed and equal" and "existed by 2026-11-26T18:57:45" in proved.detail
    (tmp_path / "audit_plan.json").write_bytes(PLAN + b" ")
    (wrong,) = timestamp_steps(tmp_path, [ROOT])
    assert wrong.outcome == "recomputed and different"


def test_verify_checks_a_token_against_the_policy(tmp_path: Path) -> None:
    path = release(tmp_path / "release")
    (path.parent / "audit_plan.json.tsr").write_bytes(TOKEN)  # of another plan
    policy = tmp_path / "policy.toml"
    shutil.copy(HERE / "root.pem", tmp_path / "root.pem")
    policy.write_text('timestamp_roots = ["root.pem"]\n')
    steps = {s.name: s for s in verify_certificate(path, policy=policy).steps}
    assert steps["timestamp.audit_plan"].outcome == "recomputed and different"
    assert {s.name: s.outcome for s in verify_certificate(path).steps}["timestamp.audit_plan"] == "recorded"


def test_a_token_is_kept_only_when_it_holds(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(PLAN)
    assert timestamp_request(plan).read_bytes()[:1] == b"\x30"  # DER
    with pytest.raises(InvalidEvidence):
        attach_timestamp(plan, HERE / "plan.json.tsr", [OTHER])
    assert not (tmp_path / "plan.json.tsr").exists()
    attach_timestamp(plan, HERE / "plan.json.tsr", [ROOT])
    assert (tmp_path / "plan.json.tsr").read_bytes() == TOKEN


def test_a_configuration_freezes_its_plan_without_a_step_and_goes_on_from_there(tmp_path: Path) -> None:
    config, run = write_toml(tmp_path / "c.toml", small_config()), tmp_path / "run"
    first = run_cli("timestamp", config, "--out", run)
    assert first.code == 0 and "curl" in first.output
    plan = run / "release" / "audit_plan.json"
    frozen = plan.read_bytes()
    assert not (run / "release" / "ledger.jsonl").exists() and plan.with_name("audit_plan.json.tsq").exists()
    assert run_cli("timestamp", config, "--out", run).code == 0
    assert plan.read_bytes() == frozen
    assert run_cli("timestamp", config).code == 64
    assert run_cli("timestamp", plan, "--token", HERE / "plan.json.tsr").code == 64
