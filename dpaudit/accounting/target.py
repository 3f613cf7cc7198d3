"""Whether a plan meets the ε that it names, asked before the first step."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from dpaudit.accounting.account import account
from dpaudit.privacy.errors import PrivacyRefusal, UnsupportedStage
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import exact_text, upper_text
from dpaudit.privacy.tolerance import exceeds

_ASKED = ("prv", "rdp", "pld", "gdp")


def refuse_missed_target(ledger: Ledger, *, delta: float, target_epsilon: float) -> None:
    """Refuse a ledger whose certified ε is above its target.

    Parameters
    ----------
    ledger : Ledger
        The whole run as planned.
    delta : float
        δ of the claim.
    target_epsilon : float
        ε that the plan names beside a noise multiplier of its own.

    Raises
    ------
    PrivacyRefusal
        With the ε that the noise multiplier gives, or where no accountant proves any.
    """
    upper = _certified(ledger, delta, _ASKED)
    if upper is None:
        raise PrivacyRefusal(
            f"target_epsilon={exact_text(target_epsilon)} beside a noise_multiplier cannot be checked, since no"
            " accountant proves a bound for this plan; leave target_epsilon out."
        )
    if exceeds(upper, target_epsilon):
        raise PrivacyRefusal(
            f"the planned run has epsilon <= {upper_text(upper)} at delta={exact_text(delta)}, above target_epsilon="
            f"{exact_text(target_epsilon)}; raise noise_multiplier (or leave it out to calibrate), or claim less."
        )


@functools.lru_cache(maxsize=64)
def _certified(ledger: Ledger, delta: float, accountants: Sequence[str]) -> float | None:
    """Certified upper bound on ε by the first accountant that can treat the ledger."""
    for name in accountants:
        try:
            found = smallest_upper(account(ledger.merged(), delta=delta, accountants=(name,)))
        except UnsupportedStage:
            continue
        if found is not None:
            return found
    return None
