"""Are the losses and references of an exposure report what they should be?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.auditing.exposure import rank_sum_test
from dpaudit.auditing.liveness import REVERSED_P_VALUE
from dpaudit.privacy.errors import InvalidEvidence

LEVEL = 0.05
"""Level at which a group of canaries is said to stand out, after Bonferroni's correction for the number of groups."""
FEW = 3
"""Fewer equal losses than this may be chance."""


def refuse_own_references(losses: NDArray[np.float64], references: NDArray[np.float64]) -> None:
    """Refuse references that hold the canaries: every loss found again, among references that are nearly all distinct.

    Real losses do not repeat by chance; rounded ones do, and then the references themselves repeat.
    """
    found = np.isin(losses, references)
    distinct = np.unique(references).size
    if np.unique(losses).size >= FEW and found.all() and distinct > 0.9 * references.size:
        raise InvalidEvidence(
            f"all {losses.size} canary losses stand among the references too: these are the canaries themselves; give"
            " losses of secrets from the same generator that were never trained on."
        )


def look_reversed(losses: NDArray[np.float64], references: NDArray[np.float64]) -> bool:
    """Whether the canaries lie so far above the references that scores were probably given for losses."""
    return rank_sum_test(-losses, -references)[0] <= REVERSED_P_VALUE


REVERSED_WORDS = (
    "The losses look reversed: the canaries lie far above the references, while a lower loss means memorised. Scores"
    " (higher = member) need a minus sign, and canaries and references need one generator."
)
