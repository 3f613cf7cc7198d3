"""Table of the two observers: one sees every noisy update, the other only the released model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.in_run import FINAL, OBSERVER, visible_text
from dpaudit.certificates.plain import to_float
from dpaudit.certificates.statement import Predicate
from dpaudit.privacy.rounding import ABSENT, lower_text, nearest_text, percent_lower, percent_upper

VISIBLE = 0.95
"""Probability with which the smallest visible shortfall is seen."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObserverRow:
    """One observer, in words and printed numbers.

    Attributes
    ----------
    observer : str
    canaries, guesses : str
    lower, expected : str
        Bound on ε at the printed confidence; its mean at the optimal attack if the mechanism were exactly as claimed.
    power : str
        Measured power with its fault and the ends of its 95 % interval.
    visible : str
        Smallest shortfall of the noise that it would have convicted with probability 0.95.
    """

    observer: str
    canaries: str
    guesses: str
    lower: str
    expected: str
    power: str
    visible: str


def observer_rows(body: Predicate) -> tuple[ObserverRow, ...]:
    """Both observers where both looked, else the one that did."""
    rows = []
    if body.in_run is not None:
        rows.append(_in_run_row(body.in_run.result))
    if body.audit is not None and body.audit.result:
        rows.append(_model_row(body.audit.result, len(body.audit.canaries)))
    return tuple(rows)


def _in_run_row(result: Mapping[str, Any]) -> ObserverRow:
    primary, control = result.get("primary") or {}, result.get("control")
    power = "not measured"
    if isinstance(control, Mapping):
        power = (
            f"{control.get('convicted')} of {control.get('repeats')} simulated runs with {control.get('fault')} were"
            f" convicted (at least {percent_lower(control.get('lower'))})"
        )
    return ObserverRow(
        observer=OBSERVER,
        canaries=f"{result.get('m', 0):,}",
        guesses=_guesses(primary),
        lower=lower_text(_number(primary.get("epsilon_lower"))),
        expected=nearest_text(_number(primary.get("expected")), 3),
        power=power,
        visible=visible_text(result) or "none",
    )


def _model_row(result: Mapping[str, Any], canaries: int) -> ObserverRow:
    from dpaudit.certificates.lines import power_of

    primary, power = result.get("primary") or {}, result.get("power")
    fault, low, high = power_of(result)
    told, visible = "not measured", "none shown"
    if power is not None:
        told = f"{percent_lower(power)} against {fault}"
        told += "" if low is None else f" ({percent_lower(low)} to {percent_upper(high)})"
        if low is not None and to_float(low) >= VISIBLE:
            visible = fault
    return ObserverRow(
        observer=FINAL,
        canaries=f"{canaries:,}",
        guesses=_guesses(primary),
        lower=lower_text(_number(primary.get("epsilon_lower"))),
        expected=nearest_text(_number(result.get("expected_epsilon_lower")), 3),
        power=told,
        visible=visible,
    )


def _guesses(primary: Mapping[str, Any]) -> str:
    if primary.get("guesses") is None or primary.get("correct") is None:
        return ABSENT
    return f"{primary['correct']:,} of {primary['guesses']:,}"


def _number(value: Any) -> float | None:
    return None if value is None else to_float(value)
