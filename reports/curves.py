"""Figures that lay several accountants over one another, and the trade-off curves that they imply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.privacy.rounding import exact_text, nearest_text, upper_text
from dpaudit.reports.rates import attack_points, certified_band, guessing_line, unit_square
from dpaudit.reports.svg import COLOURS, Drawing, draw, quiet

# One colour, dash and marker each, so that they can be told apart without colour; an accountant looks alike everywhere.
_LINES: dict[str, tuple[str, Any, str]] = {
    "prv": ("acc", "-", "."),
    "rdp": ("third", (0, (7, 2)), "s"),
    "pld": ("claim", (0, (4, 2)), "x"),
    "gdp": ("ceil", (0, (1.5, 1.5)), "D"),
}
_OTHER = ("muted", (0, (5, 1, 1, 1)), "v")
_ESTIMATE = ("emp", (0, (2, 2)), "o")
VALUES = ("epsilon_upper", "epsilon", "epsilon_estimate")
MOST_LABELS = 5
"""Labels on a logarithmic axis, so that they do not run into one another on a phone."""


def over_steps(series: Mapping[str, Any], *, claim: float | None = None) -> Drawing:
    """ε over steps by every accountant, with stage boundaries.

    Parameters
    ----------
    series : mapping
        ``steps``; optionally ``boundaries``; and ``curves``, a sequence of mappings with ``accountant``, one of
        ``epsilon_upper``, ``epsilon`` or ``epsilon_estimate`` (arrays as long as ``steps``, or as the curve's own
        ``steps``), and ``rigorous``.
    """
    return _accountants(
        "over-steps",
        series,
        "steps",
        title="ε over steps",
        xlabel="noisy steps" + (" (dotted: stage boundaries)" if series.get("boundaries") else ""),
        claim=claim,
    )


def over_delta(series: Mapping[str, Any]) -> Drawing:
    """ε over δ by every accountant; like :func:`over_steps` with ``delta`` in place of ``steps``.

    ``asked``, where given, is the δ that the comparison is about.
    """
    return _accountants("over-delta", series, "delta", title="ε over δ", xlabel="δ", claim=None)


def _accountants(
    name: str, series: Mapping[str, Any], axis: str, *, title: str, xlabel: str, claim: float | None
) -> Drawing:
    logarithmic = axis == "delta"
    lines = list(_lines(series["curves"], axis, series[axis]))
    last = "; ".join(f"{label} {_shown(values, rigorous)}" for label, _, values, _, _, rigorous in lines)
    alt = f"{title} by {len(lines)} accountants; at the right end {last}."
    asked = series.get("asked")

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        for label, x, values, lower, (colour, dash, marker), _ in lines:
            ink = {"color": COLOURS[colour], "label": label}
            if lower is not None:
                axes.fill_between(x, [_finite(v) for v in lower], values, color=COLOURS[colour], alpha=0.3, linewidth=0)
            if x is series[axis]:
                single = {"marker": "_", "markersize": 14} if len(values) == 1 else {}
                axes.plot(x, values, linewidth=2, linestyle=dash, **ink, **single)
            else:  # ε bends with the steps, so lines between few points would pass below what was computed
                axes.plot(x, values, marker, markersize=6, fillstyle="none", markeredgewidth=1.6, **ink)
        for step in series.get("boundaries", ()):
            axes.axvline(step, color=COLOURS["muted"], linewidth=1, linestyle=(0, (1, 2)))
        if claim is not None:
            axes.axhline(claim, color=COLOURS["claim"], linewidth=1.2, linestyle=(0, (4, 3)))
        if logarithmic:
            _logarithmic(axes, narrow, asked)
        else:
            axes.set_xlim(0, 1.02 * max(series[axis]))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("ε")
        axes.legend(loc="best", frameon=False, fontsize=10.5, labelcolor=COLOURS["ink"])

    caption = "" if asked is None else f"The dotted line is the δ that was asked for, {exact_text(asked)}."
    return draw(name, title=title, alt=alt, heights=(330, 300), paint=paint, caption=caption)


def _lines(curves: Sequence[Mapping[str, Any]], axis: str, common: Sequence[float]) -> Any:
    for curve in curves:
        key = next((k for k in VALUES if curve.get(k) is not None), None)
        if key is None:
            continue
        rigorous = bool(curve.get("rigorous", key != "epsilon_estimate"))
        accountant = str(curve["accountant"])
        style = _LINES.get(accountant, _OTHER) if rigorous else _ESTIMATE
        label = accountant + ("" if rigorous else " (not a bound)")
        values = [_finite(v) for v in curve[key]]
        if all(math.isnan(v) for v in values):
            continue
        yield label, curve.get(axis, common), values, curve.get("epsilon_lower"), style, rigorous


def _logarithmic(axes: Any, narrow: bool, asked: float | None) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=MOST_LABELS if narrow else 2 * MOST_LABELS))
    axes.xaxis.set_major_formatter(lambda value, _: nearest_text(value, 3))
    axes.minorticks_off()
    if asked is not None:
        axes.axvline(asked, color=COLOURS["ink"], linewidth=1, linestyle=(0, (1, 2)))


def tradeoff_curves(series: Mapping[str, Any]) -> Drawing:
    """Trade-off curves on linear axes: the certified band, what other accountants imply, and an attack's points.

    Parameters
    ----------
    series : mapping
        ``alpha``, ``lower`` and optionally ``upper`` (false negative rates); optionally, by accountant's name, the
        curve that its bounds imply, ``clt`` for the central-limit estimate, and ``points`` with ``fpr`` and ``fnr``.
    """
    alpha, lower = [float(a) for a in series["alpha"]], [float(v) for v in series["lower"]]
    upper = None if series.get("upper") is None else [float(v) for v in series["upper"]]
    implied = {name: series[name] for name in _LINES if series.get(name) is not None}
    points = list(series.get("points") or ())
    names = ", ".join(["prv", *implied, *(["the central-limit estimate"] if series.get("clt") else [])])
    alt = (
        f"Trade-off between false alarms and misses, certified and as implied by {names}; {len(points)} attack points."
    )

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        guessing_line(axes, [0, 1], [1, 0], "nothing leaks")
        certified_band(axes, alpha, lower, upper, label="prv: no attack is below", band="")
        for name, values in implied.items():
            colour, dash, _ = _LINES[name]
            axes.plot(alpha, values, color=COLOURS[colour], linewidth=1.8, linestyle=dash, label=f"implied by {name}")
        if series.get("clt"):
            colour, dash, _ = _ESTIMATE
            label = "gdp-clt (not a bound)"
            axes.plot(alpha, series["clt"], color=COLOURS[colour], linewidth=1.8, linestyle=dash, label=label)
        attack_points(axes, points, label="measured attack")
        unit_square(axes)

    return draw(
        "tradeoff-curves",
        title="Trade-off curve",
        alt=alt,
        heights=(380, 340),
        paint=paint,
        caption="Any test that tells two neighbouring data sets apart lies on or above every certified curve.",
    )


def _shown(values: Sequence[float], rigorous: bool) -> str:
    return upper_text(values[-1]) if rigorous else "about " + nearest_text(values[-1])


def _finite(value: Any) -> float:
    """Infinite and missing values leave a gap in a line."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan
