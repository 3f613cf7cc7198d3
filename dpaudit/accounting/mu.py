"""Certified Gaussian-DP parameter μ*(δ_min) of a sampled ledger, and by how much its curve overstates δ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

import numpy as np
from scipy.special import ndtr, ndtri

from dpaudit.accounting.prv.curves import checked, delta_interval, epsilon_interval, epsilon_uppers
from dpaudit.accounting.relations import Charges, charges
from dpaudit.accounting.tradeoff import rates
from dpaudit.privacy import validate
from dpaudit.privacy.gaussian import gaussian_mu, gaussian_mus
from dpaudit.privacy.ledger import Ledger

_FLAT = 0.02  # step in log δ relative to log δ


def exact_mu(charges: Charges) -> float | None:
    """μ of a ledger whose every stage is unsampled Gaussian, or None."""
    if charges.infinite:
        return math.inf
    return charges.mu if not charges.runs else None


@dataclasses.dataclass(frozen=True, slots=True)
class GaussianDP:
    """μ-GDP of a ledger for all events of probability at least ``delta_min``.

    Attributes
    ----------
    mu : float
        Certified: for every δ in [delta_min, 1), ε(δ) of the ledger is at most that of the μ-Gaussian.
    mu_lower : float
        No μ below this can be certified.
    regret : float or None
        Smallest shift Δ with f(x + Δ) − Δ ≤ f_μ(x), f the ledger's certified trade-off curve: how much μ alone
        overstates the attack (2503.10945); 0 when exact, below 1e-2 the curve is close to Gaussian.
    exact : bool
        Every stage is unsampled Gaussian, so μ holds for every δ.
    shares : tuple of float
        Per stage, its share of μ² (exact stages) in the ledger's order; empty when sampled.
    """

    mu: float
    mu_lower: float
    delta_min: float
    regret: float | None
    exact: bool
    shares: tuple[float, ...]


def gaussian_dp(
    ledger: Ledger,
    *,
    delta_min: float,
    group_size: int = 1,
    assume: Collection[str] = (),
    with_regret: bool = True,
) -> GaussianDP:
    """Certified Gaussian-DP parameter μ of a ledger over δ in [delta_min, 1).

    Parameters
    ----------
    ledger : Ledger
        Stages that ran or are planned, with their neighbouring relation.
    delta_min : float
        Smallest δ for which μ has to hold, in (0, 1).
    group_size : int, default=1
        Units of privacy that the claim covers together, beside the ledger's own ``max_records_per_unit``.
    assume : collection of str
        Premises that the caller vouches for and the ledger does not record; an accountant that needs one names it.
    with_regret : bool, default=True
        Also compute how much μ alone overstates the attack, which takes longest.

    Returns
    -------
    GaussianDP
        Certified μ, the lower limit of what can be certified, and the regret.

    Raises
    ------
    InvalidValue
        If ``delta_min`` is outside (0, 1).
    UnsupportedStage
        If a stage cannot be treated.
    """
    validate.open_unit(delta_min=delta_min)
    cost = charges(ledger, group_size=group_size, assume=assume)
    exact = exact_mu(cost)
    if exact is not None:
        parts = [
            charges(dataclasses.replace(ledger, stages=(s,)), group_size=group_size, assume=assume).mu_squared
            for s in ledger.stages
        ]
        total = sum(parts)
        return GaussianDP(exact, exact, delta_min, 0.0, True, tuple(p / total if total else 0.0 for p in parts))
    upper, lower = certified_mu(cost, delta_min)
    found = _regret(cost, upper, delta_min) if with_regret else None
    return GaussianDP(upper, lower if cost.tight else 0.0, delta_min, found, False, ())


def certified_mu(cost: Charges, delta_min: float) -> tuple[float, float]:
    """Upper and lower μ whose Gaussian curve covers a cost for δ in [delta_min, 1).

    δ(ε) is convex in e^ε, so between two certified points it lies below their chord; where δ ≥ δ(ε = 0) there is
    nothing to cover.
    """
    last = delta_interval(cost, 0.0).upper
    if last <= delta_min:
        return gaussian_mu(0.0, max(last, 5e-324)), 0.0
    deltas = _spread(delta_min, min(last, 1 - 1e-9))
    uppers = np.array([*epsilon_uppers(cost, deltas[:-1]), 0.0])
    if math.isinf(uppers[0]):
        return math.inf, 0.0
    lower = 0.0
    for delta in {delta_min, deltas[len(deltas) // 2]}:
        at = epsilon_interval(cost, delta, rtol=2e-3).lower
        lower = max(lower, gaussian_mu(at, delta, below=True) if at > 0 else 0.0)
    # Between two points the profile lies below the chord of e^ε, which is cut into pieces; each is charged at its worse
    # corner, the larger ε with the larger δ.
    share = np.linspace(0.0, 1.0, 17)
    top = uppers.max()
    growth = np.exp(uppers - top)
    ends = growth[:-1, None] + share * (growth[1:] - growth[:-1])[:, None]
    with np.errstate(divide="ignore"):
        epsilons = np.maximum(np.log(ends[:, :-1]) + top, 0.0)
    steps = np.array(deltas)
    risen = steps[:-1, None] + share * (steps[1:] - steps[:-1])[:, None]
    upper = float(gaussian_mus(epsilons.ravel(), risen[:, 1:].ravel())[1].max())
    checked(lower, upper, "values of mu")
    return upper, lower


def _spread(first: float, last: float) -> list[float]:
    """Grid of δ from ``first`` to ``last``: twelve a decade, fewer where log δ is large and the curve is flat in it."""
    found, log_delta, end = [], math.log(last), math.log(first)
    while log_delta > end:
        found.append(math.exp(log_delta))
        log_delta -= max(math.log(10) / 12, _FLAT * -log_delta)
    return [first, *reversed(found)]


def _regret(cost: Charges, mu: float, delta_min: float) -> float:
    """Smallest Δ that, added to both error rates, brings the certified curve below μ's; from above, on a fine grid."""
    fpr = np.concatenate((np.geomspace(max(delta_min, 1e-6), 0.5, 120), np.linspace(0.5, 1.0, 41)[1:]))
    fnr = 1 - rates(cost, fpr).tpr_lower  # the curve is at most this
    gaussian = ndtr(ndtri(1 - fpr) - mu)
    low, high = 0.0, 1.0
    for _ in range(40):
        shift = (low + high) / 2
        moved = np.interp(np.minimum(fpr + shift, 1.0), fpr, fnr) - shift
        low, high = (low, shift) if np.all(moved <= gaussian + 1e-15) else (shift, high)
    return high
