"""Row 8, second part: the same ingredients on the causal model of row 7, at ε = 4.

Rates and norms are those that row 7's search on public records found for one stage; a schedule whose rate falls starts
at the multiple that keeps the sum of its rates, a mask scales by the square root of its share.
"""

from __future__ import annotations

from collections.abc import Iterable

from findings.jobs import Job, Options, named
from findings.rows import zeroth_order as base

EPSILON = 4.0
EVEN = base.evened(2.0, 0.5)
LINES: dict[str, base.Recipe] = {
    "three stages": base.Recipe(16, stages=3, rate=EVEN),
    "three stages, proximal term": base.Recipe(16, stages=3, rate=EVEN, proximal=0.1),
    "static mask": base.Recipe(16, mask="static", keep=0.1, rate=3.0),
    "three stages, dynamic mask": base.Recipe(16, stages=3, mask="dynamic", keep=0.1, rate=3.0 * EVEN),
    "three stages, incremental mask": base.Recipe(16, stages=3, mask="incremental", keep=0.05, rate=3.0 * EVEN),
    "P=4": base.Recipe(4, rate=0.5),
    "P=64": base.Recipe(64, rate=2.0),
}


def jobs(options: Options) -> Iterable[Job]:
    """Every line, three seeds."""
    for name, recipe in LINES.items():
        base.METHODS.setdefault(f"ablation: {name}", recipe)
        for seed in (0, 1, 2):
            yield Job(
                8, named(on=options.backbone, line=f"'{name}'"), seed,
                lambda n=f"ablation: {name}", k=seed: base.measured(n, EPSILON, k, options),
            )  # fmt: skip
