"""Row 7, second part: the search and the runs once more, on verses that no earlier search or test saw.

The first search of row 7 was replaced after its result had been seen on the test part. Here everything was written down
before the first run: the rule of the search (two runs a setting), wider grids, since two rates had been found at the
edge of theirs, and the methods. Nothing is chosen after a test accuracy of these verses was seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from findings.jobs import Job, Options, named
from findings.rows import zeroth_order as base

METHODS = (
    "dpzero", "dp-aggzo K=16", "dp-zoso", "dp-zopo", "dp-zoso K=16", "dp-zoso K=16, stages searched", "dp-adam",
)  # fmt: skip


def jobs(options: Options) -> Iterable[Job]:
    """ε = 4 first, three seeds."""
    if options.backbone != "small":
        return
    own = dataclasses.replace(options, backbone="afresh")
    for epsilon in (4.0, 2.0, 8.0):
        for name in METHODS:
            for seed in (0, 1, 2):
                yield Job(
                    7, named(on="afresh", method=f"'{name}'", epsilon=epsilon), seed,
                    lambda n=name, e=epsilon, k=seed: base.measured(n, e, k, own),
                )  # fmt: skip
