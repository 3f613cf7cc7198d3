"""The verdict that follows from what was recomputed here, beside the one that the certificate states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dpaudit.certificates.build import derived_verdict, missing_fields
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import GuaranteeModel, Predicate, Subject, VerdictModel
from dpaudit.certificates.verdict import EARLIER_MEANINGS
from dpaudit.certificates.verify.accounting import Fresh, Recomputed
from dpaudit.certificates.verify.audit_result import RecomputedAudit, nothing_recomputed
from dpaudit.certificates.verify.compare import written_here
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, RECORDED, Step
from dpaudit.certificates.verify.words import same_text
from dpaudit.privacy.finding import NOTE, finding_status
from dpaudit.privacy.verdict import Verdict

_BOUNDS = ("epsilon_upper", "epsilon_lower", "epsilon_estimate", "rigorous")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A verdict made of recomputed values only.

    Attributes
    ----------
    name : Verdict
    reasons : tuple of str
    complete : bool
        Whether all that decides could be recomputed. Where it could not, silence is ``inconclusive`` at most, and the
        certificate may say more than can be seen here.
    """

    name: Verdict
    reasons: tuple[str, ...]
    complete: bool


def derive(
    body: Predicate, subjects: Sequence[Subject], guarantees: Recomputed, again: RecomputedAudit | None
) -> Derived:
    """Derive the verdict from recomputed bounds, the audit made again, and stated findings against the claim.

    Nothing stated supports a verdict: an accountant that cannot be run proves nothing, an audit whose scores or control
    are not here is silent, and power that was not measured again is null. What is stated against the claim counts.
    """
    rows, complete = _rows(body, guarantees)
    view = body.replaced(accounting=body.accounting.replaced(guarantees=rows))
    if body.audit is not None:
        again = again or nothing_recomputed()
        view = view.replaced(audit=body.audit.replaced(result=_result(body.audit.result, again)))
        complete = complete and (again.complete or body.audit.result is None)
    verdict = derived_verdict(view.replaced(missing=missing_fields(view, subjects)))
    return Derived(name=verdict.name, reasons=verdict.reasons, complete=complete)


def _rows(body: Predicate, guarantees: Recomputed) -> tuple[tuple[GuaranteeModel, ...], bool]:
    """Stored guarantees with the bounds found here; those that could not be recomputed are left out."""
    rows: list[GuaranteeModel] = []
    complete = True
    for row in body.accounting.guarantees:
        fresh = guarantees.get(row.accountant, Fresh())
        if fresh.unfinished:
            # The limits ended it: the stored bound stands in, and the report as a whole is not finished.
            complete = False
            rows.append(row)
        elif fresh.guarantee is not None:
            rows.append(row.replaced(**{name: getattr(fresh.guarantee, name) for name in _BOUNDS}))
        else:
            complete = complete and not row.rigorous
            rows += [] if row.rigorous else [row]
    return tuple(rows), complete


def _result(stated: dict[str, Any] | None, again: RecomputedAudit) -> dict[str, Any] | None:
    """The audit's result as far as it was made again; a result that is left out cannot hide what its evidence shows."""
    fresh = again.result.value
    if fresh is None:
        if stated is None:
            return None
        fresh = _silent(stated, again)
    if again.group_epsilon is None:
        return fresh
    return {**fresh, "claim": {**(fresh.get("claim") or {}), "tested_epsilon": again.group_epsilon}}


def _silent(stated: dict[str, Any], again: RecomputedAudit) -> dict[str, Any]:
    """What is left of a result without its scores: the bound of the certified guesses, and findings against the claim.

    A stated bound counts only where none can be computed, since it can only speak against the claim.
    """
    against = [row for row in stated.get("findings") or () if finding_status(row) not in (NOTE, Verdict.CONSISTENT)]
    verdict = stated.get("verdict")
    primary = stated.get("primary") or {}
    lower = again.lower_at_verdict
    return {
        "verdict": Verdict.INCONCLUSIVE if verdict == Verdict.CONSISTENT else verdict,
        "findings": against,
        "primary": primary if lower is None else {"epsilon_lower_at_verdict": lower},
        "power": None,
        "power_lower": None,
        "claim": dict(stated.get("claim") or {}),
    }


def verdict_steps(body: Predicate, derived: Derived) -> list[Step]:
    """The stated verdict against the derived one, and its words against those that follow."""
    stated, name = body.verdict, body.verdict.name
    why = "; ".join(derived.reasons)[:300]
    if name != derived.name:
        if name == Verdict.CONSISTENT and derived.name == Verdict.INCONCLUSIVE and not derived.complete:
            detail = f"consistent is stated, and what it rests on is not all here: {why}"
            return [Step("verdict", ABSENT, detail), _meaning_step(body)]
        detail = f"the evidence gives {derived.name} ({why}) and {name} is stated"
        return [Step("verdict", DIFFERENT, detail), _meaning_step(body)]
    told = name if derived.complete else f"{name}, from what can be recomputed here"
    return [Step("verdict", EQUAL, told), _meaning_step(body), _reasons_step(stated, derived, written_here(body))]


def _meaning_step(body: Predicate) -> Step:
    stated = body.verdict
    earlier = EARLIER_MEANINGS.get(stated.name, ())
    if stated.meaning == stated.name.meaning or (stated.meaning in earlier and not written_here(body)):
        return Step("verdict.meaning", EQUAL, "the words of this verdict")
    if written_here(body) or "rules" not in body.verifier:
        return Step("verdict.meaning", DIFFERENT, f"these are not the words for {stated.name}")
    return Step("verdict.meaning", RECORDED, "words of another version of dpaudit, or of other rules")


def _reasons_step(stated: VerdictModel, derived: Derived, own: bool) -> Step:
    name, reasons = "verdict.reasons", plain_json(list(derived.reasons))
    same = len(stated.reasons) == len(reasons) and all(map(same_text, stated.reasons, reasons))
    if same:
        return Step(name, EQUAL, f"{len(reasons)} reason(s) follow from the evidence")
    if own and derived.complete:
        return Step(name, DIFFERENT, f"the evidence gives: {'; '.join(reasons)[:300]}")
    return Step(name, RECORDED, "the writer's reasons; not all of them can be derived here")
