"""Real dialogue: exchanges of the Chit-Chat Challenge, from a package that is not bundled.

    pip install --no-deps chitchat-dataset==0.9.0      # MIT; 7,168 conversations of 1,315 people

An exchange is a turn and its reply. Each turn is in one exchange, so that a record is all that holds these two turns;
the ε of a run is for an exchange, not for a person, who may have written hundreds. Conversations are split, not
exchanges: none has exchanges in two parts. A trial takes neighbouring paragraphs of a bundled novel: no package needed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

from findings import prompts, texts
from findings.jobs import Options

SHA256 = "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"
WORDS = range(2, 21)
"""Words of a turn and of a reply; longer and shorter ones are left out."""
PUBLIC, VALIDATION, TEST = 600, 150, 250
"""Conversations of each part, of 3,440 with an exchange in range."""

Exchange = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Exchanges:
    """Parts by conversation: ``public`` and ``validation`` are declared public and the same for every seed."""

    private: tuple[Exchange, ...]
    public: tuple[Exchange, ...]
    validation: tuple[Exchange, ...]
    test: tuple[Exchange, ...]


def of_conversation(turns: list[str]) -> list[Exchange]:
    """Turn and reply, the next turn and its reply, and so on; no turn is in two exchanges.

    >>> of_conversation(["a b", "c d", "e f", "g h", "i j"])
    [('a b', 'c d'), ('e f', 'g h')]
    """
    pairs = zip(turns[::2], turns[1::2], strict=False)
    return [
        (turn, reply)
        for turn, reply in pairs
        if len(turn.split()) in WORDS and len(reply.split()) in WORDS and (turn + reply).isascii()
    ]


@functools.cache
def _conversations() -> tuple[tuple[Exchange, ...], ...]:
    told = (prompts.package("chitchat_dataset") / "dataset.json").read_bytes()
    if hashlib.sha256(told).hexdigest() != SHA256:
        raise SystemExit("dataset.json of chitchat_dataset is not the file this benchmark was written for.")
    found: dict[str, Any] = json.loads(told)
    said = (
        [" ".join(message["text"].strip() for message in turn) for turn in conversation["messages"]]
        for conversation in found.values()
    )
    return tuple(tuple(own) for own in map(of_conversation, said) if own)


def parts(seed: int, size: int, options: Options) -> Exchanges:
    """``size`` private exchanges and a test part, both split by the seed; public parts that are always the same."""
    if options.steps is not None:
        pairs = tuple(_paragraphs())
        return Exchanges(pairs[:60], pairs[60:100], pairs[100:110], pairs[110:114])
    conversations = list(_conversations())
    random.Random(texts.FIXED).shuffle(conversations)
    rest = conversations[PUBLIC + VALIDATION :]
    random.Random(seed).shuffle(rest)
    cut = (conversations[:PUBLIC], conversations[PUBLIC:][:VALIDATION], rest[:TEST], rest[TEST:])
    public, validation, test, private = (tuple(pair for own in part for pair in own) for part in cut)
    if len(private) < size:
        raise SystemExit(f"chitchat_dataset holds {len(private)} private exchanges and {size} are needed.")
    return Exchanges(private[:size], public, validation, test)


def _paragraphs() -> Iterator[Exchange]:
    lines = [" ".join(line.split()[:12]) for line in texts.lines("austen_public.txt.xz")[:240]]
    yield from zip(lines[::2], lines[1::2], strict=True)
