"""Verification steps on ε: every stored accountant is run again on the embedded ledger."""

from __future__ import annotations

import dataclasses
import math

from dpaudit.certificates.plain import to_float
from dpaudit.certificates.statement import GuaranteeModel, Predicate
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, UNFINISHED, Step
from dpaudit.privacy.errors import DpauditError, UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee, smallest_upper
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import exact_text, lower_text, nearest_text, upper_text
from dpaudit.privacy.tolerance import exceeds
from dpaudit.storage.budget import OutOfTime, section

# Same accountant, same version: only the last digits may differ between machines. Another version may discretise
# differently, so its answer may move by a tenth of a percent, and may be tighter than what was stored by one percent.
SAME_VERSION = 1e-6
OTHER_VERSION = 1e-3
TIGHTER = 1e-2
MAX_STEPS = 10**9
PRINTED = {"epsilon_upper": upper_text, "epsilon_lower": lower_text, "epsilon_estimate": nearest_text}
"""Numbers of a guarantee, and how each is rounded in print."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What running one stored accountant again gave; all empty where it cannot be run here.

    Attributes
    ----------
    guarantee : Guarantee or None
    refused : str
        Why the accountant refuses this ledger.
    unfinished : bool
        Whether limits of time or memory ended it.
    """

    guarantee: Guarantee | None = None
    refused: str = ""
    unfinished: bool = False


Recomputed = dict[str, Fresh]
"""Accountant to what its fresh run gave."""


def bounds(recomputed: Recomputed) -> list[Guarantee]:
    """The guarantees that were recomputed."""
    return [fresh.guarantee for fresh in recomputed.values() if fresh.guarantee is not None]


def recomputed_guarantees(body: Predicate) -> Recomputed:
    """Run each stored accountant on the embedded ledger."""
    names = [g.accountant for g in body.accounting.guarantees]
    claim = body.claim
    if claim is None or not names:
        return dict.fromkeys(names, Fresh())
    try:
        ledger = None if body.ledger is None else body.ledger.to_ledger()
    except (DpauditError, TypeError, ValueError):
        ledger = None
    if ledger is None or ledger.steps > MAX_STEPS:
        return dict.fromkeys(names, Fresh())
    results: Recomputed = {}
    for name in dict.fromkeys(names):
        try:
            with section():
                results[name] = _run(name, ledger, claim.delta)
        except OutOfTime:
            results[name] = Fresh(unfinished=True)
    return results


def accounting_steps(body: Predicate, recomputed: Recomputed) -> list[Step]:
    """One step per stored accountant."""
    return [_compare(stored, recomputed.get(stored.accountant, Fresh())) for stored in body.accounting.guarantees]


def claim_step(body: Predicate, recomputed: Recomputed) -> list[Step]:
    """Claim against the smallest bound that was recomputed here."""
    upper = smallest_upper(bounds(recomputed))
    if body.claim is None or upper is None:
        return [Step("claim", ABSENT, "no certified upper bound could be recomputed here")]
    claim = body.claim.epsilon
    relation = "does not exceed" if not exceeds(upper, claim) else "exceeds"
    return [
        Step(
            "claim",
            EQUAL,
            f"recomputed ε ≤ {upper_text(upper, 6, within=claim)} {relation} the claimed {exact_text(claim)}",
        )
    ]


def _run(name: str, ledger: Ledger, delta: float) -> Fresh:
    from dpaudit.accounting import account

    try:
        (guarantee,) = account(ledger, delta=delta, accountants=(name,))
    except UnsupportedStage as error:
        return Fresh(refused=str(error))
    except Exception:  # a hostile ledger, or another's plug-in: whatever it raises, nothing was recomputed
        return Fresh()
    return Fresh(guarantee=guarantee)


def _compare(stored: GuaranteeModel, run: Fresh) -> Step:
    name, fresh = f"accounting.{stored.accountant}", run.guarantee
    if run.unfinished:
        return Step(name, ABSENT, f"{UNFINISHED}, so it supports nothing")
    if run.refused:
        return Step(name, DIFFERENT, f"the accountant refuses this ledger: {run.refused}")
    if fresh is None:
        return Step(name, ABSENT, "this installation has no such accountant, or it cannot run on this ledger")
    if stored.rigorous and not fresh.rigorous:
        return Step(name, DIFFERENT, "the stored value is called rigorous and the accountant proves no bound")
    tolerance = SAME_VERSION if stored.version == fresh.version else OTHER_VERSION
    shown = []
    for field in PRINTED:
        a, b = getattr(stored, field), getattr(fresh, field)
        if (a is None) != (b is None):
            return Step(name, DIFFERENT, f"{field} is {a} in the certificate and {b} recomputed")
        if a is None:
            continue
        a, b = to_float(a), to_float(b)
        finite = math.isfinite(a) and math.isfinite(b)
        near = a == b or (finite and abs(a - b) <= tolerance * max(abs(a), abs(b)) + 1e-9)
        looser = tolerance == OTHER_VERSION and field == "epsilon_upper" and b <= a <= b * (1 + TIGHTER)
        if not near and not looser:
            return Step(
                name, DIFFERENT, f"{field} is {exact_text(a)} in the certificate and {exact_text(b)} recomputed"
            )
        shown.append(f"{field} {PRINTED[field](b, 6)}")
    if tolerance == SAME_VERSION and stored.assumption != fresh.assumption:
        return Step(name, DIFFERENT, f"the assumption it rests on is {fresh.assumption[:200]!r}")
    if tolerance == OTHER_VERSION:
        shown.append(f"version {stored.version} stored, {fresh.version} here")
    return Step(name, EQUAL, ", ".join(shown))
