"""Signatures, amendments and policies: who vouches, what was learnt later, and a reader's own rules."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dpaudit import InvalidValue
from dpaudit.certificates.amendments import amend, read_amendments
from dpaudit.certificates.policy import Policy, read_policy
from dpaudit.certificates.sign import envelope_path, key_id, new_key_pair, pre_authentication_encoding, sign
from dpaudit.certificates.verify.confined import verify_certificate
from tests.certificates import certificate_run as run

PRIVATE, PUBLIC = new_key_pair()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "release"
    path = run.release(folder)
    envelope_path(path).write_bytes(sign(path.read_bytes(), PRIVATE))
    (folder / "signer.pem").write_bytes(PUBLIC)
    return folder


@pytest.fixture
def release(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "release")


def policy(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def outcome(folder: Path, name: str, rules: str) -> tuple[int, str]:
    report = verify_certificate(folder, policy=policy(folder, rules))
    return report.exit_code, next(s.detail for s in report.steps if s.name == name)


TRUST = 'trusted_keys = ["signer.pem"]\n'


def test_encoding_is_that_of_the_dsse_protocol() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication_encoding(b"hello world", "http://example.com/HelloWorld") == expected


def test_trusted_signature_proves_origin(release: Path) -> None:
    report = verify_certificate(release, policy=policy(release, TRUST))
    assert report.exit_code == 2
    assert report.origin == f"signed by key {key_id(PUBLIC.decode())}"


def test_signature_without_a_trusted_key_proves_nothing(release: Path) -> None:
    report = verify_certificate(release)
    assert report.ok
    assert report.origin == "internally consistent; origin not proven"


def test_unknown_key_is_refused(release: Path) -> None:
    (release / "signer.pem").write_bytes(new_key_pair()[1])
    code, detail = outcome(release, "signature", TRUST)
    assert code == 3
    assert "unknown signer" in detail


def test_missing_signature_is_refused_by_trust(release: Path) -> None:
    envelope_path(release / "certificate.json").unlink()
    assert outcome(release, "signature", TRUST)[0] == 3


def test_replayed_signature_is_refused(release: Path, tmp_path: Path) -> None:
    other = run.release(tmp_path / "other", release_scope="all checkpoints")
    shutil.copy(envelope_path(release / "certificate.json"), envelope_path(other))
    shutil.copy(release / "signer.pem", other.parent)
    code, detail = outcome(other.parent, "signature", TRUST)
    assert code == 3
    assert "other bytes" in detail


def test_signature_moved_to_another_payload_is_refused(release: Path) -> None:
    path = release / "certificate.json"
    statement = run.load(path)
    statement["predicate"]["scope"]["release_scope"] = "all checkpoints"
    run.rewrite(path, statement)
    forged = sign(path.read_bytes(), new_key_pair()[0])
    genuine = envelope_path(path).read_bytes()
    a, b = forged.index(b'"sig":"') + 7, genuine.index(b'"sig":"') + 7
    forged = forged[:a] + genuine[b : b + 88] + forged[a + 88 :]
    envelope_path(path).write_bytes(forged)
    assert outcome(release, "signature", TRUST)[0] == 3


@pytest.mark.parametrize("content", [b"", b"{}", b'{"payload":1,"payloadType":"x","signatures":[]}', b"[[[["])
def test_broken_envelope_is_named(release: Path, content: bytes) -> None:
    envelope_path(release / "certificate.json").write_bytes(content)
    assert outcome(release, "signature", TRUST)[0] == 3


def test_amendments_form_a_chain(release: Path) -> None:
    certificate = release / "certificate.json"
    before = certificate.read_bytes()
    amend(certificate, kind="note", text="Reviewed.", author="A. Reviewer")
    amend(certificate, kind="correction", text="Unit is a page.", author="owner", changes={"claim.unit": "page"})
    assert certificate.read_bytes() == before
    assert [a.number for a in read_amendments(certificate, before)] == [1, 2]
    assert verify_certificate(release).ok
    first = release / "amendments" / "0001.json"
    first.write_bytes(first.read_bytes().replace(b"Reviewed", b"Rewieved"))
    report = verify_certificate(release)
    assert report.exit_code == 3
    assert any("chain is broken" in s.detail for s in report.steps)


def test_withdrawn_certificate_is_refused(release: Path) -> None:
    amend(release / "certificate.json", kind="withdrawal", text="The sampler was not Poisson.", author="owner")
    report = verify_certificate(release)
    assert report.exit_code == 3
    assert any("withdrawn" in s.detail for s in report.steps)


def test_amendment_of_another_certificate_is_refused(release: Path, tmp_path: Path) -> None:
    other = run.release(tmp_path / "other", release_scope="all checkpoints")
    path = amend(other, kind="note", text="Fine.", author="me")
    (release / "amendments").mkdir()
    shutil.copy(path, release / "amendments")
    assert verify_certificate(release).exit_code == 3


def test_trusting_policy_wants_signed_amendments(release: Path) -> None:
    path = amend(release / "certificate.json", kind="note", text="Fine.", author="me")
    assert verify_certificate(release, policy=policy(release, TRUST)).exit_code == 3
    envelope_path(path).write_bytes(sign(path.read_bytes(), PRIVATE))
    assert verify_certificate(release, policy=policy(release, TRUST)).exit_code == 2


@pytest.mark.parametrize(
    ("rules", "code", "word"),
    [
        ("max_epsilon = 4.0", 2, ""),
        ('max_epsilon = 4.0\nverdicts = ["inconclusive", "consistent"]', 0, ""),
        ("max_epsilon = 1.0", 1, "max_epsilon"),
        ("max_delta = 1e-6", 1, "max_delta"),
        ("max_delta_times_records = 0.5", 2, ""),
        ("max_delta_times_records = 0.01", 1, "max_delta_times_records"),
        ('relations = ["replace_one"]', 1, "relation"),
        ('units = ["user"]', 1, "unit"),
        ("minimum_power = 0.8", 1, "power"),
        ('verdicts = ["consistent"]', 1, "verdict"),
        ('required_steps = ["audit.coins", "ledger.chain"]', 2, ""),
        ('required_steps = ["audit.power"]', 1, "audit.power"),
        ('required_tests = ["noise_scale"]', 2, ""),
        ('required_tests = ["step_audit"]', 1, "step_audit"),
        ("minimum_level = 2", 2, ""),
        ("minimum_level = 3", 1, "level=2"),
        ("allow_deviations = false", 2, ""),
    ],
)
def test_policy_rules(release: Path, rules: str, code: int, word: str) -> None:
    report = verify_certificate(release, policy=policy(release, rules))
    assert report.exit_code == code, report.policy_failures
    assert word in " ".join(report.policy_failures)
    assert bool(report.policy_failures) == (code == 1)


@pytest.mark.parametrize(
    "rules", ["max_epsilonn = 1", "max_epsilon = 'x'", "units = 'user'", 'verdicts = ["safe"]', "a = "]
)
def test_misspelt_policy_is_refused(release: Path, rules: str) -> None:
    with pytest.raises(Exception) as caught:
        read_policy(policy(release, rules))
    assert type(caught.value).__module__ == "dpaudit.privacy.errors"


def test_policy_defaults_to_no_rule() -> None:
    assert Policy().max_epsilon is None


def test_key_that_is_none_is_named() -> None:
    with pytest.raises(InvalidValue, match="signing key"):
        sign(b"x", b"not a key")
