"""Do the scores know anything of membership at all, and in the right direction?"""

from __future__ import annotations

from dpaudit.auditing.beacons import BeaconPlan, beacon_finding
from dpaudit.auditing.roc import auc, rank_sum_p_value
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import upper_text
from dpaudit.privacy.scores import Scores

LIVE_P_VALUE = 1e-6
"""Scores whose rank sum is not this improbable under "no trace of membership" never give ``consistent``."""
REVERSED_P_VALUE = 1e-3
"""Scores whose rank sum is this improbable in the wrong direction are called reversed; words only, never a verdict."""
REVERSED = "reversed_scores"


def signs_of_life(scores: Scores, planned: BeaconPlan | None, beacons: Scores | None) -> list[Finding]:
    """What shows, or does not show, that the attack is alive on this run.

    Where the plan has beacons, they show it, however little the canaries of the audit leak; else the canaries' own
    scores must. Reversed scores of the audit are told either way.

    Parameters
    ----------
    scores : Scores
        Of the audit.
    planned : BeaconPlan or None
        The plan's beacons.
    beacons : Scores or None
        Theirs, by the same attack.

    Raises
    ------
    InvalidValue
        For scores of beacons that no plan froze.
    """
    own = liveness(scores)
    if planned is None:
        if beacons is not None:
            raise InvalidValue("beacons were given and the plan froze none; leave them out, or plan them first.")
        return [] if own is None else [own]
    found = [beacon_finding(planned, beacons)]
    return found if own is None or own.name != REVERSED else [*found, own]


def liveness(scores: Scores) -> Finding | None:
    """What dead or reversed scores mean for a verdict; None for scores that rank members above the others.

    Reversed scores are never turned round: the direction is fixed before the coins are opened, and an analyst who may
    choose it afterwards has two attacks and the false alarms of both.
    """
    values, members = scores.values, scores.members
    p = rank_sum_p_value(values, members)
    if p <= LIVE_P_VALUE:
        return None
    wrong_way = rank_sum_p_value(-values, members)
    if wrong_way <= REVERSED_P_VALUE:
        return _reversed(auc(values, members), wrong_way)
    return Finding(
        name="null_scores",
        status="inconclusive",
        claim="audit",
        p_value=p,
        text=(
            f"The scores rank members above the others with p={upper_text(p, 2)}, short of the {LIVE_P_VALUE:g} that"
            " shows a live attack: above that, a mechanism that leaks little and an attack that is dead, or"
            " joined to the"
            " wrong ids, look too much alike for silence to mean anything."
        ),
    )


def _reversed(area: float, p: float) -> Finding:
    return Finding(
        name=REVERSED,
        status="inconclusive",
        claim="audit",
        p_value=p,
        text=(
            f"The scores look reversed: members score lower than the others (AUC {area:.3g}, rank-sum"
            f" p={upper_text(p, 2)} in that direction), while a higher score must mean member. Either they"
            " are losses, which need a minus sign"
            " before the coins are opened, or ids or coins were joined wrongly. They are not turned round here, and"
            " nothing is concluded from them."
        ),
    )
