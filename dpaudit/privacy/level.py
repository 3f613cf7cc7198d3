"""How far evidence reaches: four lines, each with its own words and reasons, and the level that follows from them.

A level says how much was shown; a :class:`~dpaudit.privacy.verdict.Verdict` says whether anything speaks against the
claim, and wins over every level. Levels add up: each needs the one before it. In-run canaries, which reach level 3,
enter a step after clipping, so that they cannot show a record whose clipped contribution is too large. Only the
examination of level 2 can, and therefore no audit stands in for it.
"""

from __future__ import annotations

import dataclasses
from enum import IntEnum, StrEnum

from dpaudit.privacy.verdict import Verdict


class Level(IntEnum):
    """How far the evidence for a claim reaches, from 0 to 4.

    >>> Level.AUDITED.words
    'audited with measured power'
    """

    CLAIMED = 0
    ACCOUNTED = 1
    EXAMINED = 2
    AUDITED = 3
    COUNTERSIGNED = 4

    @property
    def words(self) -> str:
        """What was reached, in a few words."""
        return _WORDS[self]


_WORDS = {
    Level.CLAIMED: "claimed only",
    Level.ACCOUNTED: "accounted from a chained ledger",
    Level.EXAMINED: "implementation examined in full",
    Level.AUDITED: "audited with measured power",
    Level.COUNTERSIGNED: "dated, and countersigned by somebody other than the trainer",
}


class Standing(StrEnum):
    """What one line of evidence comes to."""

    SHOWN = "shown"
    MISSING = "not shown"
    AGAINST = "against the claim"


class LineName(StrEnum):
    """The four lines, in the order in which they are read."""

    ACCOUNTING = "accounting"
    IMPLEMENTATION = "implementation"
    RELEASED_MODEL = "released_model"
    ORIGIN = "origin"

    @property
    def title(self) -> str:  # type: ignore[override]  # a word for people in place of str.title
        """Name for people."""
        return self.value.replace("_", " ").capitalize()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of evidence.

    Attributes
    ----------
    name : LineName
    standing : Standing
    text : str
        What was found, in words that hold whatever the standing is.
    reasons : tuple of str
        Why the line is not shown, or what it has against the claim; empty for a line that is shown.
    """

    name: LineName
    standing: Standing
    text: str
    reasons: tuple[str, ...] = ()

    @property
    def shown(self) -> bool:
        """Whether the line supports the claim."""
        return self.standing is Standing.SHOWN

    @property
    def contradicts(self) -> bool:
        """Whether the line speaks against the claim."""
        return self.standing is Standing.AGAINST


def reached(*, accounted: bool, examined: bool, audited: bool, countersigned: bool = False) -> Level:
    """The level that evidence reaches: the number of conditions that hold from the first on.

    Parameters
    ----------
    accounted : bool
        A certified ε of a chained ledger meets the claim, and nothing needed to compute it is missing.
    examined : bool
        Every required white-box test ran and found nothing, and says which fault sizes it excludes.
    audited : bool
        An audit that was alive on this run would have convicted a named fault with a probability of at least 0.8 at the
        lower limit, and did not.
    countersigned : bool
        Signed and dated, and signed by somebody other than the trainer.

    Examples
    --------
    >>> reached(accounted=True, examined=False, audited=True)
    <Level.ACCOUNTED: 1>
    """
    held = 0
    for condition in (accounted, examined, audited, countersigned):
        if not condition:
            break
        held += 1
    return Level(held)


def headline(verdict: str, level: int, reasons: tuple[str, ...]) -> str:
    """What a page says beside the verdict and the level: why, or what keeps the evidence from the next level.

    Parameters
    ----------
    verdict : str
    level : int
    reasons : tuple of str
        Of the verdict, the gravest first.

    Examples
    --------
    >>> headline("inconclusive", 1, ("the implementation was not examined",))
    'Accounted from a chained ledger. Missing for more: the implementation was not examined.'
    """
    word, first = Verdict(verdict), _clause(reasons)
    if word not in (Verdict.CONSISTENT, Verdict.INCONCLUSIVE):
        return f"{_AGAINST[word]}: {first}."
    if word == Verdict.CONSISTENT:
        return f"{first[:1].upper()}{first[1:]}."
    words = Level(level).words
    return f"{words[:1].upper()}{words[1:]}. Missing for more: {first}."


_AGAINST = {
    Verdict.VIOLATED: "There is evidence against the claim",
    Verdict.ACCOUNTING_MISMATCH: "What was recorded does not support the claim",
    Verdict.INVALID_AUDIT: "Leakage was not validly tested",
}
_LONGEST = 300


def _clause(reasons: tuple[str, ...]) -> str:
    """The first reason as the end of a sentence."""
    text = (reasons[0] if reasons else "no reason is stated").strip()
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"
    return text.rstrip(".")
