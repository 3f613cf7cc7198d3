"""Axes of error rates, as every figure of an attack's or a mechanism's trade-off has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpaudit.reports.svg import COLOURS


def guessing_line(axes: Any, x: Sequence[float], y: Sequence[float], label: str) -> None:
    """The dotted line on which an attack knows nothing."""
    axes.plot(x, y, color=COLOURS["ceil"], linewidth=1.3, linestyle=(0, (1.5, 2.5)), label=label)


def certified_band(
    axes: Any, alpha: Sequence[float], lower: Sequence[float], upper: Sequence[float] | None, *, label: str, band: str
) -> None:
    """The certified curve, and the band up to its upper end; ``band`` names it where it can be seen."""
    if upper is not None:
        # A band narrower than a pixel cannot be seen, so it gets no name in the legend.
        seen = max(abs(float(high) - float(low)) for low, high in zip(lower, upper, strict=True)) > 1 / 300
        name = band if seen and band else None
        axes.fill_between(alpha, lower, upper, color=COLOURS["acc"], alpha=0.3, linewidth=0, label=name)
    axes.plot(alpha, lower, color=COLOURS["acc"], linewidth=2.2, label=label)


def attack_points(axes: Any, points: Sequence[Any], *, label: str, **size: float) -> None:
    """What an attack reached: points with ``fpr`` and ``fnr``."""
    if points:
        x, y = [p["fpr"] for p in points], [p["fnr"] for p in points]
        axes.plot(x, y, "o", color=COLOURS["emp"], label=label, **size)


def name_rates(axes: Any, against: str, legend: str) -> None:
    """Say what the axes are: false positive rates, and the rate they are drawn against."""
    axes.set_xlabel("false positive rate")
    axes.set_ylabel(against)
    axes.legend(loc=legend, frameon=False, fontsize=10.5, labelcolor=COLOURS["ink"])


def unit_square(axes: Any) -> None:
    """Both rates from 0 to 1, with the names of a trade-off curve's axes."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    name_rates(axes, "false negative rate", "upper right")
