"""Membership audit on real records: some are held out by fair coins; who stays private, only counts leave."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit.privacy.rounding import lower_text
from dpaudit.runs.config import Config
from dpaudit.runs.sources import Records
from dpaudit.storage.run_folder import RunFolder, read_json, write_json

if TYPE_CHECKING:
    from dpaudit.runs.prepare import Prepared


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """Real records to train on, and the candidates whose membership a coin decided."""

    trained: Records
    candidates: Records
    coins: np.ndarray
    ids: tuple[str, ...]


def candidates_of(config: Config, records: Records) -> int:
    """Number of real records put to the coin: half of them are held out on average."""
    return round(2 * config.audit.holdout_fraction * len(records))


def expected_size(config: Config, records: Records) -> int:
    """Real records trained on, on average: fixed before any coin is flipped."""
    return len(records) - round(candidates_of(config, records) / 2)


def hold_out_records(config: Config, folder: RunFolder, records: Records) -> Split | None:
    """Draw the holdout, or read back the one that an interrupted run drew."""
    if not config.audit.holdout_fraction:
        return None
    from dpaudit.attacks import draw_nonce, hold_out, holdout_ids, read_holdout, unique_records, write_holdout

    path = folder.private / "holdout.secret.parquet"
    if path.exists():
        holdout, ids = read_holdout(path)
    else:
        eligible = unique_records(records.texts)
        holdout = hold_out(len(records), config.audit.holdout_fraction, eligible=eligible)
        ids = holdout_ids(holdout, records.texts, draw_nonce())
        write_holdout(path, holdout, ids)
    return Split(
        trained=records.take(holdout.kept.tolist()),
        candidates=records.take(holdout.candidates.tolist()),
        coins=np.asarray(holdout.coins),
        ids=ids,
    )


def score_real_records(prepared: Prepared, model: Any, base_model: Any) -> None:
    """Audit the candidates' membership and keep every score private; only counts are written for release."""
    from dpaudit.attacks import residual_scores
    from dpaudit.auditing import audit, design

    split, claim = prepared.split, prepared.config.claim
    if split is None:
        return
    scores = residual_scores(_losses(prepared, split, model), _losses(prepared, split, base_model))
    plan = design(
        len(split.ids),
        claim.epsilon,
        claim.delta,
        prepared.config.audit.alpha,
        relation=claim.relation,
        unit=claim.unit,
        attack="loss-residual on real records",
    )
    result = audit(split.ids, scores, split.coins, plan)
    np.savez(prepared.folder.private / "holdout_scores.npz", scores=scores, coins=split.coins)
    write_json(
        prepared.folder.private / "membership.json",
        {
            "candidates": len(split.ids),
            "guesses": result.guesses,
            "correct": result.correct,
            "epsilon_lower": result.epsilon_lower,
            "confidence": result.confidence,
            "ceiling": result.ceiling,
        },
    )


def membership_finding(folder: RunFolder) -> list[dict[str, Any]]:
    """Counts of the membership audit on real records, as a note of the certificate."""
    path = folder.private / "membership.json"
    if not path.exists():
        return []
    found = read_json(path)
    text = (
        f"{found['candidates']} real records were put to a fair coin before training; of {found['guesses']} guesses"
        f" at their membership {found['correct']} were right, which shows ε >="
        f" {lower_text(found['epsilon_lower'])} with"
        f" confidence {found['confidence']:g} (a perfect attack could have shown"
        f" {lower_text(found['ceiling'])}). Secondary:"
        " it decides no verdict, and who was held out stays private."
    )
    return [{"name": "real_record_membership", "verdict": "note", "text": text}]


def _losses(prepared: Prepared, split: Split, model: Any) -> np.ndarray:
    import torch

    from dpaudit.runs.fit import collator, encode, loss_function

    collate, loss, rows = collator(prepared), loss_function(prepared), encode(prepared, split.candidates)
    model.eval()
    with torch.no_grad():
        parts = [loss(model, collate(rows[i : i + 64])).double().cpu().numpy() for i in range(0, len(rows), 64)]
    return np.concatenate(parts)
