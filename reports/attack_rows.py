"""The table of an attack's numbers: each with the direction it is rounded in, and what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dpaudit.certificates.lines import power_of
from dpaudit.certificates.lower_bound import LowerBound
from dpaudit.privacy.rounding import (
    ABSENT,
    lower_text,
    nearest_text,
    percent_lower,
    percent_text,
    percent_upper,
    upper_text,
)
from dpaudit.reports.text import p_value

Row = tuple[str, str, str]


def attack_rows(result: Mapping[str, Any], lower: LowerBound | None) -> list[Row]:
    """Rows of name, value and meaning, from the result of an audit."""
    return [*_bounds(result, lower), *_powers(result), *_scores(result)]


def _bounds(result: Mapping[str, Any], lower: LowerBound | None) -> Iterator[Row]:
    tested = (result.get("claim") or {}).get("tested_epsilon")
    limit = None if tested is None else float(tested)
    if lower is not None:
        sure = percent_lower(lower.confidence)
        shown = lower_text(lower.epsilon_lower, beyond=limit)
        yield "Lower bound on ε", shown, f"Leaked at least this much, {sure} sure"
        if lower.epsilon_lower_at_verdict is not None:
            shown = lower_text(lower.epsilon_lower_at_verdict, beyond=limit)
            yield "The verdict's bound", shown, "The same at the stricter level that decides the verdict"
    primary = result.get("primary") or {}
    if primary.get("guesses") is not None and primary.get("correct") is not None:
        right = f"{primary['correct']} of {primary['guesses']}"
        yield "Right guesses", right, "Of the coins that were guessed; about half would be right by chance"
    yield (
        "Ceiling",
        lower_text(result.get("ceiling")),
        "What a perfect attack could have shown with these canaries and guesses",
    )
    if result.get("expected_epsilon_lower") is not None:
        best = "Mean bound of the best attack on a Gaussian mechanism exactly as claimed"
        yield "Expected bound", nearest_text(result["expected_epsilon_lower"]), best


def _powers(result: Mapping[str, Any]) -> Iterator[Row]:
    power = result.get("power")
    if power is None:
        yield "Power of this attack", "not measured", "No run with a planted fault was attacked"
    else:
        fault, low, high = power_of(result)
        said = f"How often it would convict a run with this fault: {fault}"
        yield "Power of this attack", percent_lower(power), said + _within(percent_lower(low), percent_upper(high))
    optimal = result.get("power_if_attack_were_optimal")
    if optimal is not None:
        said = "How often the best possible attack would convict a run with half the claimed noise; it decides nothing"
        yield "Power of an ideal attack", percent_lower(optimal), said


def _scores(result: Mapping[str, Any]) -> Iterator[Row]:
    auc = result.get("auc") or {}
    if auc.get("value") is not None:
        low, high = (*(auc.get("interval") or ()), None, None)[:2]
        said = "0.5 is guessing, 1 is perfect" + _within(lower_text(low, 3), upper_text(high, 3))
        yield "AUC", nearest_text(auc["value"], 3), said
    if auc.get("p_value") is not None:
        said = "p-value of the rank sum, if the scores knew nothing of who was inserted"
        yield "Chance of such scores", p_value(auc["p_value"]), said
    design = result.get("design") or {}
    m, members = design.get("m"), design.get("members")
    left_out = None if m is None or members is None else int(m) - int(members)
    for point in auc.get("tpr_at_fpr") or ():
        yield _found(point, left_out)


def _found(point: Mapping[str, Any], left_out: int | None) -> Row:
    share = percent_text(point["fpr"])
    said = f"Inserted canaries found while at most {share} of the others are accused wrongly"
    if left_out is not None:
        said += f" ({math.floor(point['fpr'] * left_out + 1e-9)} of {left_out})"
    low, high = (*(point.get("interval") or ()), None, None)[:2]
    within = _within(percent_lower(low), percent_upper(high))
    return f"Found at {share} false alarms", percent_text(point["tpr"]), said + within


def _within(low: str, high: str) -> str:
    return "" if ABSENT in (low, high) else f"; 95% interval {low} to {high}"
