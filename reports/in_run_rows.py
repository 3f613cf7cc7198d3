"""Facts of the in-run audit, each with what it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dpaudit.privacy.rounding import lower_text, nearest_text, percent_upper
from dpaudit.reports.text import p_equals

Fact = tuple[str, str]


def in_run_rows(result: Mapping[str, Any]) -> list[Fact]:
    """Names and sentences, from the result of an in-run audit."""
    return [*_canaries(result), *_energy(result)]


def _canaries(result: Mapping[str, Any]) -> Iterator[Fact]:
    if not result.get("m"):
        yield "In-run canaries", "none"
        return
    members = f"{result.get('members'):,} of {result['m']:,} were in the data"
    yield "In-run canaries", f"{members}, each on a coordinate of its own"
    if result.get("rank_sum_p") is not None:
        seen = "alive" if result.get("alive") else "not alive: nothing follows from its silence"
        yield "Observer", f"{seen} ({p_equals(result['rank_sum_p'])} if its scores knew nothing of the coins)"
    profile = result.get("profile")
    if isinstance(profile, Mapping):
        yield (
            "Declared privacy profile",
            f"{p_equals(profile.get('p_value'))} that the declared noise, sampling and steps give such scores, if"
            " canaries are independent",
        )
    conditional = result.get("conditional")
    if isinstance(conditional, Mapping) and conditional.get("epsilon_lower") is not None:
        yield (
            "Bound if independent",
            f"ε ≥ {lower_text(conditional['epsilon_lower'])}; conditional: {conditional.get('assumption')}",
        )


def _energy(result: Mapping[str, Any]) -> Iterator[Fact]:
    energy = result.get("energy")
    if not isinstance(energy, Mapping):
        yield "Energy of the releases", "not recorded"
        return
    shown = nearest_text(energy.get("deviation"), 6)
    text = f"{shown} of the declared noise in all (records only add), {p_equals(energy.get('p_value'))}"
    visible = result.get("visible_by_energy")
    if visible is not None and visible < 1:
        text += f"; a shortfall of {percent_upper(visible)} would have been seen"
    yield "Energy of the releases", text
