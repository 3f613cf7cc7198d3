"""Bounds from candidate guessing: each canary's secret is one of k equally likely values, and the attack names it.

One right guess among k = 2^20 candidates says far more than one right in/out guess. The neighbouring relation is
REPLACING the secret (replace_one): an add/remove claim of ε allows 2ε here.
"""

from __future__ import annotations

import math

from scipy.special import betainc

from dpaudit.auditing.f_dp import _rejects
from dpaudit.auditing.one_run import _check
from dpaudit.auditing.solve import largest_rejected
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate


def candidate_p_value(guesses: int, correct: int, alphabet: int, epsilon: float) -> float:
    """p-value of (ε, 0)-DP under replacement from ``correct`` right guesses among k candidates each, in one run.

    Given the other secrets, each guess is right with probability at most e^ε/(e^ε + k − 1), so that the count is
    dominated by a binomial one (the argument of arXiv:2305.08846 with k values instead of two).
    """
    _check(guesses, guesses, correct, 0.0)
    whole_at_least(2, alphabet=alphabet)
    validate.non_negative(epsilon=epsilon)
    if correct == 0:
        return 1.0
    q = 1.0 / (1.0 + (alphabet - 1) * math.exp(-epsilon))
    return float(betainc(correct, guesses - correct + 1, q))


def candidate_epsilon_lower(
    m: int, guesses: int, correct: int, alphabet: int, delta: float, alpha: float = 0.05
) -> float:
    """Lower bound on the replace-one ε at δ from candidate guessing in ONE run.

    Parameters
    ----------
    m, guesses, correct : int
        Canaries with a secret, guesses made (fixed without the secrets), and right ones.
    alphabet : int
        Number k of equally likely candidates per secret.
    delta : float
        δ; 0 uses the binomial bound, otherwise the one-run recursion of arXiv:2410.22235 with the trade-off curve of
        (ε, δ)-DP itself, so that no mechanism is assumed.
    alpha : float, default=0.05
        Failure probability.

    Returns
    -------
    float
        Lower bound on the replace-one ε at δ, with confidence 1 − ``alpha``, for every mechanism; 0 where nothing
        is shown.

    Raises
    ------
    InvalidValue
        If the counts do not fit together (0 ≤ correct ≤ guesses ≤ m), or δ or α is out of its bounds.

    Examples
    --------
    >>> round(candidate_epsilon_lower(10, 10, 5, 2**20, 0.0), 2)
    12.61
    """
    _check(m, guesses, correct, delta)
    validate.open_unit(alpha=alpha)
    whole_at_least(2, alphabet=alphabet)
    if guesses == 0 or correct == 0:
        return 0.0
    if delta == 0:
        return largest_rejected(
            lambda eps: candidate_p_value(guesses, correct, alphabet, eps) <= alpha, start=2.0, limit=700.0, tol=1e-9
        )

    def rejects(epsilon: float) -> bool:
        def smallest_fpr(power: float) -> float:
            return max(0.0, math.exp(-epsilon) * (power - delta), 1.0 - delta - math.exp(epsilon) * (1.0 - power))

        return _rejects(m, guesses, correct, alpha, smallest_fpr, alphabet)

    return largest_rejected(rejects, start=2.0, limit=700.0, tol=1e-9)
