"""The verdict that follows from what was recomputed here, beside the one that the certificate states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dpaudit.certificates.faults import missing_fields
from dpaudit.certificates.lines import assess
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import GuaranteeModel, Predicate, Subject, VerdictModel
from dpaudit.certificates.verdict import EARLIER_MEANINGS
from dpaudit.certificates.verify.accounting import Fresh, Recomputed
from dpaudit.certificates.verify.audit_result import RecomputedAudit, nothing_recomputed
from dpaudit.certificates.verify.compare import written_here
from dpaudit.certificates.verify.in_run import RecomputedInRun, as_recomputed
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, RECORDED, Step
from dpaudit.certificates.verify.words import same_text
from dpaudit.privacy.finding import NOTE, finding_status
from dpaudit.privacy.level import Level, Line
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
    level : Level
        How far what was recomputed reaches; never 4, which signatures decide.
    lines : tuple of Line
    """

    name: Verdict
    reasons: tuple[str, ...]
    complete: bool
    level: Level = Level.CLAIMED
    lines: tuple[Line, ...] = ()


def derive(
    body: Predicate,
    subjects: Sequence[Subject],
    guarantees: Recomputed,
    again: RecomputedAudit | None,
    *,
    chained: bool,
    in_run: RecomputedInRun | None = None,
) -> Derived:
    """Derive the verdict from recomputed bounds, the audit made again, and stated findings against the claim.

    Nothing stated supports a verdict: an accountant that cannot be run proves nothing, an audit whose scores or control
    are not here is silent, and power that was not measured again is null. What is stated against the claim counts.
    ``chained`` is whether the ledger's chain of digests was seen here and fits.
    """
    rows, complete = _rows(body, guarantees)
    view = body.replaced(accounting=body.accounting.replaced(guarantees=rows))
    if body.audit is not None:
        again = again or nothing_recomputed()
        view = view.replaced(audit=body.audit.replaced(result=_result(body.audit.result, again)))
        complete = complete and (again.complete or body.audit.result is None)
    if body.in_run is not None:
        view = view.replaced(in_run=body.in_run.replaced(result=as_recomputed(body.in_run.result, in_run)))
        complete = complete and in_run is not None and in_run.complete
    found = assess(view.replaced(missing=missing_fields(view, subjects)), chained=chained)
    return Derived(
        name=found.verdict,
        reasons=found.reasons,
        complete=complete and chained,
        level=found.level,
        lines=found.lines,
    )


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
    """Audit result as far as it holds without scores: the certified guesses' bound, and findings against the claim.

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
        if (
            name == Verdict.CONSISTENT
            and derived.name == Verdict.INCONCLUSIVE
            and (not derived.complete or not levels_stated(body))
        ):
            detail = f"consistent is stated, and what it rests on is not all here: {why}"
            return [Step("verdict", ABSENT, detail), _meaning_step(body)]
        detail = f"the evidence gives {derived.name} ({why}) and {name} is stated"
        return [Step("verdict", DIFFERENT, detail), _meaning_step(body)]
    told = name if derived.complete else f"{name}, from what can be recomputed here"
    return [Step("verdict", EQUAL, told), _meaning_step(body), _reasons_step(stated, derived, written_here(body))]


def levels_stated(body: Predicate) -> bool:
    """Whether a certificate states a level; earlier versions called an audit with power consistent without one."""
    return body.level is not None or body.lines is not None or body.verifier.get("rules") not in _WITHOUT_LEVELS


_WITHOUT_LEVELS = (None, "1", "2")


def level_steps(body: Predicate, derived: Derived) -> list[Step]:
    """The stated level and lines against those that follow from what was recomputed."""
    if not levels_stated(body):
        return [Step("level", RECORDED, f"none is stated; the evidence here reaches level {int(derived.level)} of 4")]
    if body.level is None or body.lines is None:
        return [Step("level", DIFFERENT, "a certificate by these rules states its level and its four lines")]
    here = f"level {int(derived.level)}, {derived.level.words}"
    if body.level == derived.level:
        steps = [Step("level", EQUAL, here)]
    elif body.level > derived.level and not derived.complete:
        steps = [Step("level", ABSENT, f"level {body.level} is stated, and what is here reaches {here}")]
    else:
        steps = [Step("level", DIFFERENT, f"the evidence reaches {here}, and level {body.level} is stated")]
    return [*steps, *_line_steps(body, derived)]


def _line_steps(body: Predicate, derived: Derived) -> list[Step]:
    steps, own = [], written_here(body)
    for number, fresh in enumerate(derived.lines):
        stated = (body.lines or ())[number]
        name = f"line.{fresh.name}"
        if stated.name != fresh.name:
            steps.append(Step(name, DIFFERENT, f"line {number + 1} is {stated.name}"))
            continue
        standing = stated.standing == str(fresh.standing)
        words = same_text(stated.text, fresh.text) and len(stated.reasons) == len(fresh.reasons)
        words = words and all(map(same_text, stated.reasons, fresh.reasons))
        told = f"{fresh.standing}: {fresh.text}"
        if standing and words:
            steps.append(Step(name, EQUAL, told))
        elif not derived.complete and (standing or (stated.standing == "shown" and not fresh.contradicts)):
            steps.append(Step(name, ABSENT, f"not all that it rests on is here, which gives {told}"))
        elif standing and not own:
            steps.append(Step(name, RECORDED, "words of another version of dpaudit, or of other rules"))
        else:
            steps.append(Step(name, DIFFERENT, f"the evidence gives {told}; {'; '.join(fresh.reasons)[:200]}"))
    return steps


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
