"""Runs of other libraries: Opacus end to end, dp_accounting events, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidEvidence, InvalidValue, Ledger, PrivacyRefusal, Stage
from dpaudit.accounting.events import from_event, to_event
from dpaudit.certificates import Canaries, Claim
from dpaudit.certificates.import_run import certify_run, read_manifest, write_manifest, write_plan
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.storage.journal import DiskJournal
from tests import ROOT
from tests.certificates import certificate_run as run

EXAMPLE = ROOT / "docs" / "examples" / "opacus_run.py"
CLAIM = Claim(epsilon=3.0, delta=1e-5, relation="add_or_remove_one", unit="row", max_records_per_unit=1)
LEDGER = Ledger(
    stages=(Stage(sampling_probability=0.01, noise_multiplier=1.0, steps=100, sampling="poisson"),),
    relation="add_or_remove_one",
    unit="row",
)
REST: dict[str, Any] = dict(
    source="a list of (sigma, q, steps)",
    claim=CLAIM,
    mechanism=run.MECHANISM,
    trust_model="central",
    release_scope="last iterate",
    accountants=("rdp",),
)


@pytest.mark.filterwarnings("ignore")
def test_opacus_example_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    spec = importlib.util.spec_from_file_location("opacus_run", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    certificate = example.main(tmp_path / "run")
    body = certificate.predicate
    assert body.verdict.name == "inconclusive"
    assert not body.missing
    report = verify_certificate(tmp_path / "run")
    assert report.ok, report.to_text()
    equal = {s.name for s in report.steps if s.outcome == "recomputed and equal"}
    assert {"accounting.prv", "audit.coins", "audit.result", "ledger.chain"} <= equal


@pytest.fixture
def release(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_event_without_audit_is_inconclusive(release: Path) -> None:
    ledger = from_event(to_event(LEDGER), relation="add_or_remove_one", unit="row")
    statement = certify_run(release, ledger=ledger, **REST)
    assert statement.predicate.verdict.name == "inconclusive"
    assert [text for text in statement.predicate.verdict.reasons if "no audit" in text]
    assert statement.predicate.level == 1  # a chained ledger, and nothing more
    assert "imported" in statement.predicate.deviations[0]
    assert verify_certificate(release).exit_code == 2


def test_certificate_is_never_overwritten(release: Path) -> None:
    certify_run(release, ledger=LEDGER, **REST)
    with pytest.raises(InvalidValue, match="never rewritten"):
        certify_run(release, ledger=LEDGER, **REST)


def test_manifest_of_other_coins_is_refused(release: Path) -> None:
    from dpaudit.auditing import design
    from dpaudit.storage.commitment import commitment, manifest

    ids, coins, _ = run.canaries(40)
    opened = commitment(run.NONCE, manifest(ids, coins.tolist(), 1))
    write_plan(
        release / "audit_plan.json",
        design(40, 3.0, 1e-5, relation="add_or_remove_one", unit="row", coin_commitment=opened),
    )
    canaries = Canaries(ids=tuple(ids), coins=tuple(1 - int(c) for c in coins), copies=1, nonce=run.NONCE)
    with pytest.raises(InvalidEvidence, match="does not open the commitment"):
        certify_run(release, ledger=LEDGER, canaries=canaries, **REST)


def test_manifest_round_trip_and_refusals(tmp_path: Path) -> None:
    canaries = Canaries(ids=("a", "b"), coins=(0, 1), copies=2, nonce=run.NONCE)
    path = tmp_path / "manifest.json"
    write_manifest(path, canaries)
    assert read_manifest(path) == canaries
    assert path.stat().st_mode & 0o777 == 0o600
    good = json.loads(path.read_bytes())
    for bad in (
        {},
        [],
        {**good, "nonce": "zz"},
        {**good, "canaries": [["a", 2]]},
        {**good, "canaries": [["a", 0], ["a", 1]]},
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(InvalidEvidence, match="manifest"):
            read_manifest(path)


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="save the weights"):
        certify_run(tmp_path, ledger=LEDGER, **REST)


def counted(release: Path, plan: str | None = None, *, seal: bool = True) -> None:
    """A run of ten steps that dpaudit's journal counts."""
    log = DiskJournal(
        release / "ledger.jsonl", relation="add_or_remove_one", unit="row", audit_plan_sha256=plan, planned_steps=10
    )
    log.begin(LEDGER.stages[0])
    for _ in range(10):
        log.count()
    if seal:
        log.seal("finished")
    log.close()


OWN = {key: value for key, value in REST.items() if key != "source"}


def prepared(release: Path) -> tuple[Canaries, str]:
    """Forty canaries with plan and scores; returns the opened manifest and the plan's digest."""
    import pandas as pd

    from dpaudit.auditing import design
    from dpaudit.storage.commitment import commitment, manifest

    ids, coins, scores = run.canaries(40)
    canaries = Canaries(ids=tuple(ids), coins=tuple(int(c) for c in coins), copies=1, nonce=run.NONCE)
    opened = commitment(run.NONCE, manifest(ids, coins.tolist(), 1))
    plan = design(40, 3.0, 1e-5, relation="add_or_remove_one", unit="row", coin_commitment=opened)
    pd.DataFrame({"id": ids, "score": scores}).to_parquet(release / "scores.parquet", index=False)
    return canaries, write_plan(release / "audit_plan.json", plan)


@pytest.mark.parametrize("audited", [True, False])
def test_a_run_that_our_journal_counted_has_no_deviation(release: Path, audited: bool) -> None:
    canaries, digest = prepared(release) if audited else (None, None)
    counted(release, digest)
    statement = certify_run(release, canaries=canaries, **OWN)
    body = statement.predicate
    assert body.deviations == () and "own journal" in body.provenance["ledger_source"]
    assert body.ledger.stages[0]["steps"] == 10
    report = verify_certificate(release)
    assert report.ok, report.to_text()
    if audited:
        assert any(s.name == "ledger.plan" and s.outcome == "recomputed and equal" for s in report.steps)


def test_an_unclean_stop_of_our_journal_is_a_deviation_and_an_open_segment_is_refused(release: Path) -> None:
    counted(release, seal=False)
    with pytest.raises(InvalidEvidence, match="has an open segment of 10 steps"):
        certify_run(release, **OWN)
    with DiskJournal(release / "ledger.jsonl", relation="add_or_remove_one", unit="row", audit_plan_sha256=None):
        pass
    assert "uncleanly 1 times" in certify_run(release, **OWN).predicate.deviations[0]


def test_a_ledger_of_another_plan_is_refused_before_it_is_certified(release: Path) -> None:
    canaries, digest = prepared(release)
    counted(release, None)
    with pytest.raises(InvalidEvidence, match=r"opens with no plan and audit_plan\.json has .* before the first step"):
        certify_run(release, canaries=canaries, **OWN)
    (release / "ledger.jsonl").unlink()
    counted(release, "ab" * 32)
    with pytest.raises(InvalidEvidence, match=r"opens with abababababab… and audit_plan\.json"):
        certify_run(release, canaries=canaries, **OWN)
    (release / "ledger.jsonl").unlink()
    counted(release, digest)
    with pytest.raises(InvalidEvidence, match=r"opens with the digest of an audit plan .* give its canaries"):
        certify_run(release, **OWN)
    assert not (release / "certificate.json").exists()


@pytest.mark.parametrize("given", [{}, {"source": "a history"}, {"ledger": LEDGER}])
def test_without_our_ledger_both_ledger_and_source_are_needed(release: Path, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="ledger and source are needed"):
        certify_run(release, **OWN, **given)


@pytest.mark.parametrize("status", ["test", "tests", None])
def test_a_status_that_no_certificate_has_is_refused_before_anything_is_written(release: Path, status: Any) -> None:
    with pytest.raises((PrivacyRefusal, InvalidValue), match="run_status"):
        certify_run(release, ledger=LEDGER, **REST, run_status=status)
    assert not (release / "ledger.jsonl").exists()


@pytest.mark.parametrize(
    "status, stated", [("completed", "complete"), ("planned", "unfinished"), ("unfinished", "unfinished")]
)
def test_the_trainers_word_for_its_status_is_taken(release: Path, status: str, stated: str) -> None:
    assert certify_run(release, ledger=LEDGER, **REST, run_status=status).predicate.run_status == stated


def test_a_record_of_a_trainer_with_injected_randomness_is_refused(release: Path) -> None:
    record = {"schema": "dpaudit.trainer/1", "status": "test"}
    (release / "model" / "privacy.json").write_text(json.dumps(record))
    with pytest.raises(PrivacyRefusal, match=r"privacy\.json says that randomness was injected"):
        certify_run(release, ledger=LEDGER, **REST)


@pytest.mark.parametrize("injected", ["sampler", "noise"])
def test_a_ledger_of_a_run_with_injected_randomness_is_refused(release: Path, injected: str) -> None:
    import torch

    from dpaudit.trainers import PrivacyPlan, train
    from dpaudit.trainers.noise import NoNoise
    from dpaudit.trainers.sampling import ScriptedSampler

    plan = PrivacyPlan(
        delta=1e-5, relation="add_or_remove_one", sampling="poisson", unit="row", public_size=4,
        expected_batch_size=2.0, steps=2, clipping_norm=1.0, noise_multiplier=1.0,
    )  # fmt: skip
    parts = {"sampler": {"sampler": ScriptedSampler([[0], [1]])}, "noise": {"noise": NoNoise()}}
    with DiskJournal(
        release / "ledger.jsonl", relation="add_or_remove_one", unit="row", audit_plan_sha256=None
    ) as journal:
        train(
            torch.nn.Linear(3, 1), [torch.ones(3)] * 4, plan, collate=torch.stack,
            loss_fn=lambda model, batch: model(batch)[:, 0], journal=journal, **parts[injected],
        )  # fmt: skip
    with pytest.raises(PrivacyRefusal, match=r"ledger\.jsonl says that randomness was injected"):
        certify_run(release, **OWN)
    assert not (release / "certificate.json").exists()


def controlled(release: Path, plan: Path) -> None:
    """A control of 200 other canaries whose attack is right nearly always, bound to a plan."""
    import numpy as np

    from dpaudit.auditing import Control, Scores
    from dpaudit.certificates import write_control

    rng = np.random.default_rng(5)
    member = rng.integers(0, 2, 200)
    control = Control(
        scores=Scores([f"c{i}" for i in range(200)], member + rng.normal(0, 0.1, 200), member), fault="no noise"
    )
    write_control(release / "control_scores.parquet", control, plan=plan)


def test_a_control_beside_the_scores_gives_the_attack_its_power(release: Path) -> None:
    canaries, digest = prepared(release)
    counted(release, digest)
    controlled(release, release / "audit_plan.json")
    body = certify_run(release, canaries=canaries, **OWN).predicate
    assert body.audit is not None and body.audit.control_digest is not None
    assert body.audit.result["power"] is not None
    report = verify_certificate(release)
    assert report.ok, report.to_text()
    assert any(s.name == "audit.power" and s.outcome == "recomputed and equal" for s in report.steps)


def test_a_control_of_another_plan_or_of_no_plan_is_refused(release: Path, tmp_path_factory: Any) -> None:
    canaries, digest = prepared(release)
    counted(release, digest)
    other = tmp_path_factory.mktemp("other")
    (other / "audit_plan.json").write_bytes((release / "audit_plan.json").read_bytes() + b" ")
    controlled(release, other / "audit_plan.json")
    with pytest.raises(InvalidEvidence, match=r"not a control of this run \(its plan_sha256"):
        certify_run(release, canaries=canaries, **OWN)
    (other / "audit_plan.json").write_text("{}")
    with pytest.raises(InvalidEvidence):
        controlled(release, other / "audit_plan.json")
