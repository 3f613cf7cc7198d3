"""What an audit could show: expected bound, power of the optimal attack, and power measured on a positive control."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, betaincinv

from dpaudit.auditing.f_dp import f_dp_mu_bracket, f_dp_mu_lower
from dpaudit.auditing.gaussian import gdp_accuracy_at_top, gdp_mu
from dpaudit.auditing.one_run import snj_critical_count, snj_epsilon_lower
from dpaudit.auditing.rates import rate_lower, rate_upper
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.verdict import ENOUGH_POWER

MINIMUM_CONTROL_GUESSES = 30
"""A control with fewer guesses says nothing on the rate of right ones: the lower limit of its power is then 0."""

_TAIL = 0.025  # each end of a 95 % interval
_MU_TOL = 1e-4  # of bounds on μ whose mean is compared

# Nodes and weights for a mean over a normal variable: Gauss-Hermite.
_SEVEN = np.polynomial.hermite_e.hermegauss(7)
_THREE = np.polynomial.hermite_e.hermegauss(3)


def _mean_over_counts(
    bound: Callable[[int], float], guesses: int, p: float, rule: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> float:
    """Mean of ``bound(count)`` over Bin(guesses, p) by normal quadrature, the bound interpolated between counts."""
    nodes, weights = rule
    mean, sd = guesses * p, math.sqrt(guesses * p * (1 - p))
    total = 0.0
    for node, weight in zip(nodes, weights):
        count = min(max(mean + sd * float(node), 0.0), float(guesses))
        low = math.floor(count)
        value = bound(low)
        if count > low:
            value += (count - low) * (bound(low + 1) - value)
        total += float(weight) * value
    return total / float(weights.sum())


def expected_epsilon_lower(
    m: int, guesses: int, mu: float, delta: float, alpha: float = 0.05, *, tol: float = 1e-6
) -> float:
    """Mean one-run bound when the optimal attack meets a μ-GDP mechanism with independent canaries.

    Reference, not a promise: the number of right guesses is taken as binomial with the accuracy that the top and bottom
    ``guesses``/2 of m scores N(±μ/2, 1) have; the mean over it is by quadrature.
    """
    whole_at_least(1, guesses=guesses)
    p = gdp_accuracy_at_top(mu, guesses / (2 * m))
    return _mean_over_counts(lambda v: snj_epsilon_lower(m, guesses, v, delta, alpha, tol=tol), guesses, p, _SEVEN)


def expected_mu_lower(m: int, guesses: int, mu: float, alpha: float = 0.05) -> float:
    """Mean one-run bound on μ of the Gaussian curve test when the optimal attack meets a μ-GDP mechanism.

    As :func:`expected_epsilon_lower`, with a coarser quadrature.
    """
    whole_at_least(1, guesses=guesses)
    p = gdp_accuracy_at_top(mu, guesses / (2 * m))
    return _mean_over_counts(lambda v: f_dp_mu_lower(m, guesses, v, alpha, tol=_MU_TOL), guesses, p, _THREE)


def best_mu_guesses(m: int, candidates: Sequence[int], mu: float, alpha: float) -> int:
    """The number of guesses with the largest :func:`expected_mu_lower`, the first of equal ones.

    Parameters
    ----------
    m : int
        Canaries.
    candidates : sequence of int
        Numbers of guesses to choose from, not empty.
    mu, alpha : float
        As for :func:`expected_mu_lower`.

    Notes
    -----
    All candidates are first computed roughly. A mean over brackets of width w is at most w below the exact mean, so
    whoever is further behind cannot be the best; only the others are computed more finely, from the same brackets.
    """
    accuracies = {guesses: gdp_accuracy_at_top(mu, guesses / (2 * m)) for guesses in candidates}
    brackets: dict[tuple[int, int], tuple[float, float]] = {}
    left = list(candidates)
    for tol in (2.0**-4, 2.0**-8, _MU_TOL):

        def expected(guesses: int, tol: float = tol) -> float:
            def bound(correct: int) -> float:
                key = guesses, correct
                brackets[key] = f_dp_mu_bracket(m, guesses, correct, alpha, tol=tol, within=brackets.get(key))
                return brackets[key][0]

            return _mean_over_counts(bound, guesses, accuracies[guesses], _THREE)

        means = {guesses: expected(guesses) for guesses in left}
        enough = max(means.values()) - (tol + 1e-9)  # the second term covers rounding
        left = [guesses for guesses in left if means[guesses] >= enough]
    return max(left, key=lambda guesses: means[guesses])


def power_of_optimal_attack(
    m: int, guesses: int, epsilon: float, delta: float, alpha: float, *, noise_factor: float = 0.5
) -> float:
    """Probability that the optimal attack convicts a Gaussian mechanism run with too little noise.

    Parameters
    ----------
    m, guesses
        The audit's design.
    epsilon, delta
        The claim, which the mechanism would meet exactly with its full noise.
    alpha : float
        Level of the verdict.
    noise_factor : float
        Noise of the faulty mechanism as a share of the claimed noise; 0.5 by default.
    """
    validate.positive(noise_factor=noise_factor)
    critical = snj_critical_count(m, guesses, epsilon, delta, alpha)
    if critical is None:
        return 0.0
    p = gdp_accuracy_at_top(gdp_mu(epsilon, delta) / noise_factor, guesses / (2 * m))
    return float(bdtrc(critical - 1, guesses, p))


def power_from_control(
    m: int, guesses: int, epsilon: float, delta: float, alpha: float, *, control_guesses: int, control_correct: int
) -> tuple[float, tuple[float, float]]:
    """Power of THIS attack: probability of conviction if the audited run leaked as much as a positive control.

    The control is a run of the same configuration with a planted fault; its share of right guesses is the attack's
    accuracy p, and the power is P[Bin(guesses, p) ≥ critical count].

    Parameters
    ----------
    m, guesses, epsilon, delta, alpha
        Design, tested ε and level of the audit itself.
    control_guesses, control_correct : int
        Guesses made and right on the control, at the same share of its canaries.

    Returns
    -------
    (float, (float, float))
        The plug-in estimate, and the powers at the ends of p's 95 % Clopper-Pearson interval: a control shows the
        power of its own fault, and is itself one run. The LOWER end is what a verdict may rest on; it is 0 below
        :data:`MINIMUM_CONTROL_GUESSES`.

    Notes
    -----
    An attack that guesses at random is right with p = 1/2, and its true power is at most α. Its lower end therefore
    reaches 0.8 in at most 2.5 % of controls, whatever m, the claim and the control's size are.
    """
    whole_at_least(1, control_guesses=control_guesses)
    whole_at_least(0, control_correct=control_correct)
    critical = snj_critical_count(m, guesses, epsilon, delta, alpha)
    if critical is None:
        return 0.0, (0.0, 0.0)

    def power(p: float) -> float:
        return float(bdtrc(critical - 1, guesses, p))

    low = power(rate_lower(control_correct, control_guesses, _TAIL))
    high = power(rate_upper(control_correct, control_guesses, _TAIL))
    enough = control_guesses >= MINIMUM_CONTROL_GUESSES
    return power(control_correct / control_guesses), (low if enough else 0.0, high)


def control_canaries_needed(
    m: int, guesses_in: int, guesses_out: int, epsilon: float, delta: float, alpha: float
) -> int | None:
    """Fewest canaries of a positive control that can show a power of at least 0.8 for a one-run design.

    Even a control whose every guess is right shows the attack's accuracy only up to its 95 % interval. The fewer errors
    the design allows before it no longer convicts, the more guesses that takes: about 16 times the design's own where
    it allows none.

    Parameters
    ----------
    m, guesses_in, guesses_out
        The audit's design; the control is guessed at the same shares.
    epsilon, delta, alpha
        Tested claim, and level of the verdict.

    Returns
    -------
    int or None
        Canaries, over all control runs together; None where the design cannot convict at all.
    """
    guesses = guesses_in + guesses_out
    critical = snj_critical_count(m, guesses, epsilon, delta, alpha)
    if critical is None:
        return None
    accuracy = float(betaincinv(critical, guesses - critical + 1, ENOUGH_POWER))
    needed = max(MINIMUM_CONTROL_GUESSES, math.ceil(math.log(_TAIL) / math.log(accuracy)))
    n = max(2, needed * m // guesses - 2 * m // guesses)
    while sum(control_guesses(n, m, guesses_in, guesses_out)) < needed:
        n += 1
    return n


def control_guesses(n: int, m: int, guesses_in: int, guesses_out: int) -> tuple[int, int]:
    """Guesses in and out on a control of n canaries, at the shares of a plan for m."""
    share = n / m
    return min(round(guesses_in * share), n // 2), min(round(guesses_out * share), n // 2)
