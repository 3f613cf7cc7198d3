"""Hyper-parameter tuning that reports only the best of a random number of runs (2110.03620)."""

from __future__ import annotations

import dataclasses
import math

from dpaudit.privacy.errors import InvalidValue

SHAPES = {"poisson": math.inf, "geometric": 1.0, "log": 0.0}


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """Law of the number of runs: ``shape`` η of the truncated negative binomial (∞ is Poisson) and its mean."""

    name: str
    shape: float
    mean: float

    @classmethod
    def parse(cls, text: str) -> Tuning:
        """Read ``"geometric:10"``, ``"poisson:10"`` or ``"log:10"`` (law and mean number of runs).

        >>> Tuning.parse("geometric:10").mean
        10.0
        """
        name, _, number = text.partition(":")
        try:
            mean = float(number)
        except ValueError:
            mean = math.nan
        if name not in SHAPES or not math.isfinite(mean) or not (mean > 0 if name == "poisson" else mean > 1):
            raise InvalidValue(
                f"tuning={text!r} must be geometric:MEAN, log:MEAN (mean above 1) or poisson:MEAN (mean above 0);"
                " a fixed number of runs is charged by composing them."
            )
        return cls(name, SHAPES[name], mean)
