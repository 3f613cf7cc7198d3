"""Figures that lay several accountants over one another, and the trade-off curve on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.reports.svg import COLOURS, Drawing, draw, quiet
from dpaudit.reports.text import eps

# One colour and one dash each, so that lines can be told apart without colour.
_LINES = (
    ("acc", "-"),
    ("third", (0, (7, 2))),
    ("claim", (0, (4, 2))),
    ("ceil", (0, (1.5, 1.5))),
    ("muted", (0, (5, 1, 1, 1))),
)
_ESTIMATE = ("emp", (0, (2, 2)))
VALUES = ("epsilon_upper", "epsilon", "epsilon_estimate")


def over_steps(series: Mapping[str, Any], *, claim: float | None = None) -> Drawing:
    """ε over steps by every accountant, with stage boundaries.

    Parameters
    ----------
    series : mapping
        ``steps``; optionally ``boundaries``; and ``curves``, a sequence of mappings with ``accountant``, one of
        ``epsilon_upper``, ``epsilon`` or ``epsilon_estimate`` (arrays as long as ``steps``), and ``rigorous``.
    """
    return _accountants(
        "over-steps",
        series["steps"],
        series["curves"],
        title="ε over steps",
        xlabel="noisy steps" + (" (dotted: stage boundaries)" if series.get("boundaries") else ""),
        boundaries=series.get("boundaries", ()),
        claim=claim,
        logarithmic=False,
    )


def over_delta(series: Mapping[str, Any]) -> Drawing:
    """ε over δ by every accountant; like :func:`over_steps` with ``delta`` in place of ``steps``."""
    return _accountants(
        "over-delta",
        series["delta"],
        series["curves"],
        title="ε over δ",
        xlabel="δ",
        boundaries=(),
        claim=None,
        logarithmic=True,
    )


def _accountants(
    name: str,
    x: Sequence[float],
    curves: Sequence[Mapping[str, Any]],
    *,
    title: str,
    xlabel: str,
    boundaries: Sequence[float],
    claim: float | None,
    logarithmic: bool,
) -> Drawing:
    lines = []
    certified = 0
    for curve in curves:
        key = next((k for k in VALUES if curve.get(k) is not None), None)
        if key is None:
            continue
        rigorous = bool(curve.get("rigorous", key != "epsilon_estimate"))
        values = [_finite(v) for v in curve[key]]
        style = _LINES[certified % len(_LINES)] if rigorous else _ESTIMATE
        certified += rigorous
        label = str(curve["accountant"]) + ("" if rigorous else " (not a bound)")
        lines.append((label, values, style, curve.get("epsilon_lower")))
    last = "; ".join(f"{label} {eps(values[-1])}" for label, values, _, _ in lines if values)
    alt = f"{title} by {len(lines)} accountants; at the right end {last}."

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        for label, values, (colour, dash), lower in lines:
            if lower is not None:
                axes.fill_between(x, [_finite(v) for v in lower], values, color=COLOURS[colour], alpha=0.3, linewidth=0)
            axes.plot(x, values, color=COLOURS[colour], linewidth=2, linestyle=dash, label=label)
        for step in boundaries:
            axes.axvline(step, color=COLOURS["muted"], linewidth=1, linestyle=(0, (1, 2)))
        if claim is not None:
            axes.axhline(claim, color=COLOURS["claim"], linewidth=1.2, linestyle=(0, (4, 3)))
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.minorticks_off()
        else:
            axes.set_xlim(0, max(x))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("ε")
        axes.legend(loc="best", frameon=False, fontsize=10.5, labelcolor=COLOURS["ink"])

    return draw(name, title=title, alt=alt, heights=(330, 300), paint=paint)


def tradeoff_log(series: Mapping[str, Any]) -> Drawing:
    """Trade-off curve on log-log axes: certified band, and the attack's points where given.

    Parameters
    ----------
    series : mapping
        ``alpha``, ``lower`` and optionally ``upper`` (false negative rates), and ``points`` with ``fpr`` and ``fnr``.
    """
    rows = [
        (float(a), float(low), float(high))
        for a, low, high in zip(series["alpha"], series["lower"], series.get("upper") or series["lower"], strict=True)
        if float(a) > 0 and float(high) > 0
    ]
    points = list(series.get("points") or ())
    floor = min([a for a, _, _ in rows] + [low for _, low, _ in rows if low > 0], default=1e-6)
    alt = (
        f"Trade-off curve of the mechanism on logarithmic axes with its certified band and {len(points)} attack points."
    )

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        alpha = [a for a, _, _ in rows]
        lower = [max(low, floor) for _, low, _ in rows]
        if series.get("upper") is not None:
            axes.fill_between(
                alpha,
                lower,
                [h for _, _, h in rows],
                color=COLOURS["acc"],
                alpha=0.3,
                linewidth=0,
                label="certified band",
            )
        axes.plot(alpha, lower, color=COLOURS["acc"], linewidth=2.2, label="least the mechanism guarantees")
        if points:
            axes.plot(
                [p["fpr"] for p in points],
                [p["fnr"] for p in points],
                "o",
                color=COLOURS["emp"],
                label="measured attack",
            )
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("false negative rate")
        axes.legend(loc="lower left", frameon=False, fontsize=10.5, labelcolor=COLOURS["ink"])

    return draw(
        "tradeoff-log",
        title="Trade-off curve",
        alt=alt,
        heights=(330, 300),
        paint=paint,
        caption="Any test that tells two neighbouring data sets apart lies on or above the curve.",
    )


def _finite(value: Any) -> float:
    """Infinite values leave a gap in a line."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan
