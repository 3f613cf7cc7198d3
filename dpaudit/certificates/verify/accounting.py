"""Verification steps on ε: every stored accountant is run again on the embedded ledger."""

from __future__ import annotations

import dataclasses
import math

from dpaudit.certificates.other_relation import other_upper, stated_upper
from dpaudit.certificates.plain import to_float
from dpaudit.certificates.statement import GuaranteeModel, Predicate
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, UNFINISHED, Step
from dpaudit.privacy.errors import DpauditError, UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee, smallest_upper
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import DIGITS, exact_text, lower_text, nearest_text, upper_text
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


def other_relation_steps(body: Predicate, recomputed: Recomputed) -> list[Step]:
    """ε under the relation that is not claimed, where a certificate states it: computed again from the ledger.

    It is printed with four digits and without the version of the accountant that made it. Where the certificate has all
    accountants of this installation that may have made it, ``prv`` among them, one unit of the last digit may differ;
    otherwise the tolerances of another version hold.
    """
    stated, name = body.provenance.get("other_relation"), "accounting.other_relation"
    if stated is None:
        return []
    if body.claim is None or body.ledger is None:
        return [Step(name, ABSENT, "it follows from claim and ledger, which are not both here; it supports nothing")]
    ledger, delta = body.ledger.to_ledger(), body.claim.delta
    if ledger.steps > MAX_STEPS:
        return [Step(name, ABSENT, "the ledger has too many steps to be accounted here; it supports nothing")]
    printed = stated_upper(str(stated), ledger, delta=delta)
    upper = other_upper(ledger, delta=delta, accountants=tuple(recomputed))
    fresh = None if upper is None else upper_text(upper)
    if printed != fresh and (printed is None or fresh is None or not _same_print(printed, fresh, body, recomputed)):
        if any(again.guarantee is None and not again.refused for again in recomputed.values()):
            return [Step(name, ABSENT, "an accountant of the certificate cannot run here; it supports nothing")]
        return [Step(name, DIFFERENT, f"ε is {printed or 'unbounded'} in the certificate, {fresh or 'unbounded'} here")]
    told = "no accountant bounds it" if printed is None else f"ε ≤ {fresh}"
    return [Step(name, EQUAL, f"{told} under the relation that is not claimed")]


def _same_print(printed: str, fresh: str, body: Predicate, recomputed: Recomputed) -> bool:
    """Whether two texts of an upper bound may come from the same steps."""
    stated, here = to_float(printed if printed != "∞" else "inf"), to_float(fresh if fresh != "∞" else "inf")
    if not (math.isfinite(stated) and math.isfinite(here)):
        return stated == here
    digit = 1.01 * 10.0 ** (math.floor(math.log10(max(stated, here, 1e-300))) - DIGITS + 1)
    versions = [(g.version, recomputed.get(g.accountant, Fresh()).guarantee) for g in body.accounting.guarantees]
    if "prv" in recomputed and all(again is not None and again.version == version for version, again in versions):
        return abs(stated - here) <= digit
    return here * (1 - OTHER_VERSION) - digit <= stated <= here * (1 + TIGHTER) + digit


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
