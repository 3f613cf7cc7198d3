"""The certificate: the same evidence gives the same bytes, and what is missing is named."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from dpaudit import InvalidEvidence, InvalidValue, PrivacyRefusal
from dpaudit.certificates.build import CertificateEvidence, build_certificate
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import Statement, json_schema
from dpaudit.certificates.verdict import Compared, verdict_of, weigh
from dpaudit.privacy.claim import Claim
from dpaudit.trainers import noise_statement
from tests import ROOT
from tests.certificates import certificate_run as run

SCHEMA = ROOT / "dpaudit" / "schemas" / "certificate-1.json"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> CertificateEvidence:
    return run.evidence(tmp_path_factory.mktemp("release"))


def test_same_evidence_gives_same_bytes(evidence: CertificateEvidence) -> None:
    shuffled = dataclasses.replace(
        evidence,
        canaries=tuple(reversed(evidence.canaries)),
        guarantees=tuple(dataclasses.replace(g, seconds=99.0) for g in evidence.guarantees),
    )
    assert build_certificate(evidence).to_bytes() == build_certificate(shuffled).to_bytes()


def test_published_schema_is_current_and_accepts_a_certificate(evidence: CertificateEvidence) -> None:
    published = json.loads(SCHEMA.read_text())
    assert published == json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(published)
    statement = build_certificate(evidence)
    jsonschema.validate(statement.to_plain(), published)
    assert Statement.from_bytes(statement.to_bytes()) == statement


def test_honest_run_without_control_is_inconclusive(evidence: CertificateEvidence) -> None:
    verdict = build_certificate(evidence).predicate.verdict
    assert verdict.name == "inconclusive"
    assert verdict.reasons


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"claim": None}, "claim"),
        ({"ledger": None}, "ledger"),
        ({"ledger_head": None}, "ledger.head"),
        ({"trust_model": None}, "scope.trust_model"),
        ({"release_scope": ""}, "scope.release_scope"),
        ({"guarantees": ()}, "accounting.guarantees"),
        ({"subjects": {}}, "subject"),
        ({"mechanism": {**run.MECHANISM, "clipping_norm": None}}, "mechanism.clipping_norm"),
        ({"mechanism": {}}, "mechanism.normaliser"),
    ],
)
def test_missing_field_is_a_mismatch_and_is_named(evidence: CertificateEvidence, change: dict, name: str) -> None:
    statement = build_certificate(dataclasses.replace(evidence, **change))
    assert statement.predicate.verdict.name == "accounting_mismatch"
    assert any(item.startswith(name) for item in statement.predicate.missing)
    assert Statement.from_bytes(statement.to_bytes()) == statement


def test_disagreeing_claim_is_a_mismatch(evidence: CertificateEvidence) -> None:
    for change in (
        {"delta": 1e-6},
        {"relation": "zero_out"},
        {"unit": "user"},
        {"max_records_per_unit": 2},
        {"epsilon": 0.5},
    ):
        claim = dataclasses.replace(evidence.claim, **change)
        assert build_certificate(dataclasses.replace(evidence, claim=claim)).predicate.verdict.name in {
            "accounting_mismatch",
            "violated",
        }, change


def test_flipped_coin_is_an_invalid_audit(evidence: CertificateEvidence) -> None:
    canaries = [dict(c) for c in evidence.canaries]
    canaries[0]["coin"] = 1 - canaries[0]["coin"]
    body = build_certificate(dataclasses.replace(evidence, canaries=canaries)).predicate
    assert body.verdict.name == "invalid_audit"


def test_test_run_is_refused(evidence: CertificateEvidence) -> None:
    with pytest.raises(PrivacyRefusal, match="run_status='test'"):
        build_certificate(dataclasses.replace(evidence, run_status="test"))


def test_unfinished_run_is_at_most_inconclusive(evidence: CertificateEvidence) -> None:
    result = {**evidence.audit_result, "verdict": "consistent"}
    body = build_certificate(dataclasses.replace(evidence, audit_result=result, run_status="unfinished")).predicate
    assert body.verdict.name == "inconclusive"


def test_canary_text_is_never_published(evidence: CertificateEvidence) -> None:
    with pytest.raises(InvalidValue, match="exactly id, coin and guess"):
        dataclasses.replace(evidence, canaries=[{"id": "a", "coin": 1, "guess": 1, "text": "secret"}])


def test_infinity_is_stored_as_text_and_nan_is_refused() -> None:
    assert plain_json({"a": float("inf"), "b": [-float("inf")]}) == {"a": "inf", "b": ["-inf"]}
    with pytest.raises(InvalidValue, match="NaN"):
        plain_json(float("nan"))


def test_precedence_lists_every_reason() -> None:
    finding = {"name": "replay", "status": "violated", "text": "two records were summed unclipped"}
    weighed = weigh(
        Compared(claim_epsilon=1.0, epsilon_upper=2.0, missing=["scope.trust_model"]),
        audit=None,
        audit_faults=["bad coins"],
        findings=[finding],
        run_status="unfinished",
    )
    verdict = verdict_of(weighed)
    assert verdict.name == "violated"
    assert len(verdict.reasons) == 6
    assert verdict.reasons[0].startswith("replay")


def test_invalid_audits_own_bound_is_discarded() -> None:
    audit = {"verdict": "violated", "primary": {"epsilon_lower_at_verdict": 9.0}}
    weighed = weigh(
        Compared(claim_epsilon=1.0, epsilon_upper=1.0),
        audit=audit,
        audit_faults=["bad coins"],
        findings=[],
        run_status="complete",
    )
    verdict = verdict_of(weighed)
    assert verdict.name == "invalid_audit"


def test_bound_above_the_ledger_only_is_violated() -> None:
    audit = {"verdict": "inconclusive", "primary": {"epsilon_lower_at_verdict": 2.5}}
    weighed = weigh(
        Compared(claim_epsilon=3.0, epsilon_upper=2.0),
        audit=audit,
        audit_faults=[],
        findings=[],
        run_status="complete",
    )
    verdict = verdict_of(weighed)
    assert verdict.name == "violated"
    assert "not run as recorded" in verdict.reasons[0]


def test_unknown_predicate_type_is_refused(evidence: CertificateEvidence) -> None:
    statement = build_certificate(evidence)
    with pytest.raises(InvalidEvidence, match="newer"):
        Statement.from_plain({**statement.to_plain(), "predicateType": "https://dpaudit.dev/certificate/v9"})


def test_claim_is_checked() -> None:
    with pytest.raises(InvalidValue, match="epsilon"):
        Claim(epsilon=0.0, delta=1e-5, relation="zero_out", unit="user", max_records_per_unit=1)


def test_what_the_noise_does_not_prove_is_a_limit(evidence: CertificateEvidence) -> None:
    unknown = build_certificate(evidence).predicate.limits
    assert "Where the values of the noise end is not stated; a Gaussian's do not." in unknown
    for secure in (False, True):
        mechanism = {**evidence.mechanism, **noise_statement(secure=secure)}
        body = build_certificate(dataclasses.replace(evidence, mechanism=mechanism)).predicate
        assert body.mechanism["noise_support_sigma"] == 8.57 and body.mechanism["noise_generator"]
        said = [limit for limit in body.limits if limit.startswith("Of the noise it does not prove")]
        assert len(said) == (1 if secure else 2) and set(body.limits) - set(said) == set(unknown) - {unknown[-1]}


@pytest.mark.parametrize("support", [5.76, 6.7, 7.99, 8.0, None, "wide", True])
def test_noise_that_ends_early_is_a_limit(evidence: CertificateEvidence, support: object) -> None:
    mechanism = {**evidence.mechanism, "noise_support_sigma": support}
    body = build_certificate(dataclasses.replace(evidence, mechanism=mechanism)).predicate
    (last,) = body.limits[len(evidence.limits) :] or (None,)
    if support == 8.0:
        assert last is None
    elif isinstance(support, float):
        assert last is not None and last.startswith(f"The noise ends at {support:g} standard deviations")
    else:
        assert last is not None and "is not stated" in last


@pytest.mark.parametrize(("delta", "stated"), [(1e-5, False), (1e-3, True)])
def test_a_delta_that_allows_publishing_a_record_is_a_limit(
    evidence: CertificateEvidence, delta: float, stated: bool
) -> None:
    claim = dataclasses.replace(evidence.claim, delta=delta)
    limits = build_certificate(dataclasses.replace(evidence, claim=claim)).predicate.limits
    found = [limit for limit in limits if "is not below 1/public_size=1/3000" in limit]
    assert (found == list(limits[-1:])) is stated and len(found) == int(stated)
