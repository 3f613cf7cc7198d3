"""Verification steps on beacons: their coins, whether they show a live attack, and the claim for their groups."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dpaudit.certificates.group import group_epsilon
from dpaudit.certificates.statement import Beacons, Predicate
from dpaudit.certificates.verify.accounting import Recomputed, bounds
from dpaudit.certificates.verify.compare import TOLERANCE, written_here
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Step, judge
from dpaudit.privacy.canaries import ALIVE
from dpaudit.privacy.rounding import exact_text, upper_text
from dpaudit.privacy.scores import Scores
from dpaudit.storage.commitment import commitment, manifest

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan
    from dpaudit.auditing.beacons import BeaconPlan


def opened_beacons(body: Predicate, plan: AuditPlan) -> Scores | None:
    """Scores and coins of the certificate's beacons; None unless they open the commitment that the plan holds.

    Coins that open no commitment may have been chosen after the scores were seen, so that they show nothing.
    """
    section, planned = body.beacons, plan.beacons
    if section is None or planned is None or _why_not(section, planned):
        return None
    ids, coins, values = zip(*section.canaries, strict=True)
    return Scores(ids, values, coins)


def beacon_steps(body: Predicate, guarantees: Recomputed) -> list[Step]:
    """Steps on the beacons of a certificate; none for a plan and a certificate without any."""
    from dpaudit.auditing import AuditPlan

    audit, section = body.audit, body.beacons
    stated = None if audit is None or audit.plan is None else audit.plan.get("beacons")
    if stated is None and section is None:
        return []
    if stated is None or audit is None or audit.plan is None:
        return [Step("beacons.coins", DIFFERENT, "the certificate holds beacons and its audit plan froze none")]
    planned = AuditPlan.from_dict(audit.plan).beacons
    assert planned is not None  # the plan states them
    if section is None:
        return [Step("beacons.coins", DIFFERENT, "the audit plan froze beacons and the certificate holds none")]
    why = _why_not(section, planned)
    told = f"nonce, ids and coins of {planned.count} beacons open {planned.commitment[:12]}…"
    steps = [judge("beacons.coins", not why, told, why)]
    if not why:
        steps.append(_life_step(body, planned, section))
    return [*steps, _group_step(body, planned, guarantees)]


def _why_not(section: Beacons, planned: BeaconPlan) -> str:
    """Why these beacons are not those that the plan froze; empty where they are."""
    if len(section.canaries) != planned.count or section.copies != planned.copies:
        return (
            f"the plan froze {planned.count} beacons of {planned.copies} copies and the certificate holds"
            f" {len(section.canaries)} of {section.copies}"
        )
    ids, coins, _ = zip(*section.canaries, strict=True)
    if len(set(ids)) != len(ids):
        return "a beacon stands twice"
    if commitment(bytes.fromhex(section.nonce), manifest(ids, coins, section.copies)) != planned.commitment:
        return "nonce, ids and coins do not open the beacons' commitment: coins were changed"
    return ""


def _life_step(body: Predicate, planned: BeaconPlan, section: Beacons) -> Step:
    """Whether the attack is alive, from the scores in the certificate, against what its result says."""
    from dpaudit.auditing.beacons import DEAD, beacon_finding

    ids, coins, values = zip(*section.canaries, strict=True)
    found = beacon_finding(planned, Scores(ids, values, coins))
    result = None if body.audit is None else body.audit.result
    names = {row.get("name") for row in (result or {}).get("findings") or ()}
    said = tuple(name for name in (ALIVE, DEAD) if name in names)
    p = "no p-value" if found.p_value is None else f"p={upper_text(found.p_value, 2)}"
    word = "alive" if found.name == ALIVE else "not shown to be alive"
    same = said == (found.name,)
    stated = "nothing of it, or both" if len(said) != 1 else "alive" if said == (ALIVE,) else "not alive"
    return judge("beacons.life", same, f"{word}, {p}", f"the scores give {word}, {p}, and the result says {stated}")


def _group_step(body: Predicate, planned: BeaconPlan, guarantees: Recomputed) -> Step:
    """The claim for the groups that copies of a beacon are, of the recorded steps."""
    name, units, stated = "beacons.group_claim", planned.group_size, planned.group_epsilon
    if units == 1:
        return judge(name, stated is None, "each beacon is one unit", "the plan has a group claim for single units")
    if body.ledger is None or body.claim is None:
        return Step(name, ABSENT, "there is no ledger or no claim to account their groups from")
    usable = [guarantee.accountant for guarantee in bounds(guarantees) if guarantee.epsilon_upper is not None]
    found = group_epsilon(body.ledger.to_ledger(), delta=body.claim.delta, accountants=usable, copies=units)
    if found is None:
        return Step(name, ABSENT, "no accountant here can treat groups of this ledger")
    told = f"epsilon for {units} records is at most {upper_text(found, 6)}"
    if stated is None:
        return Step(name, ABSENT, f"{told}; the plan names none")
    close = math.isclose(stated, found, rel_tol=TOLERANCE if written_here(body) else 1e-3)
    # A run that stopped early costs its groups less than was planned.
    fits = close or (body.run_status != "complete" and stated > found)
    return Step(name, EQUAL, told) if fits else Step(name, DIFFERENT, f"{told} and the plan has {exact_text(stated)}")
