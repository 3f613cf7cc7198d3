"""Reading the scores and the control that lie beside a certificate, bound by digest to it and to its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.certificates.control_file import binding_of, foreign_control, read_control_file
from dpaudit.certificates.statement import Audit
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Outcome, Step
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.readers import beside
from dpaudit.storage.scores import scores_of
from dpaudit.storage.tables import MAX_TABLE_BYTES

if TYPE_CHECKING:
    from dpaudit.auditing import Control


@dataclasses.dataclass(frozen=True, slots=True)
class ScoresRead:
    """Scores in the order of the certified canaries, or None; and the step that says how they were found."""

    values: list[float] | None
    step: Step


@dataclasses.dataclass(frozen=True, slots=True)
class ControlRead:
    """A control that belongs to the run, or None; how it was found, and why it does not count.

    Attributes
    ----------
    control : Control or None
    outcome : Outcome
        EQUAL for a control that may be measured, ABSENT where there is none, DIFFERENT for another one.
    detail : str
    bound : bool
        Whether the certificate binds a control at all.
    """

    control: Control | None
    outcome: Outcome
    detail: str
    bound: bool = True


def read_scores_beside(folder: Path, audit: Audit) -> ScoresRead:
    """Read ``scores.parquet`` if it is the certified file; exactly one score for each certified canary.

    Raises
    ------
    InvalidEvidence
        When the certified file does not hold the scores of the pre-registered attack on the certified canaries.
    """
    path = beside(folder, "scores.parquet")
    if audit.scores_digest is None:
        if path is not None:
            detail = "scores.parquet lies beside the certificate, which does not bind it"
            return ScoresRead(None, Step("audit.scores", DIFFERENT, detail))
        return ScoresRead(None, Step("audit.scores", ABSENT, "the certificate does not bind a score file"))
    if path is None:
        return ScoresRead(None, Step("audit.scores", ABSENT, "scores.parquet does not stand beside the certificate"))
    if path.stat().st_size > MAX_TABLE_BYTES or sha256_file(path) != audit.scores_digest:
        return ScoresRead(None, Step("audit.scores", DIFFERENT, "scores.parquet is not the certified score file"))
    step = Step("audit.scores", EQUAL, f"SHA-256 {audit.scores_digest[:12]}…")
    if audit.plan is None or not audit.canaries:
        return ScoresRead(None, step)
    attack = str(audit.plan.get("attack", "unspecified"))
    return ScoresRead(scores_of(path, audit.ids, attack=attack).tolist(), step)


def read_control_beside(folder: Path, audit: Audit, provenance: Mapping[str, Any]) -> ControlRead:
    """Read ``control_scores.parquet`` if it is the certified file and a control of this run."""
    if audit.control_digest is None:
        detail = "no positive control was made, so the power of this attack is unknown"
        return ControlRead(None, ABSENT, detail, bound=False)
    path = beside(folder, "control_scores.parquet")
    if path is None:
        return ControlRead(None, ABSENT, "control_scores.parquet does not stand beside the certificate")
    if path.stat().st_size > MAX_TABLE_BYTES or sha256_file(path) != audit.control_digest:
        return ControlRead(None, DIFFERENT, "control_scores.parquet is not the certified control")
    found = read_control_file(path)
    expected = binding_of(
        audit.plan or {},
        plan_sha256=audit.plan_digest,
        config_sha256=provenance.get("config_sha256"),
    )
    if why := foreign_control(found, expected, audit.ids):
        # An earlier dpaudit did not write what a control belongs to; such a control supports nothing.
        outcome = ABSENT if found.binding is None else DIFFERENT
        return ControlRead(None, outcome, f"the control is not bound to this run: {why}")
    return ControlRead(found.control, EQUAL, f"{len(found.control.scores)} control scores of this run")
