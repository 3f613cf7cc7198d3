"""The verdict: findings and a measured power in, one of five words out, by a fixed precedence.

Everything that states a verdict asks :func:`decide`: the audit, the certificate, and its verification.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpaudit.privacy.finding import VERDICTS as VERDICTS
from dpaudit.privacy.finding import Finding

EXIT_CODES = {"consistent": 0, "violated": 1, "accounting_mismatch": 1, "inconclusive": 2, "invalid_audit": 3}
"""What a command line returns for each verdict."""

ENOUGH_POWER = 0.8
"""Where the lower limit of the attack's power is below this, an audit that found nothing is inconclusive."""


def decide(findings: Sequence[Finding], *, power: float | None) -> str:
    """Verdict of a list of findings.

    ``consistent`` needs three things: nothing found, a measured power whose lower limit is at least 0.8, and no finding
    that asks for ``inconclusive``. An invalid audit's own statistics must not be among the findings; other witnesses
    stay.

    Parameters
    ----------
    findings : sequence of Finding
        Everything that was found.
    power : float or None
        LOWER end of the 95 % interval of the attack's power; None where it was not measured.

    >>> decide([], power=None)
    'inconclusive'
    >>> decide([], power=0.9)
    'consistent'
    """
    return decide_statuses((finding.status for finding in findings), power=power)


def decide_statuses(statuses: Iterable[str], *, power: float | None) -> str:
    """As :func:`decide`, from the findings' statuses alone."""
    asked = set(statuses)
    for verdict in VERDICTS[:-1]:
        if verdict in asked:
            return verdict
    return "consistent" if enough_power(power) else "inconclusive"


def enough_power(power_lower: float | None) -> bool:
    """Whether a measured power supports silence: its lower limit is known and at least 0.8."""
    return power_lower is not None and power_lower >= ENOUGH_POWER


def worse(first: str, second: str) -> str:
    """The one of two verdicts that takes precedence.

    >>> worse("consistent", "violated")
    'violated'
    """
    return min(first, second, key=VERDICTS.index)
