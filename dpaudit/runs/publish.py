"""From a trained run folder to scores, verdict, certificate and report."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit import Guarantee, Ledger
from dpaudit.privacy.errors import InvalidEvidence, StorageFailed
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.runs.canary_scores import canary_scores
from dpaudit.runs.config import Config
from dpaudit.runs.in_run.part import in_run_part
from dpaudit.runs.prepare import Prepared
from dpaudit.runs.records import limit_of
from dpaudit.runs.stated import owners_words
from dpaudit.runs.units import draws_units, units_statement
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.files import write_atomically
from dpaudit.storage.journal import JournalRecord, read_journal
from dpaudit.storage.run_folder import RunFolder, RunRecord, folder_digests, read_json

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.in_run.audit import InRunResult
    from dpaudit.auditing.result import AuditResult
    from dpaudit.certificates.statement import Statement


def save_model(model: Any, tokenizer: Any, folder: Path) -> dict[str, str]:
    """Write the released model atomically and return the digests of its files.

    The folder is written under a temporary name and renamed, so that a crash leaves no half of a model.
    """
    import shutil

    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except Exception as error:  # safetensors and tokenizers have their own errors for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageFailed.of(folder, error) from error
    return folder_digests(folder)


def score_canaries(prepared: Prepared, model: Any, base_model: Any) -> np.ndarray:
    """Scores of the canaries by the pre-registered attack; higher = member."""
    return canary_scores(prepared, prepared.secret.canaries, model, base_model)


def write_scores(path: Path, ids: Sequence[str], scores: np.ndarray, attack: str) -> None:
    """Write opaque id, score and attack, ordered by id; never coins."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = np.argsort(np.asarray(ids))
    table = pa.table(
        {
            "id": pa.array([ids[i] for i in order], pa.string()),
            "score": pa.array(scores[order], pa.float64()),
            "attack": pa.array([attack] * len(ids), pa.string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def read_scores(path: Path) -> dict[str, float]:
    """Scores by id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["id", "score"])
    except (OSError, pa.ArrowException) as error:
        raise InvalidEvidence(
            f"scores {path} cannot be read ({str(error).splitlines()[0]}); run the attack again."
        ) from error
    return dict(zip(table.column("id").to_pylist(), table.column("score").to_pylist(), strict=True))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What the last phase made."""

    certificate: Statement
    result: AuditResult
    guarantees: tuple[Guarantee, ...]
    exposure: Mapping[str, Any]
    in_run: InRunResult | None = None


def publish(folder: RunFolder, config: Config, record: RunRecord, *, signing_key: bytes | None = None) -> Published:
    """Account, audit, certify and report a run whose scores are written."""
    from dpaudit.accounting import account
    from dpaudit.attacks import read_secret
    from dpaudit.auditing import AuditPlan, audit, guess
    from dpaudit.auditing.exposure_summary import exposure_summary
    from dpaudit.certificates.build import build_certificate
    from dpaudit.certificates.curve import declared_curve
    from dpaudit.certificates.group import group_epsilon
    from dpaudit.certificates.privacy_json import privacy_json
    from dpaudit.reports import model_card, render_report
    from dpaudit.runs.control import binding_of_run, read_control
    from dpaudit.runs.issue import issue

    plan = AuditPlan.from_dict(read_json(folder.audit_plan))
    journal = read_journal(folder.ledger)
    ledger = journal.ledger.merged()
    guarantees = account(ledger, delta=config.claim.delta, accountants=config.privacy.accountants)
    secret = read_secret(folder.canaries)
    if secret.commitment != plan.coin_commitment:
        raise InvalidEvidence(f"{folder.canaries} does not open the commitment in audit_plan.json; restore the file.")
    by_id = read_scores(folder.scores)
    if set(by_id) != set(secret.ids):
        raise InvalidEvidence(f"{folder.scores} does not hold one score for each of {len(secret.ids)} canaries.")
    scores = np.asarray([by_id[i] for i in secret.ids])
    control = read_control(folder.control_scores, binding_of_run(folder, record.config_sha256), secret.ids)
    group = group_epsilon(ledger, delta=plan.delta, accountants=config.privacy.accountants, copies=plan.copies)
    result = audit(
        secret.ids,
        scores,
        secret.coins,
        plan,
        coins="verified",
        accounted_upper=smallest_upper(guarantees),
        group_claim=group,
        control=control,
        curve=declared_curve(ledger, plan.delta, plan.copies),
    )
    guesses = guess(secret.ids, scores, plan)
    exposure = exposure_summary(scores, np.asarray(secret.coins), copies=plan.copies)
    canaries = [
        {"id": i, "coin": int(c), "guess": int(g)} for i, c, g in zip(secret.ids, secret.coins, guesses, strict=True)
    ]
    in_run = in_run_part(folder, plan, ledger, smallest_upper(guarantees))
    evidence = _evidence(folder, config, record, journal, ledger, guarantees, plan, result, canaries, secret, exposure)
    certificate = build_certificate(dataclasses.replace(evidence, in_run=None if in_run is None else in_run.section))
    series = series_of(config, ledger, scores, np.asarray(secret.coins), exposure)
    renderers = {
        "model/privacy.json": privacy_json,
        "model_card.md": lambda statement: model_card(statement).encode("utf-8"),
        "report.html": lambda statement: render_report(statement, series).encode("utf-8"),
    }
    certificate = issue(folder.certificate, certificate, renderers, signing_key=signing_key)
    return Published(
        certificate=certificate,
        result=result,
        guarantees=guarantees,
        exposure=exposure,
        in_run=None if in_run is None else in_run.result,
    )


def _evidence(
    folder: RunFolder,
    config: Config,
    record: RunRecord,
    journal: JournalRecord,
    ledger: Ledger,
    guarantees: tuple[Guarantee, ...],
    plan: AuditPlan,
    result: AuditResult,
    canaries: list[dict[str, Any]],
    secret: Any,
    exposure: Mapping[str, Any],
) -> Any:
    from dpaudit.certificates.build import CertificateEvidence
    from dpaudit.certificates.deviations import ledger_deviations
    from dpaudit.certificates.other_relation import other_relation
    from dpaudit.runs.attempts import attempt_deviations, attempts_of

    facts, told = record.facts, mechanism(config, ledger)
    examined = read_json(folder.examination)["findings"] if folder.examination.exists() else ()
    status = {"test": "test", "completed": "complete"}.get(str(facts.get("training_status")), "unfinished")
    deviations = (
        [f"{facts['steps_lost']} steps were charged whose update a crash lost."] if facts.get("steps_lost") else []
    )
    if "public_size" not in record.config.get("privacy", {}):
        deviations.append("q, σ and the normaliser derive from the exact number of private records, which they tell.")
    deviations += ledger_deviations(journal.reasons)
    deviations += attempt_deviations(facts)
    return CertificateEvidence(
        claim=config.claim.value(),
        trust_model="central: the trainer sees the private records in the clear",
        release_scope="the last iterate (model weights) and the files of release/",
        ledger=ledger,
        ledger_head=journal.head,
        mechanism=told,
        guarantees=guarantees,
        audit_plan=plan.to_dict(),
        audit_plan_digest=sha256_file(folder.audit_plan),
        canaries=canaries,
        copies=plan.copies,
        scores_digest=sha256_file(folder.scores),
        control_digest=sha256_file(folder.control_scores) if folder.control_scores.exists() else None,
        nonce=secret.nonce.hex(),
        audit_result=result.to_dict(),
        exposure=exposure,
        findings=examined,
        examination=read_json(folder.examination) if folder.examination.exists() else None,
        subjects={f"model/{n}": d for n, d in folder_digests(folder.model).items() if n != "privacy.json"},
        provenance={
            **record.provenance,
            **owners_words(config, record),
            "config_sha256": record.config_sha256,
            "attempts": attempts_of(facts),
            "data_hmac_sha256": read_json(folder.private / "data_commitment.json")["hmac_sha256"],
            "records": {
                "declared": config.privacy.public_size,
                **limit_of(config.data),
                "canaries": plan.m,
                "inserted": len(secret.canaries.present(secret.coins)),
                "copies": plan.copies,
            },
            "other_relation": other_relation(ledger, delta=config.claim.delta, accountants=config.privacy.accountants),
            "public_evaluation": {
                "what": "perplexity per token" if config.model.task == "causal-lm" else "accuracy",
                "before": facts.get("heldout_before"),
                "after": facts.get("heldout_after"),
            },
        },
        deviations=deviations,
        reproduction=reproduction(folder),
        run_status=status,
    )


def reproduction(folder: RunFolder) -> str:
    """Command that repeats the run from its configuration (its digest is in the provenance), wherever that lies."""
    options = {"--control": folder.control_scores, "--examine": folder.examination}
    return " ".join([*"dpaudit certify CONFIG.toml --out RUN".split(), *(o for o, p in options.items() if p.exists())])


def mechanism(config: Config, ledger: Ledger) -> dict[str, Any]:
    """What was done to the private records, in words and numbers."""
    from dpaudit.certificates.limits import UNITS
    from dpaudit.trainers import noise_statement

    stage = ledger.stages[0]
    algorithm = (
        "ghost-clipped DP-AdamW (Li et al., 2110.05679)"
        if config.privacy.method == "dp-adam"
        else "stagewise zeroth-order DP-ZOSO (Liu et al., 2402.07818)"
    )
    return {
        "algorithm": algorithm,
        "clipping_norm": stage.clipping_norm,
        "clipping_rule": f"flat, factor min(1, C/norm) per {'unit' if draws_units(config) else 'record'}"
        if config.privacy.method == "dp-adam"
        else str(stage.clip),
        "normaliser": f"constant {stage.expected_batch_size:g} (q times the public size), never the realised batch",
        **noise_statement(secure=config.privacy.secure_noise),
        "sampler": f"Poisson: every {'unit' if draws_units(config) else 'record'} independently with probability q at"
        " every step",
        UNITS: units_statement(config),
        "precision": "fp32 sums, noise and moments"
        if config.privacy.method == "dp-adam"
        else "fp64 sums and noise, fp32 weights",
        "world_size": 1,
        "hyperparameter_tuning": "none on private records inside this run",
    }


def series_of(
    config: Config, ledger: Ledger, scores: np.ndarray, coins: np.ndarray, exposure: Mapping[str, Any]
) -> dict[str, Any]:
    """Arrays that the report draws and does not compute."""
    from dpaudit.accounting import tradeoff_curve

    band = tradeoff_curve(ledger, np.concatenate([np.geomspace(1e-4, 0.1, 30), np.linspace(0.12, 1.0, 45)]))
    order = np.argsort(-scores, kind="stable")
    hits = coins[order]
    tpr, fpr = np.cumsum(hits) / max(hits.sum(), 1), np.cumsum(1 - hits) / max((1 - hits).sum(), 1)
    return {
        "epsilon_over_steps": epsilon_over_steps(config, ledger),
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
        "scores": {"in": scores[coins == 1].tolist(), "out": scores[coins == 0].tolist()},
        "exposure": {"exposure": list(exposure["values"]), "mean_without_leakage": exposure["mean_without_leakage"]}
        if exposure["values"]
        else None,
        "tradeoff": {
            "alpha": band.fpr.tolist(),
            "lower": (1 - band.tpr_upper).tolist(),
            "upper": (1 - band.tpr_lower).tolist(),
            "points": [{"fpr": float(f), "fnr": 1 - float(t)} for f, t in zip(fpr[9::10], tpr[9::10], strict=True)],
        },
    }


def epsilon_over_steps(config: Config, ledger: Ledger) -> dict[str, Any]:
    """Certified ε after a grid of steps, and the steps at which stages end."""
    from dpaudit.accounting import epsilon_curve

    curve = epsilon_curve(
        ledger, config.claim.delta, points=min(40, ledger.steps), group_size=ledger.max_records_per_unit
    )
    ends = np.cumsum([stage.steps for stage in ledger.stages])[:-1].tolist()
    return {"steps": list(curve.steps), "epsilon": list(curve.upper), "boundaries": ends, "accountant": "prv"}
