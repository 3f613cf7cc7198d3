"""Keys, signatures and amendments from the command line, seen by ``verify`` with a policy."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.certificates.certificate_run import release
from tests.runs.run_helpers import run_cli

pytest.importorskip("cryptography")


def test_a_key_signs_and_a_policy_that_trusts_it_is_met(tmp_path: Path) -> None:
    certificate, key = release(tmp_path / "release"), tmp_path / "signer.pem"
    made = run_cli("sign", "--new-key", key, "--json").json
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and Path(made["public_key"]).exists()
    assert run_cli("sign", "--new-key", key).code == 64  # never overwritten
    assert run_cli("sign", certificate, "--key", key).code == 0
    assert run_cli("sign", tmp_path / "release", "--key", key).code == 0  # again: nothing changes
    envelope = json.loads((tmp_path / "release" / "certificate.dsse.json").read_bytes())
    assert len(envelope["signatures"]) == 1
    policy = tmp_path / "policy.toml"
    policy.write_text('trusted_keys = ["signer.pub.pem"]\n')
    report = run_cli("verify", certificate, "--policy", policy, "--json").json
    assert made["key_id"][:8] in report["origin"] and report["policy_failures"] == []


def test_a_second_signer_stands_beside_the_first(tmp_path: Path) -> None:
    certificate = release(tmp_path / "release")
    for name in ("a.pem", "b.pem"):
        run_cli("sign", "--new-key", tmp_path / name)
        assert run_cli("sign", certificate, "--key", tmp_path / name).code == 0
    envelope = json.loads((tmp_path / "release" / "certificate.dsse.json").read_bytes())
    assert len(envelope["signatures"]) == 2


def test_amendments_act_in_verify(tmp_path: Path) -> None:
    certificate = release(tmp_path / "release")
    said = ("--author", "A. Reviewer", "--text", "as found")
    assert run_cli("amend", certificate, "--kind", "correction", *said, "--change", "claim.unit=page").code == 0
    changed = json.loads((tmp_path / "release" / "amendments" / "0001.json").read_bytes())
    assert "page" in json.dumps(changed)
    assert run_cli("amend", certificate, "--kind", "withdrawal", *said).code == 0
    assert run_cli("verify", certificate).code == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sign",), "Give a file and --key"),
        (("amend", "x", "--kind", "note", "--author", "a", "--text", "t", "--change", "unit"), "is not PATH=VALUE"),
    ],
)
def test_usage(arguments: tuple[str, ...], words: str) -> None:
    outcome = run_cli(*arguments)
    assert outcome.code == 64 and words in outcome.error
