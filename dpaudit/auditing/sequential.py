"""Anytime-valid tests by betting: look after every canary or step, stop when convicted, and the level still holds.

They refute (ε, 0) or the declared step mechanism, never (ε, δ): with δ > 0 a single revealing event is allowed, and no
bound on each conditional success exists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.scores import check_scores

_SHARES = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Bets as shares of the largest admissible one; the wealth is split over them evenly, so that none is tuned."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequentialTest:
    """A betting test after the data seen so far.

    Attributes
    ----------
    refutes : str
        What a rejection contradicts: ``(epsilon, 0)`` or ``declared step mechanism``.
    rejected : bool
        Whether the wealth ever reached 1/α.
    stopped_at : int or None
        Number of observations after which it first did.
    log_wealth : float
        Natural logarithm of the largest wealth so far.
    p_value : float
        Anytime-valid: 1 ÷ largest wealth, at most 1.
    """

    refutes: str
    rejected: bool
    stopped_at: int | None
    log_wealth: float
    p_value: float


def _verdict(log_wealth: NDArray[np.float64], alpha: float, refutes: str) -> SequentialTest:
    reached = np.flatnonzero(log_wealth >= -math.log(alpha))
    best = max(0.0, float(log_wealth.max())) if log_wealth.size else 0.0
    return SequentialTest(
        refutes=refutes,
        rejected=bool(reached.size),
        stopped_at=int(reached[0]) + 1 if reached.size else None,
        log_wealth=best,
        p_value=math.exp(-best),
    )


def _mixture(log_factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the mean wealth over bets after each observation; shape (bets, n) in, (n,) out."""
    totals = np.cumsum(log_factors, axis=1)
    top = totals.max(axis=0)
    mixed: NDArray[np.float64] = top + np.log(np.exp(totals - top).mean(axis=0))
    return mixed


def _bit_log_wealth(bits: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    q = 1.0 / (1.0 + math.exp(-epsilon))
    bets = (_SHARES / q)[:, None]
    return _mixture(np.log1p(bets * (bits[None, :] - q)))


def sequential_bits_test(correct: ArrayLike, epsilon: float, alpha: float = 0.05) -> SequentialTest:
    """Test (ε, 0)-DP on a sequence of guesses, each made before its coin is opened.

    Parameters
    ----------
    correct : array of shape (n,)
        1 where the guess was right, in the order in which the coins were opened; a guess may use earlier coins.
    epsilon : float
        Hypothesis: given everything before, each guess is right with probability at most 1/(1 + e^-ε).
    alpha : float
        Level over all stopping times (Ville's inequality).
    """
    bits = _bits(correct)
    validate.non_negative(epsilon=epsilon)
    validate.open_unit(alpha=alpha)
    return _verdict(_bit_log_wealth(bits, epsilon), alpha, "(epsilon, 0)")


def _bits(correct: ArrayLike) -> NDArray[np.float64]:
    bits = check_scores(np.asarray(correct, dtype=np.float64), name="correct")
    if not np.all((bits == 0) | (bits == 1)):
        raise InvalidEvidence("correct holds values other than 0 and 1; give one right/wrong per opened coin.")
    return bits


def sequential_noise_test(
    residuals: ArrayLike,
    declared_sd: float,
    alpha: float = 0.05,
    *,
    faults: Sequence[float] = (1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0),
) -> SequentialTest:
    """Test that a step adds Gaussian noise of at least its declared standard deviation, step after step.

    Bets on noise that is too small by each factor in ``faults``, wealth split evenly. Residuals are releases minus
    their exact, known signal; given the past each is Gaussian with mean 0 and sd ≥ ``declared_sd`` under the
    hypothesis, for which every likelihood ratio here has mean at most 1.

    Parameters
    ----------
    residuals : array of shape (n,)
        In the order of release, in the unit of ``declared_sd``.
    declared_sd : float
        Standard deviation that the step declares, in the unit of ``residuals``.
    alpha : float, default=0.05
        Level at which ``stopped_at`` is reported.
    faults : sequence of float
        How many times too small the noise may be; each above 1.

    Returns
    -------
    SequentialTest
        A p-value that is valid whenever one stops, and the observation at which it fell to ``alpha``.

    Raises
    ------
    InvalidValue
        If ``declared_sd`` is not positive, α is outside (0, 1), or a fault is at most 1.
    InvalidEvidence
        If a residual is not finite.
    """
    validate.positive(declared_sd=declared_sd)
    validate.open_unit(alpha=alpha)
    values = check_scores(residuals, name="residuals") / declared_sd
    if not faults or not min(faults) > 1:
        raise InvalidValue(f"faults={tuple(faults)} must all exceed 1; they say how many times too small the noise is.")
    f = np.asarray(faults, dtype=np.float64)[:, None]
    return _verdict(_mixture(np.log(f) - 0.5 * (f**2 - 1) * values[None, :] ** 2), alpha, "declared step mechanism")
