"""The verdict: findings and a bound in, one of five words out, by a fixed precedence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.privacy import validate

VERDICTS = ("violated", "accounting_mismatch", "invalid_audit", "inconclusive", "consistent")
"""In order of precedence: the first that any finding asks for is the verdict."""

EXIT_CODES = {"consistent": 0, "violated": 1, "accounting_mismatch": 1, "inconclusive": 2, "invalid_audit": 3}
"""What a command line returns for each verdict."""

ENOUGH_POWER = 0.8
"""Below this power of the attack an audit that found nothing is inconclusive."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing an audit found, with what it says about the verdict.

    Attributes
    ----------
    name : str
        Short machine name, such as ``one_run_bound`` or ``noise_scale``.
    status : str
        ``violated``, ``accounting_mismatch``, ``invalid_audit``, ``inconclusive`` or ``note``.
    claim : str
        The claim it concerns: ``(epsilon, delta)``, ``group (epsilon, delta)``, ``ledger``, ``declared mechanism``,
        ``step function`` or ``audit``.
    text : str
        One paragraph of plain words: what it means, and what it does not.
    deterministic : bool
        True for a witness that needs no statistics.
    p_value : float or None
        For statistical findings.
    power : float or None
        Probability with which this test would have caught the fault named in ``excludes``; lets white-box tests supply
        the power that a black-box attack lacks.
    excludes : str
        The fault sizes that a clean result excludes.
    detail : mapping
        Further plain JSON values.
    """

    name: str
    status: str
    claim: str
    text: str
    deterministic: bool = False
    p_value: float | None = None
    power: float | None = None
    excludes: str = ""
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        validate.one_of((*VERDICTS, "note"), status=self.status)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["detail"] = dict(self.detail)
        return values


def decide(findings: Sequence[Finding], *, power: float | None) -> str:
    """Verdict of a list of findings.

    ``consistent`` needs three things: nothing found, a known power of at least 0.8, and no finding that asks for
    ``inconclusive``. An invalid audit's own statistics must not be among the findings; other witnesses stay.

    >>> decide([], power=None)
    'inconclusive'
    >>> decide([], power=0.9)
    'consistent'
    """
    asked = {finding.status for finding in findings}
    for verdict in VERDICTS[:-1]:
        if verdict in asked:
            return verdict
    if power is None or not power >= ENOUGH_POWER:
        return "inconclusive"
    return "consistent"


_CLOSING = {
    "violated": "A correct implementation shows such evidence with probability at most alpha.",
    "accounting_mismatch": "This is a fault of the bookkeeping, whatever the attack showed.",
    "invalid_audit": "Nothing about privacy follows from it, in either direction; mend the design and repeat it.",
    "inconclusive": "This is no evidence of privacy: a weak attack, or too few canaries, looks exactly the same.",
    "consistent": "It proves nothing, and says nothing of stronger attacks, other data or other units of privacy.",
}


def explain(verdict: str) -> str:
    """What a verdict does not mean, in one sentence."""
    return _CLOSING[verdict]
