"""Design before unblinding: the number of guesses, from m, claim, α and δ alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpaudit.auditing.control import many_runs_control_needed
from dpaudit.auditing.gaussian import gdp_mu
from dpaudit.auditing.many_runs import cp_ceiling, cp_expected, cp_power
from dpaudit.auditing.one_run import snj_ceiling, snj_critical_count
from dpaudit.auditing.plan import KINDS, AlphaSplit, AuditPlan
from dpaudit.auditing.power import (
    best_mu_guesses,
    control_canaries_needed,
    expected_epsilon_lower,
    power_of_optimal_attack,
)
from dpaudit.auditing.whole import whole_at_least
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Relation

MARGIN = 1.1
"""A design must be able to show this multiple of the claim."""

FORGIVING = f"maximise the expected bound at the claim subject to ceiling > {MARGIN} x claim and a wrong guess allowed"
"""The rule of a plan that convicts though a guess is wrong."""

STRICT = f"maximise the expected bound at the claim subject to ceiling > {MARGIN} x claim"
"""The rule where no number of guesses allows a wrong one, and of every plan of earlier versions."""

BY_CALLER = "given by the caller"
"""The rule of a plan whose numbers of guesses the caller chose."""

_LARGEST_M = 10_000_000
_TOL = 1e-4


def _candidates(m: int) -> list[int]:
    """Numbers k of guesses per side that are compared: all small ones, then a geometric grid up to m/2."""
    top = m // 2
    grid = np.unique(np.round(np.geomspace(1, max(top, 1), 60)).astype(int))
    return [int(k) for k in grid if k <= top]


def choose_guesses(
    m: int, epsilon: float, delta: float, alpha: float, *, constrained: bool = True, errors: int = 0
) -> tuple[int, bool]:
    """Number k of guesses per side that maximises the expected bound at the claim.

    The expectation is that of the optimal attack on a Gaussian mechanism that is exactly (ε, δ)-DP. With
    ``constrained`` only k whose ceiling exceeds 1.1 × ε count: a design that is best on average may be unable to
    convict at all (k ≈ 0.03 m is, at m = 1,000 and ε = 3). With ``errors`` only those of them count that still convict
    with so many wrong guesses, where there are any: a design that is best on average may convict only where every
    guess is right.

    Parameters
    ----------
    m : int
        Canaries, at least 2.
    epsilon, delta : float
        The claim tested.
    alpha : float
        Level of the verdict.
    errors : int
        Wrong guesses that the design should allow.

    Returns
    -------
    (int, bool)
        k, and whether its ceiling exceeds 1.1 × ε. Where none does, k is the unconstrained choice.
    """
    whole_at_least(2, m=m)
    mu = gdp_mu(epsilon, delta)
    every = _candidates(m)

    def forgives(k: int) -> bool:
        critical = snj_critical_count(m, 2 * k, epsilon, delta, alpha)
        return critical is not None and 2 * k - critical >= errors

    def able(k: int) -> bool:
        return snj_ceiling(m, 2 * k, delta, alpha, tol=_TOL) > MARGIN * epsilon

    def best(value: dict[int, float], tie: int) -> int:
        """The best k that forgives, looked for from the best on, or the best of all."""
        order = sorted(value, key=lambda k: (value[k], tie * k), reverse=True)
        return next((k for k in order if forgives(k)), order[0]) if errors else order[0]

    fit = [k for k in every if able(k)]
    pool = fit if constrained and fit else every
    value = {k: expected_epsilon_lower(m, 2 * k, mu, delta, alpha, tol=_TOL) for k in pool}
    first = best(value, -1)
    # Between its points the grid is coarse, so the neighbourhood of its best point is searched once more.
    place = every.index(first)
    low, high = every[max(place - 1, 0)], every[min(place + 1, len(every) - 1)]
    for k in sorted({int(x) for x in np.linspace(low, high, 13)}):
        if k not in value and (pool is every or able(k)):
            value[k] = expected_epsilon_lower(m, 2 * k, mu, delta, alpha, tol=_TOL)
    chosen = best(value, 1)
    return chosen, snj_ceiling(m, 2 * chosen, delta, alpha) > MARGIN * epsilon


def choose_mechanism_guesses(m: int, mu: float, alpha: float) -> int:
    """Number k of guesses per side for the one-run test of the declared Gaussian curve.

    k maximises the expected bound on μ if the mechanism is exactly μ-GDP, from m, μ and α alone. This test is usually
    best with more guesses than the primary (ε, δ) test.
    """
    whole_at_least(2, m=m)
    every = _candidates(m)[-40::2] or _candidates(m)
    return best_mu_guesses(m, [2 * k for k in every], mu, alpha) // 2


def best_ceiling(m: int, delta: float, alpha: float) -> float:
    """Largest ceiling over all numbers of guesses with m canaries; with δ > 0 it saturates and then falls in m."""
    return max(snj_ceiling(m, 2 * k, delta, alpha, tol=_TOL) for k in _candidates(m))


def canaries_needed(epsilon: float, delta: float, alpha: float) -> int | None:
    """About the smallest m (within 1 %) that can decide ε at δ from one run; None when no m up to ten million can."""
    enough = 2
    while best_ceiling(enough, delta, alpha) <= MARGIN * epsilon:
        enough *= 2
        if enough > _LARGEST_M:
            return None
    low = enough // 2
    while enough - low > max(1, enough // 100):
        mid = (low + enough) // 2
        low, enough = (low, mid) if best_ceiling(mid, delta, alpha) > MARGIN * epsilon else (mid, enough)
    return enough


def design(
    m: int,
    claimed_epsilon: float,
    delta: float,
    alpha: float = 0.05,
    copies: int = 1,
    *,
    relation: Relation | str,
    unit: str,
    kind: str = "one_run",
    attack: str = "unspecified",
    attack_parameters: Mapping[str, Any] | None = None,
    guesses: int | None = None,
    errors: int = 1,
    group_claim: float | None = None,
    alpha_split: AlphaSplit | None = None,
    coin_commitment: str | None = None,
    in_run: Mapping[str, Any] | None = None,
) -> AuditPlan:
    """Plan an audit from m, claim, α and δ alone, before any coin is opened.

    Parameters
    ----------
    m : int
        Canaries with a fair coin (pairs for replace_one), at least 2.
    claimed_epsilon, delta : float
        The claim for one unit of privacy.
    alpha : float
        Total failure probability; the verdict uses ``alpha_split`` (80/10/10 by default).
    copies : int
        Copies of each inserted canary; above 1, ``group_claim`` is what is tested.
    relation, unit
        Neighbouring relation and unit of privacy of the claim.
    kind : str
        ``one_run`` (m canaries in one run) or ``many_runs`` (one canary in each of m independent runs).
    attack : str
        Name of the score.
    attack_parameters : mapping, optional
        Parameters of the score, as plain JSON values.
    guesses : int, optional
        Guesses per side, to override the rule.
    errors : int, default=1
        Wrong guesses with which the plan should still convict, where some number of guesses does.
    group_claim : float, optional
        ε for ``copies`` records at the same δ, from the accountant.
    alpha_split : AlphaSplit, optional
        How α is divided between the primary bound, the test of the declared mechanism and the examination.
    coin_commitment : str, optional
        Hexadecimal SHA-256 that commits to the coins.
    in_run : mapping, optional
        The in-run audit of the same run, whose levels come out of the same ``alpha``.

    Returns
    -------
    AuditPlan
        With ``decidable`` False, and ``m_needed``, where no number of guesses can decide the claim, and with the
        least size of a positive control that can support a verdict.

    Raises
    ------
    InvalidValue
        If m is below 2, more than m/2 guesses a side are asked for, or a value is out of its bounds.

    Examples
    --------
    >>> plan = design(1000, 3.0, 1e-5, relation="add_or_remove_one", unit="record")
    >>> plan.decidable, plan.ceiling > 3.3
    (True, True)
    """
    whole_at_least(2, m=m)
    validate.positive(claimed_epsilon=claimed_epsilon)
    validate.one_of(KINDS, kind=kind)
    if group_claim is not None:
        validate.positive(group_claim=group_claim)
    m, copies, guesses = int(m), int(copies), None if guesses is None else int(guesses)
    split = AlphaSplit.of(alpha) if alpha_split is None else alpha_split
    epsilon = claimed_epsilon if copies == 1 or group_claim is None else group_claim
    if guesses is not None:
        whole_at_least(1, guesses=guesses)
        if 2 * guesses > m:
            raise InvalidValue(f"guesses={guesses} per side exceeds m/2={m // 2}; give at most half of the canaries.")
    forecast = _forecast_one_run if kind == "one_run" else _forecast_many_runs
    return AuditPlan(
        m=m,
        copies=copies,
        attack=attack,
        attack_parameters=dict(attack_parameters or {}),
        kind=kind,
        primary=KINDS[kind],
        alpha=alpha,
        alpha_split=split,
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        relation=Relation.parse(relation),
        unit=unit,
        group_epsilon=group_claim,
        coin_commitment=coin_commitment,
        in_run=in_run,
        **forecast(m, epsilon, delta, alpha, split.primary, guesses, errors),
    )


def planned_again(plan: AuditPlan) -> AuditPlan:
    """The plan that m, claim, α and δ of a plan give, so that what it says about itself can be compared.

    Numbers of guesses that a caller chose stay as they are; numbers that a rule chose are chosen again by the rule that
    the plan names.
    """
    again = design(
        plan.m,
        plan.claimed_epsilon,
        plan.delta,
        plan.alpha,
        plan.copies,
        relation=plan.relation,
        unit=plan.unit,
        kind=plan.kind,
        attack=plan.attack,
        attack_parameters=plan.attack_parameters,
        guesses=plan.guesses_in if plan.k_rule == BY_CALLER or plan.kind != "one_run" else None,
        errors=0 if plan.k_rule == STRICT else 1,
        group_claim=plan.group_epsilon,
        alpha_split=plan.alpha_split,
        coin_commitment=plan.coin_commitment,
        in_run=plan.in_run,
    )
    return dataclasses.replace(again, beacons=plan.beacons)


def _forecast_one_run(
    m: int, epsilon: float, delta: float, alpha: float, level: float, guesses: int | None, errors: int
) -> dict[str, Any]:
    """Guesses, ceilings, expectation and power of the one-run bound; ``level`` is the verdict's α."""
    mu = gdp_mu(epsilon, delta)
    if guesses is None:
        k, decidable = choose_guesses(m, epsilon, delta, level, errors=errors)
        critical = snj_critical_count(m, 2 * k, epsilon, delta, level)
        rule = f"maximise the expected bound at the claim; no k has ceiling > {MARGIN} x claim"
        if decidable:
            rule = FORGIVING if errors and critical is not None and critical < 2 * k else STRICT
    else:
        k, rule = guesses, BY_CALLER
        decidable = snj_ceiling(m, 2 * k, delta, level) > MARGIN * epsilon
    return {
        "guesses_in": k,
        "guesses_out": k,
        "k_rule": rule,
        "ceiling": snj_ceiling(m, 2 * k, delta, alpha),
        "ceiling_at_verdict": snj_ceiling(m, 2 * k, delta, level),
        "expected_epsilon_lower": expected_epsilon_lower(m, 2 * k, mu, delta, alpha),
        "power_if_attack_were_optimal": power_of_optimal_attack(m, 2 * k, epsilon, delta, level),
        "decidable": decidable,
        "m_needed": None if decidable else canaries_needed(epsilon, delta, level),
        "guesses_mechanism": choose_mechanism_guesses(m, mu, level),
        "control_canaries": control_canaries_needed(m, k, k, epsilon, delta, level),
    }


def _forecast_many_runs(
    m: int, epsilon: float, delta: float, alpha: float, level: float, guesses: int | None, errors: int
) -> dict[str, Any]:
    """The same for the split Clopper-Pearson bound: half of the runs choose the threshold, the others judge."""
    n, mu = max(m // 4, 1), gdp_mu(epsilon, delta)
    ceiling = cp_ceiling(n, n, delta, level)
    decidable = ceiling > MARGIN * epsilon
    needed = None
    if not decidable:
        enough = n
        while cp_ceiling(enough, enough, delta, level) <= MARGIN * epsilon and enough < _LARGEST_M:
            enough = math.ceil(enough * 1.01)
        needed = 4 * enough if enough < _LARGEST_M else None
    k = m // 2 if guesses is None else guesses
    return {
        "guesses_in": k,
        "guesses_out": k,
        "k_rule": "threshold chosen on the half of the runs whose SHA-256(id) is lower, judged on the other half",
        "ceiling": cp_ceiling(n, n, delta, alpha),
        "ceiling_at_verdict": ceiling,
        "expected_epsilon_lower": cp_expected(n, mu, delta, alpha),
        "power_if_attack_were_optimal": cp_power(n, 2 * mu, epsilon, delta, level),
        "decidable": decidable,
        "m_needed": needed,
        "control_canaries": many_runs_control_needed(m, epsilon, delta, level),
    }
