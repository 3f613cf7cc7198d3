"""Are the coins fair? The one check that a bare score file allows."""

from __future__ import annotations

from scipy.special import bdtr, bdtrc

from dpaudit.auditing.whole import whole_at_least

COIN_TAIL = 1e-6
"""Total probability outside the accepted range of member counts."""


def member_count_is_plausible(members: int, m: int, tail: float = COIN_TAIL) -> bool:
    """Whether ``members`` lies in the central 1 − ``tail`` range of Bin(m, 1/2).

    >>> member_count_is_plausible(500, 1000), member_count_is_plausible(300, 1000)
    (True, False)
    """
    whole_at_least(1, m=m)
    whole_at_least(0, members=members)
    low = float(bdtr(members, m, 0.5))
    high = 1.0 if members == 0 else float(bdtrc(members - 1, m, 0.5))
    return min(low, high) > tail / 2
