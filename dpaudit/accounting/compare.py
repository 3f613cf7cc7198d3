"""Accountants side by side on one ledger: who is rigorous, who is loose, and who is wrong here, in plain sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from dpaudit.accounting.account import Reply, account, answered, replies
from dpaudit.accounting.clt import clt_mu
from dpaudit.accounting.rdp import rdp_curve
from dpaudit.accounting.registry import BUILT_IN
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

    reply: Reply
    remark: str

    @property
    def accountant(self) -> str:
        """Name of the accountant."""
        return self.reply.accountant

    @property
    def guarantee(self) -> Guarantee | None:
        """Its answer; None where it refused."""
        return self.reply.guarantee


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
        results = [row.reply.to_dict() | {"remark": row.remark} for row in self.rows]
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

    Returns
    -------
    Comparison
        One row for each accountant, in the order asked for; a refusal is a row with its reason.
    """
    options: dict[str, Any] = {"group_size": group_size, "assume": tuple(assume)}
    found = replies(ledger, delta=delta, accountants=accountants, **options)
    answered(found)
    certified = next((reply.guarantee for reply in found if reply.accountant == "prv"), None)
    if certified is None:
        certified = replies(ledger, delta=delta, **options)[0].guarantee
    rows = tuple(
        Row(reply, _remark(reply.guarantee, certified) if reply.guarantee else str(reply.refused)) for reply in found
    )
    drawn = _curves(ledger, delta, options, empirical) if curves and certified is not None else {}
    return Comparison(ledger, delta, group_size * ledger.max_records_per_unit, rows, drawn)


def _remark(found: Guarantee, certified: Guarantee | None) -> str:
    """What an answer is worth for this ledger."""
    if found.accountant == "prv":
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
            return f"an estimate, {_times(value, upper)} the certified upper bound here; not a guarantee"
        if lower is None or value > lower * LOOSE:
            return "an estimate near the certified upper bound; how near to the truth is not known; not a guarantee"
        return "close to the truth here, but an estimate and not a guarantee"
    if value > upper * LOOSE:
        return f"valid but loose: {_times(value, upper)} the certified upper bound"
    if lower is None or value > lower * LOOSE:
        return "valid; how near to the truth is not known here"
    return "valid and tight here"


def _times(value: float, upper: float) -> str:
    return f"{value / upper:.2f} times" if upper > 0 else "above"


def _curves(
    ledger: Ledger, delta: float, options: dict[str, Any], empirical: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Series of the three figures; false-NEGATIVE rates in the trade-off."""
    # A curve is many evaluations, so that it has fewer points where one takes long.
    points = max(4, min(40, 800 // max(1, len(ledger.merged().stages))))
    steps = epsilon_curve(ledger, delta, points=points, **options)
    estimate = _maybe(lambda: [_clt_epsilon(first_steps(ledger, n), delta, options) for n in steps.steps])
    certified = {"accountant": "prv", "rigorous": True}
    over_steps: list[dict[str, Any]] = [
        certified | {"epsilon_lower": list(steps.lower), "epsilon_upper": list(steps.upper)}
    ]
    if estimate is not None:
        over_steps.append({"accountant": "gdp-clt", "rigorous": False, "epsilon_estimate": estimate})
    spread = np.geomspace(max(delta / 1e4, 1e-300), max(0.1, delta), max(5, 25 * points // 40))
    deltas = sorted({delta, *(float(d) for d in spread)})
    answers = [account(ledger, delta=d, **options)[0] for d in deltas]
    lower = [g.epsilon_lower for g in answers]
    over_delta = [certified | {"epsilon_upper": [g.epsilon_upper for g in answers]}]
    if None not in lower:
        over_delta[0] |= {"epsilon_lower": lower}
    renyi = _maybe(lambda: rdp_curve(ledger, deltas, **options))
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
