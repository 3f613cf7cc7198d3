"""Progress of a training run in Python's ``logging``: when it begins, once a minute, and when it ends.

Only what is public by the ledger and the clock is said: the plan, the steps counted, and their ε.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import exact_text, upper_text
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.target import spent

LOGGER = logging.getLogger("dpaudit.trainers")
SECONDS = 60.0
"""Between two lines."""


class Heartbeat:
    """Logs steps and ε once a minute on the logger ``dpaudit.trainers`` (level INFO); costs nothing where it is off.

    Parameters
    ----------
    plan : PrivacyPlan
    ledger : callable
        The ledger so far.
    clock : callable
        Seconds; injected by tests.
    """

    def __init__(
        self, plan: PrivacyPlan, ledger: Callable[[], Ledger], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._ledger, self._clock = plan, ledger, clock
        self._last = clock()
        LOGGER.info(
            "private training: %d steps of about %s records out of %d (q=%s), C=%s, sigma=%s, %s, unit %s",
            plan.steps,
            exact_text(plan.expected_batch_size),
            plan.public_size,
            exact_text(plan.sampling_probability),
            exact_text(plan.clipping_norm),
            exact_text(plan.noise_multiplier),
            plan.relation,
            plan.unit,
        )

    def step(self, step: int) -> None:
        """Log a step, if the last line is a minute old."""
        if self._clock() - self._last >= SECONDS:
            self._last = self._clock()
            LOGGER.info("step %d of %d%s", step, self._plan.steps, self._spent())

    def end(self, step: int) -> None:
        """Log the end."""
        LOGGER.info("ended after step %d of %d%s", step, self._plan.steps, self._spent())

    def _spent(self) -> str:
        if not LOGGER.isEnabledFor(logging.INFO):
            return ""
        upper = spent(self._ledger(), self._plan.delta)
        return "" if upper is None else f", epsilon <= {upper_text(upper)} at delta={exact_text(self._plan.delta)}"
