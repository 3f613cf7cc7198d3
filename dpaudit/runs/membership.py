"""Membership audit on real records: some, or some units of them, are held out by fair coins.

Its results depend on real records without any noise, so they stay in ``private/``.
"""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from dpaudit.privacy.scores import Scores
from dpaudit.runs.config import Config
from dpaudit.runs.records import Records
from dpaudit.storage.files import PRIVATE_MODE, write_atomically
from dpaudit.storage.run_folder import RunFolder, write_json

if TYPE_CHECKING:
    from dpaudit.runs.prepare import Prepared


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """Real records to train on, and the candidates whose membership a coin decided.

    Attributes
    ----------
    trained : Records
        No candidate, or one whose coin is 1. No unit of privacy is both here and held out.
    candidates : Records
        Records that a coin decided about, trained on or not.
    of : int array, one a record of ``candidates``
        Position of the candidate it belongs to, in [0, m); several belong to one where a column tells units.
    coins : int8 array (m,)
        1 = trained on.
    ids : tuple of m str
    """

    trained: Records
    candidates: Records
    of: np.ndarray
    coins: np.ndarray
    ids: tuple[str, ...]


def expected_size(config: Config) -> int:
    """Real records trained on, on average, of the declared number: fixed before any coin, counted from no record."""
    declared = config.privacy.public_size
    candidates = round(2 * config.audit.holdout_fraction * declared)  # half of them are held out on average
    return declared - round(candidates / 2)


def hold_out_records(config: Config, folder: RunFolder, records: Records) -> Split | None:
    """Draw the holdout, or read back the one that an interrupted run drew.

    Where a column tells units of privacy, whole units are put to the coin.
    """
    if not config.audit.holdout_fraction:
        return None
    from dpaudit.attacks import hold_out
    from dpaudit.attacks.canaries.coins import draw_nonce
    from dpaudit.attacks.holdout import holdout_ids, read_holdout, unique_records, unique_units, write_holdout
    from dpaudit.trainers.units import Units

    names = records.texts if records.units is None else tuple(dict.fromkeys(records.units))
    of = np.arange(len(records)) if records.units is None else Units.named(records.units).of
    path = folder.holdout
    if path.exists():
        holdout, ids = read_holdout(path)
    else:
        eligible = unique_records(records.texts) if records.units is None else unique_units(records.texts, of)
        holdout = hold_out(len(names), config.audit.holdout_fraction, eligible=eligible)
        ids = holdout_ids(holdout, names, draw_nonce())
        write_holdout(path, holdout, ids)
    chosen = np.flatnonzero(np.isin(of, holdout.candidates))
    return Split(
        trained=records.take(np.flatnonzero(np.isin(of, holdout.kept)).tolist()),
        candidates=records.take(chosen.tolist()),
        of=np.searchsorted(holdout.candidates, of[chosen]),
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
        attack="loss-residual on real records" if split.candidates.units is None else "loss-residual on real units",
    )
    result = audit(Scores(split.ids, scores, split.coins), plan)
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
    """(m,) loss of each candidate: a unit's is the mean over its records."""
    from dpaudit.runs.encoding import encode, losses_of

    losses = losses_of(prepared, model, encode(prepared, split.candidates))
    return np.bincount(split.of, losses) / np.bincount(split.of)
