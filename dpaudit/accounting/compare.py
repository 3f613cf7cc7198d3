"""Accountants side by side on one ledger: who is rigorous, who is loose, and who is wrong here, in plain sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from dpaudit.accounting.account import BUILT_IN, account
from dpaudit.accounting.gdp import clt_mu
from dpaudit.accounting.rdp import rdp_epsilons
from dpaudit.accounting.relations import charges
from dpaudit.accounting.tradeoff import epsilon_curve, first_steps, tradeoff_curve
from dpaudit.privacy.errors import DpauditError
from dpaudit.privacy.gaussian import gaussian_epsilon
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.ledger import Ledger

SCHEMA = "dpaudit.compare/1"
LOOSE = 1.02


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One accountant's answer, or why it has none, and a sentence about it for this ledger."""

    accountant: str
    guarantee: Guarantee | None
    remark: str


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of a ledger at one δ, with series for figures as plain lists (empty where not asked for)."""

    ledger: Ledger
    delta: float
    group_size: int
    rows: tuple[Row, ...]
    curves: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value, schema ``dpaudit.compare/1``."""
        results = []
        for row in self.rows:
            body: dict[str, Any] = {
                "accountant": row.accountant,
                "epsilon_lower": None,
                "epsilon_upper": None,
                "epsilon_estimate": None,
                "rigorous": False,
                "seconds": None,
            }
            if row.guarantee is not None:
                body |= row.guarantee.to_dict()
            results.append(body | {"remark": row.remark})
        return {
            "schema": SCHEMA,
            "delta": self.delta,
            "relation": str(self.ledger.relation),
            "unit": self.ledger.unit,
            "group_size": self.group_size,
            "stages": [stage.to_dict() for stage in self.ledger.stages],
            "results": results,
            **self.curves,
        }


def compare(
    ledger: Ledger,
    *,
    delta: float,
    accountants: Sequence[str] = BUILT_IN,
    group_size: int = 1,
    assume: Collection[str] = (),
    curves: bool = False,
    empirical: Sequence[Sequence[float]] = (),
) -> Comparison:
    """Ask every accountant for ε at δ and say what each answer is worth here.

    Parameters
    ----------
    curves : bool
        Also compute ε over steps (with stage boundaries), ε over δ, and the trade-off band with the curves that the
        other accountants imply.
    empirical : sequence of (fpr, tpr)
        Points of an attack, carried into the trade-off figure.
    """
    options: dict[str, Any] = {"group_size": group_size, "assume": assume}
    found: dict[str, Guarantee | None] = {}
    refused: dict[str, str] = {}
    for name in accountants:
        try:
            (found[name],) = account(ledger, delta=delta, accountants=(name,), **options)
        except DpauditError as error:
            found[name], refused[name] = None, str(error)
    certified = found.get("prv")
    if certified is None:
        try:
            (certified,) = account(ledger, delta=delta, **options)
        except DpauditError:
            certified = None
    rows = tuple(Row(name, g, refused.get(name) or _remark(name, g, certified, ledger)) for name, g in found.items())
    drawn = _curves(ledger, delta, options, empirical) if curves else {}
    return Comparison(ledger, delta, group_size * ledger.max_records_per_unit, rows, drawn)


def _remark(name: str, found: Guarantee | None, certified: Guarantee | None, ledger: Ledger) -> str:
    """What an answer is worth for this ledger."""
    assert found is not None
    if name == "prv":
        if found.epsilon_upper == math.inf:
            return found.assumption
        return "certified: the true ε lies in this interval" if found.epsilon_lower is not None else found.assumption
    value = found.epsilon_upper if found.rigorous else found.epsilon_estimate
    if value is None or certified is None or certified.epsilon_upper is None:
        return found.assumption
    upper, lower = certified.epsilon_upper, certified.epsilon_lower
    if math.isinf(value) and math.isinf(upper):
        return certified.assumption
    if lower is not None and value < lower:
        short = "below the certified lower bound" + (f" by {1 - value / lower:.1%}" if lower > 0 else "")
        if not found.rigorous:
            return f"wrong here: an estimate {short}; it may not be used as a guarantee"
        return f"wrong here: {short}; report this ledger"
    if not found.rigorous:
        if value > upper * LOOSE:
            return f"an estimate, {value / upper:.2f} times the certified upper bound here; not a guarantee"
        return "close to the truth here, but an estimate and not a guarantee"
    if upper > 0 and value > upper * LOOSE:
        return f"valid but loose: {value / upper:.2f} times the certified upper bound"
    return "valid and tight here"


def _curves(
    ledger: Ledger, delta: float, options: dict[str, Any], empirical: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Series of the three figures; false-NEGATIVE rates in the trade-off."""
    steps = epsilon_curve(ledger, delta, points=40, **options)
    estimate = _maybe(lambda: [_clt_epsilon(first_steps(ledger, n), delta, options) for n in steps.steps])
    certified = {"accountant": "prv", "rigorous": True}
    over_steps: list[dict[str, Any]] = [
        certified | {"epsilon_lower": list(steps.lower), "epsilon_upper": list(steps.upper)}
    ]
    if estimate is not None:
        over_steps.append({"accountant": "gdp-clt", "rigorous": False, "epsilon_estimate": estimate})
    deltas = [float(d) for d in np.geomspace(max(delta / 1e4, 1e-13), 0.1, 25)]
    answers = [account(ledger, delta=d, **options)[0] for d in deltas]
    lower = [g.epsilon_lower for g in answers]
    over_delta = [certified | {"epsilon_upper": [g.epsilon_upper for g in answers]}]
    if None not in lower:
        over_delta[0] |= {"epsilon_lower": lower}
    renyi = _maybe(lambda: rdp_epsilons(charges(ledger, **options), ledger.relation, deltas))
    if renyi is not None:
        over_delta.append({"accountant": "rdp", "rigorous": True, "epsilon_upper": renyi})
    estimate = _maybe(lambda: [_clt_epsilon(ledger, d, options) for d in deltas])
    if estimate is not None:
        over_delta.append({"accountant": "gdp-clt", "rigorous": False, "epsilon_estimate": estimate})
    fpr = np.geomspace(max(delta / 10, 1e-9), 0.999, 80)
    band = tradeoff_curve(ledger, fpr, **options)
    return {
        "epsilon_over_steps": {
            "steps": list(steps.steps),
            "boundaries": [int(b) for b in np.cumsum([stage.steps for stage in ledger.stages])[:-1]],
            "curves": over_steps,
        },
        "epsilon_over_delta": {"delta": deltas, "curves": over_delta},
        "tradeoff": {
            "alpha": [float(a) for a in band.fpr],
            "lower": [float(v) for v in 1 - band.tpr_upper],
            "upper": [float(v) for v in 1 - band.tpr_lower],
            "clt": _maybe(lambda: _clt_curve(ledger, fpr, options)),
            "rdp": None if renyi is None else _implied(fpr, renyi, deltas),
            "points": [{"fpr": float(x), "fnr": 1 - float(y)} for x, y in empirical],
        },
    }


def _maybe(function: Callable[[], list[float]]) -> list[float] | None:
    """A curve, or None where its accountant refuses the ledger."""
    try:
        return function()
    except DpauditError:
        return None


def _clt_epsilon(ledger: Ledger, delta: float, options: dict[str, Any]) -> float:
    mu = clt_mu(charges(ledger, **options))
    return math.inf if math.isinf(mu) else gaussian_epsilon(mu, delta)


def _clt_curve(ledger: Ledger, fpr: Any, options: dict[str, Any]) -> list[float]:
    """False-negative rates of the central-limit Gaussian, an estimate."""
    return [float(v) for v in ndtr(-ndtri(fpr) - clt_mu(charges(ledger, **options)))]


def _implied(fpr: Any, epsilons: Sequence[float], deltas: Sequence[float]) -> list[float]:
    """Smallest false-negative rate that (ε, δ) pairs allow: 1 − min(δ + e^ε·FPR)."""
    pairs = list(zip(epsilons, deltas, strict=True))
    return [1 - min(1.0, *(d + math.exp(min(e, 700.0)) * float(a) for e, d in pairs)) for a in fpr]
