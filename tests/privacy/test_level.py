"""Levels add up, a headline tells the reason, and no level stands against evidence against the claim."""

from __future__ import annotations

import itertools

import pytest

from dpaudit.privacy.level import Level, Line, LineName, Standing, headline, reached
from dpaudit.privacy.verdict import Verdict


def test_a_level_needs_every_level_below_it() -> None:
    for held in itertools.product([False, True], repeat=4):
        level = reached(accounted=held[0], examined=held[1], audited=held[2], countersigned=held[3])
        expected = next((n for n, condition in enumerate(held) if not condition), 4)
        assert level == expected and isinstance(level, Level)
    assert len({level.words for level in Level}) == 5 == max(Level) + 1


def test_a_line_is_shown_missing_or_against() -> None:
    for standing in Standing:
        line = Line(name=LineName.RELEASED_MODEL, standing=standing, text="attacked")
        assert (line.shown, line.contradicts) == (standing == "shown", standing == "against the claim")
    assert [name.title for name in LineName] == ["Accounting", "Implementation", "Released model", "Origin"]


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("level", range(4))
def test_a_headline_says_why(verdict: Verdict, level: int) -> None:
    text = headline(verdict, level, ("the noise test did not run.", "another reason"))
    assert text.lower().count("the noise test did not run") == 1 and ".." not in text
    # Where something speaks against the claim, no level is told that would soften it.
    assert (Level(level).words[1:] in text) == (verdict == "inconclusive")
    assert len(headline(verdict, level, ("x" * 5000,))) < 500
