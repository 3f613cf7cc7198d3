"""A small finished run for tests of certificates, verification and reports: real digests, no model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit import Stage
from dpaudit.certificates.build import CertificateEvidence, build_certificate
from dpaudit.privacy.claim import Claim
from dpaudit.storage.commitment import canonical_json, commitment, manifest, sha256_bytes, sha256_file
from dpaudit.storage.journal import DiskJournal, read_journal

RELATION = "add_or_remove_one"
DELTA, CLAIM, M = 1e-5, 3.0, 400
STAGE = Stage(
    sampling_probability=0.01,
    noise_multiplier=0.8,
    steps=60,
    sampling="poisson",
    clipping_norm=0.1,
    expected_batch_size=30.0,
    public_size=3000,
)
NONCE = bytes(range(32))
CONFIG = "c" * 64
EXAMINATION = {
    "schema": "dpaudit.examination/1",
    "findings": [],
    "tests": [
        {"name": "replay", "excludes": "a contribution above 1.001 C on the records replayed"},
        {"name": "noise_scale", "excludes": "noise below 0.998 of the plan's"},
        {"name": "noise_law_and_independence", "excludes": "noise repeated, shared or seeded in public"},
        {"name": "sampler", "excludes": "a sampling probability above 1.08 q"},
        {"name": "ledger", "excludes": "an uncounted step"},
    ],
    "untested": [],
    "excluded": {"noise": 0.998, "contribution": 1.001, "sampling": 1.08},
    "partial": [],
    "in_full": True,
    "config_sha256": CONFIG,
    "false_alarm_probability": 0.005,
}
MECHANISM = {
    "algorithm": "DP-Adam with ghost clipping",
    "clipping_norm": 0.1,
    "normaliser": "expected batch size 30, fixed before training",
    "noise_source": "operating-system entropy, never stored",
    "precision": "float32",
}


def canaries(m: int = M, seed: int = 7) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Ids, coins and scores of a weak but living attack."""
    rng = np.random.default_rng(seed)
    ids = [hashlib.sha256(f"canary {i}".encode()).hexdigest()[:32] for i in range(m)]
    coins = rng.integers(0, 2, m)
    return ids, coins, rng.normal(size=m) + 0.55 * coins


def evidence(folder: Path, *, m: int = M, **changes: Any) -> CertificateEvidence:
    """Write a release folder's evidence and return what a certificate is built from."""
    import pandas as pd

    from dpaudit.accounting import account
    from dpaudit.auditing import Scores, audit, design, guess

    folder.mkdir(parents=True, exist_ok=True)
    ids, coins, scores = canaries(m)
    plan = design(
        m,
        CLAIM,
        DELTA,
        relation=RELATION,
        unit="paragraph",
        attack="loss",
        coin_commitment=commitment(NONCE, manifest(ids, coins.tolist(), 1)),
    )
    (folder / "audit_plan.json").write_bytes(canonical_json(plan.to_dict()) + b"\n")
    plan_digest = sha256_file(folder / "audit_plan.json")
    journal = DiskJournal(
        folder / "ledger.jsonl",
        relation=RELATION,
        unit="paragraph",
        max_records_per_unit=1,
        audit_plan_sha256=plan_digest,
    )
    journal.begin(STAGE)
    for _ in range(STAGE.steps):
        journal.count()
    journal.seal("finished")
    record = read_journal(folder / "ledger.jsonl")
    pd.DataFrame({"id": ids, "score": scores, "attack": "loss"}).to_parquet(folder / "scores.parquet", index=False)
    (folder / "examination.json").write_bytes(canonical_json(EXAMINATION) + b"\n")
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights " * 100)
    guarantees = account(record.ledger, delta=DELTA, accountants=("rdp",))
    upper = min(g.epsilon_upper for g in guarantees)
    result = audit(Scores(ids, scores, coins), plan, coins="verified", accounted_upper=upper, secondary=False).to_dict()
    guesses = guess(ids, scores, plan)
    values: dict[str, Any] = dict(
        claim=Claim(epsilon=CLAIM, delta=DELTA, relation=RELATION, unit="paragraph", max_records_per_unit=1),
        trust_model="central: the trainer sees the records",
        release_scope="last checkpoint",
        ledger=record.ledger,
        ledger_head=record.head,
        mechanism=MECHANISM,
        guarantees=guarantees,
        audit_plan=plan.to_dict(),
        audit_plan_digest=plan_digest,
        canaries=[{"id": i, "coin": int(c), "guess": int(g)} for i, c, g in zip(ids, coins, guesses, strict=True)],
        scores_digest=sha256_file(folder / "scores.parquet"),
        nonce=NONCE.hex(),
        audit_result=result,
        examination=EXAMINATION,
        subjects={"model/model.safetensors": sha256_file(folder / "model" / "model.safetensors")},
        provenance={"dpaudit": "0.1.0", "commit": "0" * 40, "dirty": False, "config_sha256": CONFIG},
        reproduction="dpaudit certify config.toml --out runs/again",
    )
    return CertificateEvidence(**{**values, **changes})


def release(folder: Path, **changes: Any) -> Path:
    """A release folder with a certificate; returns the certificate's path."""
    path = folder / "certificate.json"
    path.write_bytes(build_certificate(evidence(folder, **changes)).to_bytes())
    return path


def rewrite(path: Path, statement: dict[str, Any], *, reseal: bool = True) -> None:
    """Write a changed statement; with ``reseal`` its own digest is made to fit, as a forger would."""
    if reseal:
        statement["predicate"]["digest"] = digest_of(statement)
    path.write_bytes(canonical_json(statement) + b"\n")


def digest_of(statement: dict[str, Any]) -> str:
    """Digest of a statement, well-formed or not, without the one it states."""
    body = {key: value for key, value in statement["predicate"].items() if key != "digest"}
    return sha256_bytes(canonical_json({**statement, "predicate": body}))


def load(path: Path) -> dict[str, Any]:
    """Parse a certificate without any check."""
    return json.loads(path.read_bytes())
