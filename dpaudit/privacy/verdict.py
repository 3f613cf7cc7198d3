"""The verdict: findings and a measured power in, one of five words out, by a fixed precedence.

Everything that states a verdict asks :func:`decide`: the audit, the certificate, and its verification.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol


class Verdict(StrEnum):
    """What can be said of a claim, in order of precedence: the first that any finding asks for is the verdict.

    A verdict is equal to its word, prints as it and is written as it.

    >>> Verdict.VIOLATED, Verdict("consistent").exit_code
    ('violated', 0)
    """

    VIOLATED = "violated"
    ACCOUNTING_MISMATCH = "accounting_mismatch"
    INVALID_AUDIT = "invalid_audit"
    INCONCLUSIVE = "inconclusive"
    CONSISTENT = "consistent"

    __repr__ = str.__repr__

    @property
    def exit_code(self) -> int:
        """What a command line returns for it."""
        return _EXIT_CODES[self]

    @property
    def meaning(self) -> str:
        """What it means for whoever reads a certificate, in two sentences."""
        return _MEANINGS[self]


_EXIT_CODES = {
    Verdict.CONSISTENT: 0,
    Verdict.VIOLATED: 1,
    Verdict.ACCOUNTING_MISMATCH: 1,
    Verdict.INCONCLUSIVE: 2,
    Verdict.INVALID_AUDIT: 3,
}
_MEANINGS = {
    Verdict.VIOLATED: (
        "Either more leaked from the model than the claim allows, or a test of the training mechanism found a fault."
        " Do not release the model under this claim."
    ),
    Verdict.ACCOUNTING_MISMATCH: (
        "The training that was recorded does not add up to the claim, or a value needed to recompute it is missing."
        " Nothing is said here about what leaked; the claim itself is not supported."
    ),
    Verdict.INVALID_AUDIT: (
        "The attack part of this certificate cannot be used: its coins, guesses or canaries break the rules that make"
        " its statistics valid. The accounting may still hold, but leakage was not tested."
    ),
    Verdict.INCONCLUSIVE: (
        "No violation was found, and the evidence does not reach the level from which that counts as a passed test: the"
        " reasons say what is missing. Absence of evidence is weak evidence here."
    ),
    Verdict.CONSISTENT: (
        "The accounting supports the claim, the implementation was examined, and an audit that was measured to catch a"
        " planted fault found no violation."
        " This is not a proof that nothing leaks: other attackers, data and units of privacy remain untested."
    ),
}

ENOUGH_POWER = 0.8
"""Where the lower limit of the attack's power is below this, an audit that found nothing is inconclusive."""


class Asking(Protocol):
    """Whatever asks for a verdict, such as a :class:`~dpaudit.privacy.finding.Finding`."""

    @property
    def status(self) -> str: ...


def decide(findings: Iterable[Asking], *, power: float | None) -> Verdict:
    """Verdict of a list of findings.

    ``consistent`` needs three things: nothing found, a measured power whose lower limit is at least 0.8, and no finding
    that asks for ``inconclusive``. An invalid audit's own statistics must not be among the findings; other witnesses
    stay.

    Parameters
    ----------
    findings : iterable of Finding
        Everything that was found.
    power : float or None
        LOWER end of the 95 % interval of the attack's power; None where it was not measured.

    Examples
    --------
    >>> decide([], power=None)
    'inconclusive'
    >>> decide([], power=0.9)
    'consistent'
    """
    return decide_statuses((finding.status for finding in findings), power=power)


def decide_statuses(statuses: Iterable[str], *, power: float | None) -> Verdict:
    """As :func:`decide`, from the findings' statuses alone."""
    asked = set(statuses)
    for verdict in Verdict:
        if verdict in asked and verdict != Verdict.CONSISTENT:
            return verdict
    return Verdict.CONSISTENT if enough_power(power) else Verdict.INCONCLUSIVE


def enough_power(power_lower: float | None) -> bool:
    """Whether a measured power supports silence: its lower limit is known and at least 0.8."""
    return power_lower is not None and power_lower >= ENOUGH_POWER


def worse(first: str, second: str) -> Verdict:
    """The one of two verdicts that takes precedence.

    >>> worse("consistent", "violated")
    'violated'
    """
    return min(Verdict(first), Verdict(second), key=list(Verdict).index)
