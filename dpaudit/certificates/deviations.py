"""Departures that a ledger itself records: a certificate must state them, and whoever verifies looks for them."""

from __future__ import annotations

from collections.abc import Sequence

from dpaudit.privacy.protocols import TEST_REASON

IMPORTED = "The ledger was imported from "
"""Beginning of the deviation of a ledger that somebody else counted."""
_IMPORTED = IMPORTED + "{source} after the run: dpaudit did not count the steps itself and relies on that history."
_INJECTED = (
    "{count} segments of the ledger ran with injected randomness: their steps can be repeated and are not private."
)
_RECOVERED = "The run stopped uncleanly {count} times; each stop is charged at its reserved steps."
IMPORT_REASON = "imported from "
"""Beginning of the reason with which a segment of somebody else's history is sealed."""


def ledger_deviations(reasons: Sequence[str]) -> list[str]:
    """Sentences on what a ledger's segments say of their own end.

    Parameters
    ----------
    reasons : sequence of str
        Why each segment was sealed, from :class:`~dpaudit.storage.journal.JournalRecord`.

    >>> ledger_deviations(["completed", "recovered after an unclean stop"])
    ['The run stopped uncleanly 1 times; each stop is charged at its reserved steps.']
    """
    recovered = sum(reason.startswith("recovered") for reason in reasons)
    found = [_RECOVERED.format(count=recovered)] if recovered else []
    if injected := sum(reason.startswith(TEST_REASON) for reason in reasons):
        found.append(_INJECTED.format(count=injected))
    sources = dict.fromkeys(r.removeprefix(IMPORT_REASON) for r in reasons if r.startswith(IMPORT_REASON))
    return [*found, *(_IMPORTED.format(source=source) for source in sources)]
