"""From a trained run folder to scores, verdict, certificate and report."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit import Guarantee, Ledger
from dpaudit.privacy.errors import StorageFailed
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.scores import Scores
from dpaudit.runs.canary_scores import canary_scores, scores_with_beacons
from dpaudit.runs.config import Config
from dpaudit.runs.evidence import Recorded, evidence_of
from dpaudit.runs.in_run.part import in_run_part
from dpaudit.runs.prepare import Prepared
from dpaudit.storage.files import write_atomically
from dpaudit.storage.run_folder import RunFolder, RunRecord, folder_digests

if TYPE_CHECKING:
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


def score_canaries(prepared: Prepared, model: Any, base_model: Any) -> None:
    """Write the scores of the canaries, and of the beacons, by the pre-registered attack; higher = member."""
    folder, secret, beacons = prepared.folder, prepared.secret, prepared.beacons
    attack = prepared.config.audit.attack
    if beacons is None:
        scores = canary_scores(prepared, secret.canaries, model, base_model)
    else:
        scores, theirs = scores_with_beacons(prepared, secret, beacons, model, base_model)
        write_scores(folder.beacon_scores, beacons.ids, theirs, attack)
    write_scores(folder.scores, secret.ids, scores, attack)


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
    from dpaudit.auditing.exposure_summary import exposure_summary
    from dpaudit.certificates.build import build_certificate
    from dpaudit.certificates.short_record import privacy_json
    from dpaudit.reports import model_card, render_report
    from dpaudit.runs.issue import issue

    recorded = Recorded.read(folder, config, record)
    plan, ledger, scores = recorded.plan, recorded.ledger, recorded.scores
    guarantees = account(ledger, delta=config.claim.delta, accountants=config.privacy.accountants)
    result = recorded.audited(guarantees)
    exposure = exposure_summary(scores, copies=plan.copies)
    in_run = in_run_part(folder, plan, ledger, smallest_upper(guarantees))
    evidence = evidence_of(recorded, guarantees, result, exposure)
    certificate = build_certificate(dataclasses.replace(evidence, in_run=None if in_run is None else in_run.section))
    series = series_of(config, ledger, scores, exposure)
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


def series_of(config: Config, ledger: Ledger, scored: Scores, exposure: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays that the report draws and does not compute."""
    from dpaudit.accounting import tradeoff_curve

    band = tradeoff_curve(ledger, np.concatenate([np.geomspace(1e-4, 0.1, 30), np.linspace(0.12, 1.0, 45)]))
    scores, member = scored.values, scored.members
    hits = member[np.argsort(-scores, kind="stable")].astype(int)
    tpr, fpr = np.cumsum(hits) / max(hits.sum(), 1), np.cumsum(1 - hits) / max((1 - hits).sum(), 1)
    return {
        "epsilon_over_steps": epsilon_over_steps(config, ledger),
        "roc": {"fpr": fpr.tolist(), "tpr": tpr.tolist()},
        "scores": {"in": scores[member].tolist(), "out": scores[~member].tolist()},
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
    from dpaudit.accounting.tradeoff import epsilon_curve

    curve = epsilon_curve(
        ledger, config.claim.delta, points=min(40, ledger.steps), group_size=ledger.max_records_per_unit
    )
    ends = np.cumsum([stage.steps for stage in ledger.stages])[:-1].tolist()
    return {"steps": list(curve.steps), "epsilon": list(curve.upper), "boundaries": ends, "accountant": "prv"}
