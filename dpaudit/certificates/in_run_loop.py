"""In-run canaries of a training loop of one's own: committed before the first step, certified at the end."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.auditing.in_run.arrays import bits_text
from dpaudit.auditing.in_run.audit import InRunResult, in_run_audit
from dpaudit.auditing.in_run.evidence import InRunEvidence, energy_from_state, in_run_manifest
from dpaudit.auditing.in_run.plan import COORDINATES, InRunPlan, guesses_in_run, split_alpha
from dpaudit.auditing.plan import AlphaSplit
from dpaudit.certificates.curve import declared_deltas
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Relation
from dpaudit.storage.commitment import NONCE_BYTES, canonical_json, commitment, sha256_bytes
from dpaudit.storage.files import write_atomically


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class InRunSeen:
    """What the observer of every noisy update saw of a finished run, with what opens the commitment."""

    evidence: InRunEvidence
    nonce: bytes


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class InRunCommitted:
    """In-run canaries under commitment, from :func:`dpaudit.certificates.commit_in_run`; secret until the run ends.

    Attributes
    ----------
    plan : InRunPlan
        Give ``plan.to_dict()`` to :func:`dpaudit.auditing.design` as ``in_run``.
    alpha_split : AlphaSplit
        What is left of α for the audit of the final model; give it to ``design`` too.
    coordinates, coins : arrays (m,)
        Of the canaries.
    nonce : bytes
        32 secret bytes.
    """

    plan: InRunPlan
    alpha_split: AlphaSplit
    coordinates: NDArray[np.int64]
    coins: NDArray[np.bool_]
    nonce: bytes

    def seen(self, scores: ArrayLike, energy: Mapping[str, Any]) -> InRunSeen:
        """The evidence of the finished run.

        Parameters
        ----------
        scores : array (m,)
            ``InRunCanaries.scores()``.
        energy : mapping
            ``ReleaseRecorder.state()``.
        """
        evidence = InRunEvidence(
            coordinates=self.coordinates,
            scores=np.asarray(scores, dtype=np.float64),
            coins=self.coins,
            energy=energy_from_state(energy),
        )
        return InRunSeen(evidence=evidence, nonce=self.nonce)


def commit_in_run(
    coordinates: ArrayLike,
    coins: ArrayLike,
    *,
    dimension: int,
    claimed_epsilon: float,
    delta: float,
    relation: Relation | str,
    unit: str,
    alpha: float = 0.05,
) -> InRunCommitted:
    """Commit to in-run canaries and plan their audit, before the first step.

    Parameters
    ----------
    coordinates, coins : arrays (m,)
        Of :func:`dpaudit.attacks.draw_in_run_canaries`.
    dimension : int
        Number of trained coordinates.
    claimed_epsilon, delta, relation, unit
        The claim.
    alpha : float, default=0.05
        False-alarm budget of the whole run; it is divided between the final model, the run and the examination.

    Returns
    -------
    InRunCommitted
        The plan to freeze with the audit plan, and the coins and nonce that stay secret until training ends.

    Raises
    ------
    InvalidValue
        If coins are not as many as coordinates, there are too few canaries to show anything, or a value is out of its
        bounds.
    """
    where, flips, nonce = np.asarray(coordinates, np.int64), np.asarray(coins).astype(bool), os.urandom(NONCE_BYTES)
    if where.shape != flips.shape or where.ndim != 1:
        raise InvalidValue(f"{flips.size} coins stand beside {where.size} coordinates; give one coin for each.")
    final, mine = split_alpha(alpha)
    plan = InRunPlan(
        kind=COORDINATES,
        m=len(where),
        dimension=dimension,
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        relation=Relation.parse(relation),
        unit=unit,
        guesses=guesses_in_run(len(where), claimed_epsilon, delta, mine),
        alpha=alpha,
        alpha_split=mine,
        commitment=commitment(nonce, in_run_manifest(where, flips, dimension)),
    )
    return InRunCommitted(plan=plan, alpha_split=final, coordinates=where, coins=flips, nonce=nonce)


def in_run_section(
    path: Path, planned: Mapping[str, Any] | None, seen: InRunSeen, ledger: Ledger, accounted_upper: float | None
) -> tuple[InRunResult, dict[str, Any]]:
    """Write ``in_run.json`` at ``path`` and make the certificate's section of it.

    Raises
    ------
    InvalidEvidence
        When the audit plan announced no in-run audit, or another one.
    """
    if planned is None:
        raise InvalidEvidence("audit_plan.json announces no in-run audit; give design its in_run before training.")
    plan, evidence = InRunPlan.from_dict(planned), seen.evidence
    if plan.m and commitment(seen.nonce, evidence.manifest(plan.dimension)) != plan.commitment:
        raise InvalidEvidence("the in-run canaries do not open the commitment in audit_plan.json; give those.")
    content = canonical_json(evidence.to_dict()) + b"\n"
    write_atomically(path, content)
    return section_of(plan, seen, sha256_bytes(content), ledger, accounted_upper)


def section_of(
    plan: InRunPlan, seen: InRunSeen, evidence_digest: str, ledger: Ledger, accounted_upper: float | None
) -> tuple[InRunResult, dict[str, Any]]:
    """Audit what was seen, and make the certificate's section: ``coins``, ``nonce``, ``evidence_digest``, ``result``.

    Parameters
    ----------
    plan, seen
        Of the run; ``seen`` opens the plan's commitment.
    evidence_digest : str
        SHA-256 of ``in_run.json``.
    ledger : Ledger
        The steps that were counted.
    accounted_upper : float or None
        Their certified ε.
    """
    result = in_run_audit(
        plan,
        seen.evidence,
        stages=ledger.stages,
        deltas=declared_deltas(ledger, plan.epsilons) if plan.m else (),
        coins="verified",
        accounted_upper=accounted_upper,
    )
    section = {
        "coins": bits_text(seen.evidence.coins) if plan.m else None,
        "nonce": seen.nonce.hex() if plan.m else None,
        "evidence_digest": evidence_digest,
        "result": result.to_dict(),
    }
    return result, section
