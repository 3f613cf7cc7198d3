"""Sibling pages of the report: accountants side by side, and canary exposure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.privacy.guarantee import tightest
from dpaudit.reports import curves, figures
from dpaudit.reports.page import STAGE_DEFAULTS, render
from dpaudit.reports.text import relation_text

MOST_ROWS = 200


def compare_page(payload: Mapping[str, Any]) -> str:
    """One HTML page that lays accountants side by side.

    Parameters
    ----------
    payload : mapping
        What ``dpaudit compare --json`` prints: ``delta``, ``relation``, ``results`` (each in the form of
        ``dpaudit account``, with a sentence under ``remark``), and optionally ``stages``, ``unit``, ``summary``,
        ``epsilon_over_steps``, ``epsilon_over_delta`` (see :func:`dpaudit.reports.over_steps`) and ``tradeoff``.
    """
    drawings = []
    if payload.get("epsilon_over_steps"):
        drawings.append(curves.over_steps(payload["epsilon_over_steps"]))
    if payload.get("epsilon_over_delta"):
        drawings.append(curves.over_delta(payload["epsilon_over_delta"]))
    if payload.get("tradeoff"):
        drawings.append(curves.tradeoff_log(payload["tradeoff"]))
    results = list(payload["results"])
    return render(
        "compare.html",
        title="Accountants side by side – dpaudit",
        delta=payload["delta"],
        relation=relation_text(str(payload["relation"]), str(payload.get("unit", "record"))),
        group_size=payload.get("group_size", 1),
        results=[{"remark": r.get("remark") or r.get("assumption") or "", **_blank(r)} for r in results],
        best=tightest(results),
        least=_least(results),
        spread=_spread(results),
        loose=[r for r in results if not r.get("rigorous") and r.get("epsilon_estimate") is not None],
        summary=payload.get("summary", ""),
        stages=[STAGE_DEFAULTS | dict(s) for s in payload.get("stages") or ()],
        drawings=drawings,
    )


def exposure_page(payload: Mapping[str, Any]) -> str:
    """One HTML page on canary exposure, from what ``dpaudit exposure --json`` prints (``dpaudit.exposure/1``)."""
    canaries = sorted(payload["canaries"], key=lambda c: (-float(c["exposure"]), str(c["id"])))
    drawings = []
    if canaries:
        null = payload.get("mean_exposure_without_leakage")
        series = {"exposure": [c["exposure"] for c in canaries], "mean_without_leakage": null}
        drawings.append(figures.histogram(series))
    combined = payload.get("combined") or {}
    return render(
        "exposure.html",
        title="Canary exposure – dpaudit",
        p=payload,
        canaries=canaries[:MOST_ROWS],
        hidden=max(0, len(canaries) - MOST_ROWS),
        highest=canaries[0] if canaries else None,
        mean=sum(float(c["exposure"]) for c in canaries) / len(canaries) if canaries else None,
        combined=combined,
        leaked=combined.get("p_value") is not None and float(combined["p_value"]) <= 0.05,
        groups=payload.get("by_copies") or [],
        extrapolation=payload.get("extrapolation") or {},
        drawings=drawings,
    )


def _blank(result: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("accountant", "epsilon_lower", "epsilon_upper", "epsilon_estimate", "rigorous", "seconds")
    refused = all(result.get(f"epsilon_{kind}") is None for kind in ("lower", "upper", "estimate"))
    return {field: result.get(field) for field in fields} | {"refused": refused}


def _least(results: list[Mapping[str, Any]]) -> float | None:
    """Largest certified lower bound on the mechanism's true ε."""
    lowers = [float(r["epsilon_lower"]) for r in results if r.get("rigorous") and r.get("epsilon_lower") is not None]
    return max(lowers, default=None)


def _spread(results: list[Mapping[str, Any]]) -> float | None:
    uppers = [float(r["epsilon_upper"]) for r in results if r.get("rigorous") and r.get("epsilon_upper") is not None]
    if len(uppers) < 2 or min(uppers) <= 0 or max(uppers) == float("inf"):
        return None
    return max(uppers) / min(uppers) - 1
