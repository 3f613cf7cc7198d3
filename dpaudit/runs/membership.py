"""Membership audit on real records: some are held out by fair coins. Its results depend on real records without any
noise, so they stay in ``private/``."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit.runs.config import Config
from dpaudit.runs.records import Records
from dpaudit.storage.files import PRIVATE_MODE, write_atomically
from dpaudit.storage.run_folder import RunFolder, write_json

if TYPE_CHECKING:
    from dpaudit.runs.prepare import Prepared


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """Real records to train on, and the candidates whose membership a coin decided."""

    trained: Records
    candidates: Records
    coins: np.ndarray
    ids: tuple[str, ...]


def expected_size(config: Config) -> int:
    """Real records trained on, on average, of the declared number: fixed before any coin, counted from no record."""
    declared = config.privacy.public_size
    candidates = round(2 * config.audit.holdout_fraction * declared)  # half of them are held out on average
    return declared - round(candidates / 2)


def hold_out_records(config: Config, folder: RunFolder, records: Records) -> Split | None:
    """Draw the holdout, or read back the one that an interrupted run drew."""
    if not config.audit.holdout_fraction:
        return None
    from dpaudit.attacks import hold_out
    from dpaudit.attacks.canaries.coins import draw_nonce
    from dpaudit.attacks.holdout import holdout_ids, read_holdout, unique_records, write_holdout

    path = folder.holdout
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
    """Audit the candidates' membership; scores, counts and bound are written to ``private/`` alone."""
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
    buffer = io.BytesIO()
    np.savez(buffer, scores=scores, coins=split.coins)
    write_atomically(prepared.folder.private / "holdout_scores.npz", buffer.getvalue(), mode=PRIVATE_MODE)
    write_json(
        prepared.folder.membership,
        {
            "candidates": len(split.ids),
            "guesses": result.guesses,
            "correct": result.correct,
            "epsilon_lower": result.epsilon_lower,
            "confidence": result.confidence,
            "ceiling": result.ceiling,
        },
        mode=PRIVATE_MODE,
    )


def _losses(prepared: Prepared, split: Split, model: Any) -> np.ndarray:
    import torch

    from dpaudit.runs.encoding import collator, encode, loss_function

    collate, loss, rows = collator(prepared), loss_function(prepared), encode(prepared, split.candidates)
    model.eval()
    with torch.no_grad():
        parts = [loss(model, collate(rows[i : i + 64])).double().cpu().numpy() for i in range(0, len(rows), 64)]
    return np.concatenate(parts)
