"""Estimators beside the primary one: printed, labelled by what they assume, never a verdict."""

from __future__ import annotations

import numpy as np

from dpaudit.auditing.f_dp import f_dp_epsilon_lower
from dpaudit.auditing.gaussian import gdp_epsilon
from dpaudit.auditing.guess import count_correct, guess, guess_in_order, ranking
from dpaudit.auditing.many_runs import dkw_epsilon_lower, split_counts
from dpaudit.auditing.one_run import snj_epsilon_lower
from dpaudit.auditing.plan import AuditPlan
from dpaudit.auditing.rates import (
    bayesian_epsilon_lower,
    cp_epsilon_lower,
    gdp_epsilon_lower,
    katz_epsilon_lower,
)
from dpaudit.auditing.result import Bound
from dpaudit.auditing.xiang import xiang_mu_lower
from dpaudit.privacy.scores import Scores

_ONE_RUN = "canaries of one run share its noise, so that their rates are not independent trials"


def one_run_secondary(scores: Scores, plan: AuditPlan) -> tuple[Bound, ...]:
    """Secondary bounds of a one-run audit at 1 − α each, uncorrected: conditional f-DP, and the rate heuristics.

    The conditional bounds use the plan's ``guesses_mechanism``; the rates are those of the plan's own cut, the top
    ``guesses_in`` canaries against the rest.
    """
    inserted = scores.members
    order = ranking(scores.ids, scores.values)
    guesses = guess_in_order(order, plan)
    made, right = count_correct(guess_in_order(order, plan.mechanism_guesses), inserted)
    m, delta, alpha = plan.m, plan.delta, plan.alpha
    n_pos = int(inserted.sum())
    tp = int(np.count_nonzero((guesses == 1) & inserted))
    fp = int(np.count_nonzero((guesses == 1) & ~inserted))
    counts = (tp, n_pos, fp, m - n_pos)
    confidence = 1.0 - alpha

    def bound(estimator: str, kind: str, value: float, assumption: str) -> Bound:
        return Bound(estimator=estimator, kind=kind, epsilon_lower=value, confidence=confidence, assumption=assumption)

    return (
        bound(
            "mahloujifar_melis_chaudhuri_gaussian",
            "conditional",
            f_dp_epsilon_lower(m, made, right, delta, alpha),
            "the mechanism is Gaussian (mu-GDP)",
        ),
        bound(
            "xiang_gaussian",
            "conditional",
            gdp_epsilon(xiang_mu_lower(m, made, right, alpha, tol=1e-4), delta),
            "the mechanism is Gaussian (mu-GDP)",
        ),
        bound("clopper_pearson", "heuristic", cp_epsilon_lower(*counts, delta, alpha), _ONE_RUN),
        bound("bayesian", "heuristic", bayesian_epsilon_lower(*counts, delta, alpha), _ONE_RUN + "; credible"),
        bound(
            "gaussian_dp", "heuristic", gdp_epsilon_lower(*counts, delta, alpha), _ONE_RUN + "; mechanism is Gaussian"
        ),
        bound("katz", "heuristic", katz_epsilon_lower(*counts, alpha), _ONE_RUN + "; normal approximation, delta = 0"),
    )


def many_runs_secondary(scores: Scores, plan: AuditPlan) -> tuple[Bound, ...]:
    """Secondary bounds of a many-runs audit at 1 − α each, uncorrected; the trials are independent here."""
    counts, _ = split_counts(scores, plan.delta, plan.alpha_split.primary)
    made, right = count_correct(guess(scores.ids, scores.values, plan), scores.members)
    m, delta, alpha = plan.m, plan.delta, plan.alpha
    rows = (
        ("steinke_nasr_jagielski", "unconditional", snj_epsilon_lower(m, made, right, delta, alpha), ""),
        ("clopper_pearson_dkw", "unconditional", dkw_epsilon_lower(scores.values, scores.members, delta, alpha), ""),
        ("bayesian", "credible", bayesian_epsilon_lower(*counts, delta, alpha), "a posterior under Jeffreys priors"),
        ("gaussian_dp", "conditional", gdp_epsilon_lower(*counts, delta, alpha), "the mechanism is Gaussian (mu-GDP)"),
        ("katz", "approximate", katz_epsilon_lower(*counts, alpha), "normal approximation, delta = 0"),
    )
    return tuple(
        Bound(estimator=name, kind=kind, epsilon_lower=value, confidence=1.0 - alpha, assumption=assumption)
        for name, kind, value, assumption in rows
    )
