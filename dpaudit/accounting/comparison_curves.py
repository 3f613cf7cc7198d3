"""What a comparison draws: every accountant that answered, over steps and over δ, and the trade-offs they imply."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from dpaudit.accounting.account import Reply, replies
from dpaudit.accounting.clt import clt_mu
from dpaudit.accounting.pld import pld_curve
from dpaudit.accounting.rdp import rdp_curve
from dpaudit.accounting.relations import charges
from dpaudit.accounting.tradeoff import epsilon_curve, first_steps, tradeoff_curve
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.ledger import Ledger

POINTS, PEER_POINTS = 40, 8
"""Step counts at which ``prv``, and each of the others, is asked."""

SLOW = 10.0
"""An accountant whose one answer took longer than this many seconds is not drawn, and the comparison says so."""

LARGE = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Values = list[float | None]
Options = Mapping[str, Any]


def comparison_curves(
    ledger: Ledger,
    delta: float,
    answers: Sequence[Reply],
    options: Options,
    empirical: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """Series of the three figures of a comparison, as plain JSON values.

    Parameters
    ----------
    ledger : Ledger
        What ran.
    delta : float
        The δ that was asked for; it is one of the grid and named in it.
    answers : sequence of Reply
        What every accountant said at δ: only those that answered are drawn.
    options : mapping
        Further arguments of :func:`dpaudit.accounting.account`.
    empirical : sequence of (fpr, tpr)
        Points of an attack, carried into the trade-off figure.

    Returns
    -------
    dict
        ``epsilon_over_steps`` and ``epsilon_over_delta`` with one curve for each accountant (its own grid under
        ``steps`` where it is coarser), ``tradeoff`` with false-NEGATIVE rates, and reasons by accountant in
        ``not_drawn``.
    """
    peers = {r.accountant: r.guarantee for r in answers if r.guarantee is not None and r.accountant != "prv"}
    slow = {name: _slow(found) for name, found in peers.items() if found.seconds > SLOW}
    drawn = [name for name in peers if name not in slow]
    over_delta = _over_delta(ledger, delta, drawn, options)
    return {
        "epsilon_over_steps": _over_steps(ledger, delta, drawn, options),
        "epsilon_over_delta": over_delta,
        "tradeoff": _tradeoff(ledger, over_delta, options, empirical),
        "not_drawn": slow,
    }


def _slow(found: Guarantee) -> str:
    return f"one answer took {found.seconds:.0f} seconds"


def _over_steps(ledger: Ledger, delta: float, peers: Sequence[str], options: Options) -> dict[str, Any]:
    # Every point walks over all stages, so a ledger of many stages gets fewer points.
    points = max(4, min(POINTS, 800 // max(1, len(ledger.stages))))
    steps = epsilon_curve(ledger, delta, points=points, **options)
    tight = charges(ledger, **options).tight
    curves = [_curve("prv", list(steps.upper), list(steps.lower) if tight else None)]
    few = _some(steps.steps)
    for name in peers:
        values = [_value(first_steps(ledger, count), delta, name, options) for count in few]
        curves.append(_curve(name, values) | {"steps": few})
    return {
        "steps": list(steps.steps),
        "boundaries": [int(b) for b in np.cumsum([stage.steps for stage in ledger.stages])[:-1]],
        "curves": curves,
    }


def _some(steps: Sequence[int]) -> list[int]:
    """A few of many step counts, the last one among them."""
    places = np.unique(np.rint(np.linspace(0, len(steps) - 1, PEER_POINTS)).astype(int))
    return [steps[int(i)] for i in places]


def _over_delta(ledger: Ledger, delta: float, peers: Sequence[str], options: Options) -> dict[str, Any]:
    low = max(delta / 1e4, 1e-300)
    # Only pairs with a large δ bound the middle of the trade-off curve, so some of them are added.
    deltas = sorted({delta, *(float(d) for d in np.geomspace(low, 0.1, 22)), *LARGE})
    answers = [_answer(ledger, d, "prv", options) for d in deltas]
    lower = [None if g is None else g.epsilon_lower for g in answers]
    upper: Values = [None if g is None else g.epsilon_upper for g in answers]
    curves = [_curve("prv", upper, None if None in lower else lower)]
    curves += [_curve(name, _at_deltas(name, ledger, deltas, options)) for name in peers]
    return {"delta": deltas, "asked": delta, "curves": curves}


def _at_deltas(name: str, ledger: Ledger, deltas: Sequence[float], options: Options) -> Values:
    """One accountant's ε at every δ, None where it refuses; ``rdp`` and ``pld`` compose once for all of them."""
    once: dict[str, Callable[..., Sequence[float | None]]] = {"rdp": rdp_curve, "pld": pld_curve}
    if name not in once:
        return [_value(ledger, d, name, options) for d in deltas]
    try:
        return list(once[name](ledger, deltas, **options))
    except UnsupportedStage:
        return [None] * len(deltas)


def _tradeoff(
    ledger: Ledger, over_delta: Mapping[str, Any], options: Options, empirical: Sequence[Sequence[float]]
) -> dict[str, Any]:
    fpr = np.concatenate((np.geomspace(1e-4, 0.1, 30), np.linspace(0.12, 1.0, 45)))
    band = tradeoff_curve(ledger, fpr, **options)
    names = {curve["accountant"] for curve in over_delta["curves"]}
    implied = {
        curve["accountant"]: _implied(fpr, curve["epsilon_upper"], over_delta["delta"])
        for curve in over_delta["curves"]
        if curve["accountant"] != "prv" and curve["rigorous"]
    }
    return {
        "alpha": [float(a) for a in band.fpr],
        "lower": [float(v) for v in 1 - band.tpr_upper],
        "upper": [float(v) for v in 1 - band.tpr_lower],
        "clt": _clt_curve(ledger, fpr, options) if "gdp-clt" in names else None,
        "rdp": None,
        **implied,
        "points": [{"fpr": float(x), "fnr": 1 - float(y)} for x, y in empirical],
    }


def _clt_curve(ledger: Ledger, fpr: Any, options: Options) -> list[float] | None:
    """False-negative rates of the central-limit Gaussian, an estimate; None where there is none."""
    try:
        mu = clt_mu(charges(ledger, **options))
    except UnsupportedStage:
        return None
    return [float(v) for v in ndtr(-ndtri(fpr) - mu)] if math.isfinite(mu) else [0.0] * len(fpr)


def _implied(fpr: Any, epsilons: Sequence[float | None], deltas: Sequence[float]) -> list[float]:
    """Smallest false-negative rate that (ε, δ) pairs allow, whichever kind of error comes first."""
    pairs = [(e, d) for e, d in zip(epsilons, deltas, strict=True) if e is not None]
    return [
        max(0.0, *(max(1 - d - _times(e, a), _times(-e, 1 - d - a)) for e, d in pairs)) if pairs else 0.0
        for a in (float(a) for a in fpr)
    ]


def _times(epsilon: float, rate: float) -> float:
    """e^ε · rate, with no overflow."""
    return math.exp(min(epsilon, 700.0)) * rate


def _answer(ledger: Ledger, delta: float, name: str, options: Options) -> Guarantee | None:
    return replies(ledger, delta=delta, accountants=(name,), **options)[0].guarantee


def _value(ledger: Ledger, delta: float, name: str, options: Options) -> float | None:
    found = _answer(ledger, delta, name, options)
    return None if found is None else found.epsilon_upper if found.rigorous else found.epsilon_estimate


def _curve(name: str, values: Values, lower: Sequence[float | None] | None = None) -> dict[str, Any]:
    rigorous = name != "gdp-clt"
    curve: dict[str, Any] = {"accountant": name, "rigorous": rigorous}
    curve["epsilon_upper" if rigorous else "epsilon_estimate"] = values
    return curve if lower is None else curve | {"epsilon_lower": list(lower)}
