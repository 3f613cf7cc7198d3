"""A certificate is issued once: the same evidence gives the same bytes, other evidence is refused, signatures stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpaudit.certificates.build import build_certificate
from dpaudit.certificates.short_record import privacy_json
from dpaudit.certificates.sign import envelope_path, new_key_pair
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.runs.issue import issue, refuse_new_evidence
from tests.certificates import certificate_run as run

RENDERERS = {"model/privacy.json": privacy_json}


@pytest.fixture
def evidence(tmp_path: Path) -> Any:
    return run.evidence(tmp_path / "release", m=60)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return tmp_path / "release" / "certificate.json"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_evidence_changes_no_byte(evidence: Any, certificate: Path) -> None:
    private, _ = new_key_pair()
    issue(certificate, build_certificate(evidence), RENDERERS, signing_key=private)
    before = files(certificate.parent)
    for key in (None, private):
        issue(certificate, build_certificate(evidence), RENDERERS, signing_key=key)
        assert files(certificate.parent) == before


def test_a_page_or_signature_that_a_crash_left_out_is_written(evidence: Any, certificate: Path) -> None:
    private, _ = new_key_pair()
    issue(certificate, build_certificate(evidence), RENDERERS, signing_key=private)
    before = files(certificate.parent)
    (certificate.parent / "model" / "privacy.json").unlink()
    envelope_path(certificate).unlink()
    issue(certificate, build_certificate(evidence), RENDERERS, signing_key=private)
    assert files(certificate.parent) == before


def test_other_evidence_is_refused_and_changes_nothing(evidence: Any, certificate: Path) -> None:
    import dataclasses

    private, _ = new_key_pair()
    issue(certificate, build_certificate(evidence), RENDERERS, signing_key=private)
    before = files(certificate.parent)
    other = build_certificate(dataclasses.replace(evidence, trust_model="nobody"))
    for key in (None, private, new_key_pair()[0]):
        with pytest.raises(InvalidValue, match=r"predicate\.scope\.trust_model differs.*amend"):
            issue(certificate, other, RENDERERS, signing_key=key)
    assert files(certificate.parent) == before
    with pytest.raises(InvalidValue, match="amend"):
        refuse_new_evidence(certificate, "a positive control")


def test_a_second_key_adds_its_signature(evidence: Any, certificate: Path) -> None:
    pairs = [new_key_pair(), new_key_pair()]
    for private, _ in pairs:
        issue(certificate, build_certificate(evidence), RENDERERS, signing_key=private)
    assert len(json.loads(envelope_path(certificate).read_bytes())["signatures"]) == 2
    for number, (_, public) in enumerate(pairs):
        (certificate.parent.parent / f"{number}.pem").write_bytes(public)
        policy = certificate.parent.parent / f"{number}.toml"
        policy.write_text(f'trusted_keys = ["{number}.pem"]')
        assert verify_certificate(certificate, policy=policy).origin.startswith("signed by key")


@pytest.mark.parametrize("damage", [b"{}", b"", b'{"payloadType":1,"payload":2,"signatures":3}'])
def test_a_damaged_envelope_is_not_replaced(evidence: Any, certificate: Path, damage: bytes) -> None:
    private, _ = new_key_pair()
    issue(certificate, build_certificate(evidence), RENDERERS)
    envelope_path(certificate).write_bytes(damage)
    with pytest.raises(InvalidEvidence):
        issue(certificate, build_certificate(evidence), RENDERERS, signing_key=private)
    assert envelope_path(certificate).read_bytes() == damage
