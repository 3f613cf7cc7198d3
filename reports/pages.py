"""Sibling pages of the report: accountants side by side, and canary exposure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.privacy.guarantee import tightest
from dpaudit.reports import curves, figures
from dpaudit.reports.page import STAGE_DEFAULTS
from dpaudit.reports.render import render
from dpaudit.reports.svg import Drawing
from dpaudit.reports.text import counted, listed, relation_text

MOST_ROWS, OPEN_ROWS = 200, 20
ANSWER = ("accountant", "epsilon_lower", "epsilon_upper", "epsilon_estimate", "rigorous", "seconds")


def compare_page(payload: Mapping[str, Any]) -> str:
    """One HTML page that lays accountants side by side.

    Parameters
    ----------
    payload : mapping
        What ``dpaudit compare --json`` prints: ``delta``, ``relation``, ``results`` (each in the form of
        ``dpaudit account``, with a sentence under ``remark``), and optionally ``stages``, ``unit``, ``summary``,
        ``epsilon_over_steps``, ``epsilon_over_delta`` (see ``over_steps``), ``tradeoff`` (see
        ``tradeoff_curves``) and ``not_drawn``.

    Returns
    -------
    str
        HTML without scripts or outside resources; every text in it is escaped.

    Raises
    ------
    KeyError
        If ``delta``, ``relation`` or ``results`` is missing.
    """
    drawn = (
        ("epsilon_over_steps", curves.over_steps),
        ("epsilon_over_delta", curves.over_delta),
        ("tradeoff", curves.tradeoff_curves),
    )
    results = [
        {"remark": r.get("remark") or r.get("assumption") or "", **{field: r.get(field) for field in ANSWER}}
        for r in payload["results"]
    ]
    return render(
        "compare.html",
        title="Accountants side by side – dpaudit",
        delta=payload["delta"],
        relation=relation_text(str(payload["relation"]), str(payload.get("unit", "record"))),
        group_size=payload.get("group_size", 1),
        results=results,
        best=tightest(results),
        least=_least(results),
        spread=_spread(results),
        estimates=[r for r in results if not r["rigorous"] and not _refused(r)],
        refused=[r for r in results if _refused(r)],
        summary=payload.get("summary", ""),
        stages=[STAGE_DEFAULTS | dict(s) for s in payload.get("stages") or ()],
        drawings=[draw(payload[name]) for name, draw in drawn if payload.get(name)],
        not_drawn=payload.get("not_drawn") or {},
    )


def exposure_page(payload: Mapping[str, Any]) -> str:
    """One HTML page on canary exposure, from what ``dpaudit exposure --json`` prints (``dpaudit.exposure/1``).

    The group with the fewest copies leads: canaries that stand once in the data concern the claim for one record.

    Parameters
    ----------
    payload : mapping
        What ``dpaudit exposure --json`` prints.

    Returns
    -------
    str
        HTML without scripts or outside resources; every text in it is escaped.
    """
    canaries = sorted(payload["canaries"], key=lambda c: (-float(c["exposure"]), str(c["id"])))
    groups = sorted(payload.get("by_copies") or (), key=lambda g: int(g["copies"]))
    lead = groups[0] if groups else None
    return render(
        "exposure.html",
        title="Canary exposure – dpaudit",
        p=payload,
        canaries=canaries[:OPEN_ROWS],
        folded=canaries[OPEN_ROWS:MOST_ROWS],
        hidden=max(0, len(canaries) - MOST_ROWS),
        lead=lead,
        who="" if lead is None else _who(lead),
        others=_others(groups[1:]),
        groups=groups,
        claimed=any(g.get("p_value_under_claim") is not None for g in groups),
        combined=payload.get("combined") or {},
        single=payload.get("single_p_values"),
        extrapolation=payload.get("extrapolation") or {},
        extrapolated=any(c.get("exposure_extrapolated") is not None for c in canaries),
        drawings=_exposures(payload, canaries, lead),
    )


def _exposures(payload: Mapping[str, Any], canaries: list[Any], lead: Mapping[str, Any] | None) -> list[Drawing]:
    shown = [c for c in canaries if lead is None or int(c.get("copies", 1)) == int(lead["copies"])]
    if not shown:
        return []
    series = {
        "exposure": [c["exposure"] for c in shown],
        "mean_without_leakage": payload.get("mean_exposure_without_leakage"),
        "who": "canaries" if lead is None else _who(lead),
    }
    return [figures.histogram(series)]


def _who(group: Mapping[str, Any]) -> str:
    copies = int(group["copies"])
    often = "once" if copies == 1 else counted(copies, "time")
    return f"{counted(group['canaries'], 'canary', 'canaries')} inserted {often}"


def _others(groups: list[Mapping[str, Any]]) -> str:
    """Which of the groups with more copies stand out; empty without any such group."""
    if not groups:
        return ""
    standing = listed([str(g["copies"]) for g in groups if g.get("stands_out")])
    if not standing:
        return "No group with more copies stands out."
    return f"Canaries with {standing} copies stand out; they concern groups of that many records, not one record."


def _refused(result: Mapping[str, Any]) -> bool:
    """Whether an accountant gave no answer at all; its remark then says why."""
    return all(result.get(f"epsilon_{kind}") is None for kind in ("lower", "upper", "estimate"))


def _least(results: list[dict[str, Any]]) -> float | None:
    """Largest certified lower bound on the mechanism's true ε."""
    lowers = [float(r["epsilon_lower"]) for r in results if r["rigorous"] and r["epsilon_lower"] is not None]
    return max(lowers, default=None)


def _spread(results: list[dict[str, Any]]) -> float | None:
    uppers = [float(r["epsilon_upper"]) for r in results if r["rigorous"] and r["epsilon_upper"] is not None]
    if len(uppers) < 2 or min(uppers) <= 0 or max(uppers) == float("inf"):
        return None
    return max(uppers) / min(uppers) - 1
