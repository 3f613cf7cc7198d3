"""The declared mechanism's trade-off curve, from a ledger's certified privacy profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dpaudit.privacy.ledger import Ledger

PROFILE_DELTAS = (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.08, 0.15, 0.22, 0.3, 0.4, 0.5)


def declared_curve(ledger: Ledger, delta: float, copies: int = 1) -> Callable[[float], float]:
    """Curve that the declared mechanism lies on or above, for canaries that stand ``copies`` times in the data.

    The upper envelope of the certified (ε, δ) points at the claim's δ and at :data:`PROFILE_DELTAS`. Refuting the
    curve refutes the declared mechanism, never (ε, δ) itself.
    """
    from dpaudit.accounting import account
    from dpaudit.auditing.f_dp import profile_trade_off

    def upper(at: float, rtol: float) -> float:
        found = account(ledger, delta=at, group_size=copies, rtol=rtol)[0].epsilon_upper
        return math.inf if found is None else found

    # Wide intervals are safe here, since a larger upper bound on ε makes the declared curve easier to meet and never
    # harder; they take a fraction of the time.
    profile = [upper(delta, 5e-3), *(upper(at, 0.02) for at in PROFILE_DELTAS)]
    return profile_trade_off(profile, (delta, *PROFILE_DELTAS))


def declared_deltas(ledger: Ledger, epsilons: Sequence[float]) -> tuple[float, ...]:
    """Certified δ(ε) of the declared mechanism for one record, at each of the epsilons; for an in-run audit.

    Upper bounds, so that refuting one of them refutes the declared mechanism.
    """
    from dpaudit.accounting.tradeoff import delta_at

    return tuple(min(1.0, delta_at(ledger, epsilon).upper) for epsilon in epsilons)
