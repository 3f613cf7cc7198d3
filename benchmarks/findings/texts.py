"""Texts of the rows on a CPU: all bundled, all in the public domain; "private" is a role.

- Pretraining reads every second verse of the King James Bible and most of two novels by Jane Austen.
- The records of language modelling are paragraphs of two OTHER novels; rates are chosen on paragraphs that were kept
  out of pretraining and are declared public (``tuning``), never on the private records.
- The records of classification are the other verses: from the Old or the New Testament?
"""

from __future__ import annotations

import dataclasses
import functools
import lzma
import random
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
TUNING = 1200  # public paragraphs kept out of pretraining, to choose rates on
NEW_TESTAMENT = "The book of the generation of Jesus Christ, the son of David, the son of Abraham."


def lines(name: str) -> list[str]:
    """The records of one bundled file."""
    return lzma.decompress((DATA / name).read_bytes()).decode().splitlines()


@functools.cache
def pretraining() -> tuple[str, ...]:
    """Public text that models are pretrained on."""
    return (*lines("kjv.txt.xz")[::2], *lines("austen_public.txt.xz")[:-TUNING])


@dataclasses.dataclass(frozen=True)
class Paragraphs:
    """Records of language modelling: to train on, to test on; for tuning all of them are public."""

    training: tuple[str, ...]
    test: tuple[str, ...]


def paragraphs(size: int) -> Paragraphs:
    """``size`` private paragraphs, and the held-out ones of the same novels."""
    return Paragraphs(tuple(lines("austen_private.txt.xz")[:size]), tuple(lines("austen_heldout.txt.xz")))


def public_paragraphs() -> Paragraphs:
    """Stand-ins for the private ones, of a third novel: rates are chosen here."""
    found = lines("austen_public.txt.xz")[-TUNING:]
    random.Random(0).shuffle(found)
    return Paragraphs(tuple(found[:1000]), tuple(found[1000:]))


@dataclasses.dataclass(frozen=True)
class Verses:
    """Labelled verses that were not pretrained on; label 1 is the New Testament. Half of each part has each label."""

    private: tuple[tuple[str, int], ...]
    public: tuple[tuple[str, int], ...]
    """Declared public: rates, stage lengths and public gradients come from here."""
    validation: tuple[tuple[str, int], ...]
    """Declared public, too."""
    test: tuple[tuple[str, int], ...]


FIXED, AFRESH = 100, 200
"""Seeds of the parts that are declared public, one for all runs."""


def verses(seed: int, *, private: int = 5000, public: int = 1200, validation: int = 400, test: int = 1200) -> Verses:
    """Balanced parts: the public ones are the same for every seed, private and test ones are split by the seed.

    Were the public part drawn anew by each seed, what one run searches on would be private in the next.
    """
    fixed, rng = random.Random(FIXED), random.Random(seed)
    parts: list[list[tuple[str, int]]] = [[], [], [], []]
    labels = _by_label()
    for own in labels:
        fixed.shuffle(own)
    for own in labels:
        cuts = [private // 2, private // 2 + public // 2, private // 2 + public // 2 + validation // 2]
        rest = own[: cuts[0]] + own[cuts[2] :]
        rng.shuffle(rest)
        halves = (
            rest[: private // 2],
            own[cuts[0] : cuts[1]],
            own[cuts[1] : cuts[2]],
            rest[private // 2 :][: test // 2],
        )
        for part, half in zip(parts, halves, strict=True):
            part.extend(half)
    return _mixed(parts, rng)


def verses_afresh(seed: int, *, private: int = 5000, public: int = 1200, test: int = 1200) -> Verses:
    """Parts of the same sizes, for a search that nobody has corrected after seeing its results.

    No verse of the test part was in a test or public part of ``verses`` for the seeds 0, 1 and 2; the public parts are
    other verses, too, which were in one of those test parts, and again the same for every seed.
    """
    earlier = [verses(known) for known in (0, 1, 2)]
    tested = {verse for found in earlier for verse, _ in found.test}
    declared = {verse for verse, _ in (*earlier[0].public, *earlier[0].validation)}
    fixed, rng = random.Random(AFRESH), random.Random(1000 + seed)
    parts: list[list[tuple[str, int]]] = [[], [], [], []]
    for own in _by_label():
        old = [row for row in own if row[0] in tested]
        fixed.shuffle(old)
        chosen, held = old[: public // 2], old[public // 2 :][:200]
        unseen = [row for row in own if row[0] not in tested and row[0] not in declared]
        rng.shuffle(unseen)
        taken = {verse for verse, _ in (*chosen, *held, *unseen[: test // 2])}
        rest = [row for row in own if row[0] not in taken]
        rng.shuffle(rest)
        for part, half in zip(parts, (rest[: private // 2], chosen, held, unseen[: test // 2]), strict=True):
            part.extend(half)
    return _mixed(parts, rng)


def _by_label() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Every second verse, which no model was pretrained on, with its label."""
    bible = lines("kjv.txt.xz")
    turn = bible.index(NEW_TESTAMENT)
    return [(t, 0) for t in bible[1:turn:2]], [(t, 1) for i, t in enumerate(bible) if i % 2 and i >= turn]


def _mixed(parts: list[list[tuple[str, int]]], rng: random.Random) -> Verses:
    for part in parts:
        rng.shuffle(part)
    return Verses(*(tuple(part) for part in parts))
