"""The figures of a report, each a pure function of finished values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.privacy.guarantee import Bound, tightest
from dpaudit.privacy.rounding import exact_text, lower_text, nearest_text, percent_lower, upper_text
from dpaudit.reports.rates import attack_points, certified_band, guessing_line, name_rates, unit_square
from dpaudit.reports.svg import COLOURS, Drawing, draw, quiet


def epsilon_axis(
    *,
    claim: float,
    guarantees: Sequence[Bound],
    lower: float | None,
    ceiling: float | None,
    confidence: float | None = 0.95,
    copies: int = 1,
    inside: float | None = None,
) -> Drawing:
    """Claim, accounted interval, empirical lower bound and ceiling on one ε axis.

    Parameters
    ----------
    claim : float
        Claimed ε.
    guarantees : sequence of Guarantee
        Accountants' results; only certified upper bounds are drawn, the tightest one.
    lower, ceiling : float or None
        Empirical lower bound, and what a perfect attack could have shown.
    inside : float or None
        Lower bound that the observer of every noisy update shows.
    copies : int
        Above 1 the attack concerns groups of that many records: ``claim`` is then the group's ε, and no guarantee for
        one record may be given.
    """
    best = tightest(guarantees)
    upper = None if best is None else best.epsilon_upper
    under = None if best is None else best.epsilon_lower
    finite = [v for v in (claim, upper, lower, inside, ceiling) if v is not None and math.isfinite(v)]
    end = 1.12 * max(finite)
    limit = min(claim, upper if upper is not None else claim)

    group = "" if copies == 1 else f" for groups of {copies}"
    rows: list[tuple[str, str]] = [(f"Claimed{group}: at most {exact_text(claim)}", "claim")]
    if upper is not None:
        rows.append((f"Follows from the recorded steps: at most {upper_text(upper, within=claim)}", "acc"))
    sure = "" if confidence is None else f" ({percent_lower(confidence)} sure)"
    for value, who, kind in ((inside, "Seen from every update", "third"), (lower, "Shown by the attack", "emp")):
        if value is not None:
            shown = f"at least {lower_text(value, beyond=claim)}{sure}" if value > 0 else "no bound above 0"
            rows.append((f"{who}: {shown}", kind))
    if ceiling is not None:
        rows.append((f"A perfect attack could show {lower_text(ceiling)}", "ceil"))
    alt = "One axis of privacy loss epsilon. " + ". ".join(text for text, _ in rows) + "."

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        axes.grid(False, axis="y")
        axes.set_yticks([])
        axes.set_xlim(0, end)
        axes.set_ylim(len(rows) - 0.15, -0.55)
        axes.axvspan(limit, end, color=COLOURS["alarm"], linewidth=0, zorder=0)
        for y, (text, kind) in enumerate(rows):
            # A row's words stand above its bar, so the claim's line runs along the bar alone.
            axes.plot(
                [claim, claim],
                [y - 0.12, y + 0.4],
                color=COLOURS["claim"],
                linewidth=1.4,
                linestyle=(0, (4, 3)),
                zorder=2,
            )
            size = 12 if narrow else 12.5
            label = axes.text(0, y - 0.18, text, ha="left", va="bottom", fontsize=size, color=COLOURS["ink"], zorder=5)
            label.set_in_layout(False)
            values = {"claim": claim, "acc": upper, "third": inside, "emp": lower, "ceil": ceiling}
            _lane(axes, y + 0.12, kind, values[kind], under, end)
        axes.set_xlabel(
            "privacy loss ε" + ("" if narrow else "  (0 = nothing can leak; each unit allows 2.7 times more)")
        )

    return draw(
        "epsilon-axis",
        title="Claim, accounting and attack on one scale",
        alt=alt,
        caption="A result of the attack inside the shaded area would refute "
        + ("the claim or the recorded steps." if limit < 0.99 * claim else "the claim."),
        heights=(78 + 62 * len(rows), 78 + 62 * len(rows)),
        paint=paint,
    )


def _lane(axes: Any, y: float, kind: str, value: float | None, under: float | None, end: float) -> None:
    if value is None:
        return
    colour, right = COLOURS[kind], min(value, end)
    if kind == "claim":
        axes.plot([0, right], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([right], [y], marker="|", markersize=13, markeredgewidth=2.4, color=colour)
    elif kind == "acc":
        axes.plot([0, right], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        if under is not None:
            axes.plot([under, right], [y, y], color=colour, linewidth=9, solid_capstyle="butt")
        axes.plot([right], [y], marker="|", markersize=13, markeredgewidth=2.4, color=colour)
    elif kind in ("emp", "third"):
        axes.plot([right], [y], marker="o", markersize=8, color=colour, clip_on=False, zorder=4)
        axes.annotate(
            "",
            xy=(right + 0.05 * end, y),
            xytext=(right, y),
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2},
        )
    else:
        axes.plot([0, right], [y, y], color=colour, linewidth=1.4, linestyle=(0, (1.5, 2.5)))
        axes.plot(
            [right], [y], marker="D", markersize=6.5, markerfacecolor=COLOURS["card"], markeredgewidth=1.6, color=colour
        )


def budget(series: Mapping[str, Any], *, claim: float | None) -> Drawing:
    """ε over steps with stage boundaries.

    Parameters
    ----------
    series : mapping
        ``steps`` and ``epsilon`` of equal length, optionally ``boundaries`` (steps at which a stage ended) and
        ``accountant``.
    """
    steps, values = list(series["steps"]), [float(v) for v in series["epsilon"]]
    boundaries = list(series.get("boundaries", ()))
    alt = f"Privacy loss over training: at most {upper_text(values[-1])} after {steps[-1]} steps" + (
        "." if claim is None else f", claim {exact_text(claim)}."
    )

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        axes.plot(steps, values, color=COLOURS["acc"], linewidth=2.2)
        axes.plot(steps[-1:], values[-1:], "o", color=COLOURS["acc"], markersize=6)
        if claim is not None:
            axes.axhline(claim, color=COLOURS["claim"], linewidth=1.4, linestyle=(0, (4, 3)))
            axes.annotate(
                f"claim {exact_text(claim)}",
                (0, claim),
                xytext=(6, -6),
                textcoords="offset points",
                va="top",
                color=COLOURS["ink"],
            )
        for step in boundaries:
            axes.axvline(step, color=COLOURS["muted"], linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xlim(0, max(steps))
        axes.set_ylim(0, 1.12 * max([*values, claim or 0]))
        axes.set_xlabel("noisy steps" + (" (dotted: stage boundaries)" if boundaries else ""))
        axes.set_ylabel("ε so far")

    return draw(
        "budget",
        title="Privacy budget over training",
        alt=alt,
        heights=(260, 230),
        paint=paint,
        caption="Upper bound on the privacy loss of everything released up to a step"
        + (f", by accountant {series['accountant']}." if series.get("accountant") else "."),
    )


def roc(series: Mapping[str, Any]) -> Drawing:
    """ROC of the attack on logarithmic axes.

    Parameters
    ----------
    series : mapping
        ``fpr`` and ``tpr``; optionally ``limit`` with ``fpr`` and ``tpr`` (the most that the claim allows) and
        ``tpr_at``, a sequence of ``{"fpr", "tpr"}``.
    """
    fpr, tpr = [float(v) for v in series["fpr"]], [float(v) for v in series["tpr"]]
    floor = max(1e-5, min([v for v in (*fpr, *tpr) if v > 0], default=1e-3) / 1.5)
    points = list(series.get("tpr_at", ()))
    shown = "; ".join(
        f"{100 * float(p['tpr']):.1f}% of inserted canaries found at {100 * float(p['fpr']):g}% false alarms"
        for p in points
    )
    alt = "Attack's true against false positive rate on logarithmic axes. " + (shown + "." if shown else "")

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(floor, 1)
        axes.set_ylim(floor, 1.15)
        guessing_line(axes, [floor, 1], [floor, 1], "guessing")
        if limit := series.get("limit"):
            axes.plot(
                limit["fpr"],
                limit["tpr"],
                color=COLOURS["claim"],
                linewidth=1.4,
                linestyle=(0, (4, 3)),
                label="allowed by the claim",
            )
        axes.plot(fpr, tpr, color=COLOURS["emp"], linewidth=2.2, drawstyle="steps-post", label="this attack")
        name_rates(axes, "true positive rate", "lower right")

    return draw(
        "roc",
        title="How well the attack tells inserted from left-out canaries",
        alt=alt,
        heights=(330, 300),
        paint=paint,
        caption=shown + "." if shown else "",
    )


def histogram(series: Mapping[str, Any]) -> Drawing:
    """Scores of inserted and left-out canaries, or exposures against their null.

    Parameters
    ----------
    series : mapping
        Either ``in`` and ``out`` (scores; the left-out canaries are the null), or ``exposure`` (bits; null 2^-b) and
        optionally ``mean_without_leakage`` (bits) and ``who`` they belong to.
    """
    exposure = "exposure" in series
    groups = (
        [(str(series.get("who", "canaries")), [float(v) for v in series["exposure"]], "emp")]
        if exposure
        else [
            ("left out (null)", [float(v) for v in series["out"]], "ceil"),
            ("inserted", [float(v) for v in series["in"]], "emp"),
        ]
    )
    everything = [v for _, values, _ in groups for v in values if math.isfinite(v)]
    low, high = (min(everything), max(everything)) if everything else (0.0, 1.0)
    low = min(low, 0.0) if exposure else low
    edges = [low + (high - low or 1.0) * i / 30 for i in range(31)]
    counts = ", ".join(name if name[:1].isdigit() else f"{len(values)} {name}" for name, values, _ in groups)
    alt = f"Histogram of {'exposure in bits' if exposure else 'attack scores'}: {counts}."

    def paint(axes: Any, narrow: bool) -> None:
        from matplotlib.ticker import MaxNLocator

        quiet(axes)
        axes.grid(False, axis="x")
        for name, values, colour in groups:
            axes.hist(
                values,
                bins=edges,
                histtype="stepfilled",
                color=COLOURS[colour],
                alpha=0.35,
                label=name,
                edgecolor=COLOURS[colour],
                linewidth=1.6,
            )
        if exposure:
            width, total = edges[1] - edges[0], len(groups[0][1])
            expected = [total * (2.0 ** -max(a, 0) - 2.0 ** -max(a + width, 0)) for a in edges[:-1]]
            axes.step(
                edges[:-1],
                expected,
                where="post",
                color=COLOURS["ink"],
                linestyle=(0, (4, 3)),
                label="expected if nothing leaked",
            )
        axes.set_xlabel("exposure (bits)" if exposure else "attack score (higher = looks inserted)")
        axes.set_ylabel("canaries")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)  # the legend stands above the bars
        axes.legend(loc="upper right", frameon=False, fontsize=10.5, labelcolor=COLOURS["ink"])

    return draw(
        "exposure" if exposure else "scores",
        title="Canary exposure" if exposure else "What the attack saw",
        alt=alt,
        heights=(280, 250),
        paint=paint,
        caption=_null_words(series)
        if exposure
        else "The more the two shapes part, the more the model gives away about its canaries.",
    )


def _null_words(series: Mapping[str, Any]) -> str:
    text = "Without any leak exposures scatter as the dashed line does"
    mean = series.get("mean_without_leakage")
    return text + ("." if mean is None else f", with a mean of {nearest_text(mean)} bits.")


def tradeoff(series: Mapping[str, Any], *, delta: float | None = None) -> Drawing:
    """Trade-off plot: certified band of the mechanism, and the attack's points.

    Parameters
    ----------
    series : mapping
        ``alpha`` with ``lower`` and optionally ``upper`` (false negative rates); optionally ``points``, each with
        ``fpr`` and ``fnr``.
    """
    alpha, lower = list(series["alpha"]), list(series["lower"])
    upper = list(series["upper"]) if series.get("upper") is not None else None
    points = list(series.get("points", ()))
    alt = f"Trade-off between false alarms and misses: the mechanism's certified curve and {len(points)} points."

    def paint(axes: Any, narrow: bool) -> None:
        quiet(axes)
        guessing_line(axes, [0, 1], [1, 0], "nothing leaks")
        certified_band(axes, alpha, lower, upper, label="least the mechanism guarantees", band="certified band")
        attack_points(axes, points, label="this attack", markersize=4.5)
        unit_square(axes)

    return draw(
        "tradeoff",
        title="Trade-off curve",
        alt=alt,
        heights=(330, 320),
        paint=paint,
        caption="A point of the attack below the certified curve would contradict the declared mechanism."
        + (f" δ\u00a0=\u00a0{exact_text(delta)} is one point of this curve." if delta else ""),
    )


def _number(value: Any) -> float:
    return float(value)
