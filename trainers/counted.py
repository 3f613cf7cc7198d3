"""Refuse to resume a run whose journal has counted fewer steps than were executed."""

from __future__ import annotations

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.protocols import Journal, LastingJournal


def refuse_uncounted(journal: Journal, known: int) -> None:
    """Refuse to go on after ``known`` steps with a journal that outlives processes and holds fewer.

    The steps that it lacks were released and would not be charged. A journal in memory is taken as it is: it counts
    one process, and who keeps the steps before answers for them.

    Raises
    ------
    InvalidEvidence
        With both numbers.
    """
    if isinstance(journal, LastingJournal) and journal.steps < known:
        raise InvalidEvidence(
            f"the journal counts {journal.steps} steps and this run goes on after {known}, so that released steps would"
            " not be charged; continue the ledger that counted them, or start a new run."
        )
