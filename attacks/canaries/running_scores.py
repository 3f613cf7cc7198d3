"""The scores of in-run canaries, added up release by release, with the state that a resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue


class RunningScores:
    """Log-likelihood ratios of m canaries that each take part in a step with probability q.

    Each release adds log(1 − q + q exp((2x − 1) / (2 s²))), where x is what it shows of a canary in units of the
    canary's own contribution and s² the variance of what else is in x. Higher = member.

    Parameters
    ----------
    m : int
        Canaries.
    sampling_probability : float
        q.
    """

    def __init__(self, m: int, sampling_probability: float) -> None:
        validate.probability(sampling_probability=sampling_probability)
        self.sampling_probability = float(sampling_probability)
        self.steps = 0
        """Releases so far."""
        self._scores = np.zeros(m)

    def add(self, seen: NDArray[np.float64], variance: NDArray[np.float64] | float) -> None:
        """Add one release: x (m,) and s², one for each canary or for all."""
        q = self.sampling_probability
        with np.errstate(divide="ignore"):
            self._scores += np.logaddexp(np.log1p(-q), np.log(q) + (2 * seen - 1) / (2 * variance))
        self.steps += 1

    def values(self) -> NDArray[np.float64]:
        """Scores (m,) so far, in nats."""
        return self._scores.copy()

    def state(self) -> dict[str, Any]:
        """Scores and number of releases, for a resume."""
        return {"scores": self._scores.copy(), "steps": self.steps}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; scores of another number of canaries are refused."""
        scores = np.asarray(state["scores"], dtype=np.float64)
        if scores.shape != self._scores.shape:
            raise InvalidValue(
                f"the state holds {scores.shape} scores and the run has {len(self._scores)} canaries; resume the run"
                " that the state came of."
            )
        self._scores, self.steps = scores.copy(), int(state["steps"])
