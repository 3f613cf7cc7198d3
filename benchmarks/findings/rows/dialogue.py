"""Row 5, second part: dialogue, scored by the F1 of the words of a greedy reply and by the perplexity of replies.

The private and the non-private model, and three non-private baselines: the model that was never pretrained, the reply
of the nearest private turn (retrieval), and one fixed reply, which says what F1 is worth that knows no turn at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from text_metrics import corpus_word_f1, word_f1

from dpaudit.trainers import causal_lm_losses
from dpaudit.trainers.tasks.losses import IGNORED
from dpaudit.trainers.tasks.text import complete, encode_pair
from findings import dialogues, prompts
from findings.choices import remembered
from findings.jobs import FIRST_ORDER, Job, Options, named, seeded
from findings.rows.generation import Amounts, collator, start, tuned

RECORDS, LENGTH, SPOKEN, SCORED = 12_000, 64, 100, 600
"""Private exchanges, tokens of one, greedy replies that are scored by F1, and exchanges that perplexity is taken on."""
AMOUNTS = Amounts(400, 12, 50, 96)
RATES = (6e-3, 2e-2, 5e-2)
MODELS = (("pretrained", 8.0), ("pretrained", None), ("random", None), ("pretrained", 3.0), ("random", 8.0))
SHOWN = 3


def source(turn: str) -> str:
    """What the model continues with its reply."""
    return f"Other: {turn}\nYou:"


def encoded(pairs: Sequence[dialogues.Exchange], options: Options) -> list[dict[str, Any]]:
    """Exchanges with labels on the replies alone."""
    known = prompts.words_of(options.backbone)
    return [encode_pair(known, source(turn), reply, length=LENGTH) for turn, reply in pairs]


@torch.no_grad()
def perplexity(model: Any, rows: list[dict[str, Any]], options: Options) -> float:
    """exp of the mean loss of a token of a reply, end tokens included."""
    collate, total, tokens = collator(options), 0.0, 0.0
    for at in range(0, len(rows), 64):
        chunk = rows[at : at + 64]
        counts = torch.tensor([float(sum(label != IGNORED for label in row["labels"])) for row in chunk])
        total += float((causal_lm_losses(model, **collate(chunk)).cpu() * counts).sum())
        tokens += float(counts.sum())
    return math.exp(total / tokens)


def shown(pairs: Sequence[dialogues.Exchange], written: Sequence[str]) -> list[list[str]]:
    """The first exchanges with what was written: turn, reply of the person, reply of the method."""
    return [[turn, reply, own] for (turn, reply), own in list(zip(pairs, written, strict=False))[:SHOWN]]


@remembered
def rate_for(private: bool, options: Options) -> float:
    """The rate with the least perplexity of public replies, with the noise of ε = 8; a random start takes the same."""
    if options.backbone != "small" or options.steps is not None:
        return 2e-4 if options.backbone == "smollm2" else RATES[0]
    found = dialogues.parts(100, RECORDS, options)
    rows, held = encoded(found.public, options), encoded(found.validation, options)

    def loss(rate: float) -> float:
        model, epsilon = start("pretrained", 100, options), FIRST_ORDER[1] if private else None
        tuned(model, rows, rate, epsilon, 100, options, sigma_of=RECORDS if private else None, amounts=AMOUNTS)
        return perplexity(model, held, options)

    return min(RATES, key=loss)


def measured(kind: str, epsilon: float | None, seed: int, options: Options) -> dict[str, Any]:
    """One run of a model."""
    torch.manual_seed(seed)
    parts, rate = dialogues.parts(seed, RECORDS, options), rate_for(epsilon is not None, options)
    model, held = start(kind, seed, options), encoded(parts.test[:SCORED], options)
    before = perplexity(model, held, options)
    found = tuned(model, encoded(parts.private, options), rate, epsilon, seed, options, amounts=AMOUNTS)
    asked = parts.test[:SPOKEN]
    longest = 24 if options.steps is None else 4
    written = complete(
        model, prompts.words_of(options.backbone), [source(turn) for turn, _ in asked], max_new_tokens=longest
    )
    return {
        **found,
        "perplexity_before": before,
        "perplexity": perplexity(model, held, options),
        "f1": corpus_word_f1(written, [reply for _, reply in asked]),
        "different": len(set(written)),
        "samples": shown(asked, written),
        "rate": rate,
    }


def without_model(answer: Callable[[dialogues.Exchanges], list[str]], seed: int, options: Options) -> dict[str, Any]:
    """One run of a baseline that writes what someone wrote."""
    parts = dialogues.parts(seed, RECORDS, options)
    asked, written = parts.test[:SPOKEN], answer(parts)
    f1 = corpus_word_f1(written, [reply for _, reply in asked])
    return {"epsilon_upper": None, "f1": f1, "different": len(set(written)), "samples": shown(asked, written)}


def nearest(parts: dialogues.Exchanges) -> list[str]:
    """The reply to the private turn whose weighted words are nearest; not private in any sense."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
    turns = known.fit_transform([turn for turn, _ in parts.private])
    asked = known.transform([turn for turn, _ in parts.test[:SPOKEN]])
    return [parts.private[at][1] for at in (asked @ turns.T).toarray().argmax(axis=1).tolist()]


def fixed(parts: dialogues.Exchanges) -> list[str]:
    """The one public reply that has the best F1 against other public replies; it is known without private records."""
    others = [reply for _, reply in parts.validation[:300]]
    candidates = dict.fromkeys(reply for _, reply in parts.public[:400])
    best = max(candidates, key=lambda own: sum(word_f1(own, o) for o in others))
    return [best] * len(parts.test[:SPOKEN])


BASELINES = {"retrieval": nearest, "one fixed reply": fixed}


def jobs(options: Options) -> Iterable[Job]:
    """Private before non-private, then what has no model."""

    def named_as(line: str, epsilon: float | None) -> str:
        return named(task="dialogue", on=options.backbone, line=f"'{line}'", epsilon=epsilon or "none")

    yield from seeded(
        lambda seed, k=kind, e=epsilon: Job(5, named_as(f"{k} start", e), seed, lambda: measured(k, e, seed, options))
        for kind, epsilon in MODELS
        if options.backbone == "small" or kind == "pretrained"
    )
    if options.backbone == "small":
        yield from seeded(
            lambda seed, n=name, a=answer: Job(
                5, named_as(n, None), seed, functools.partial(without_model, a, seed, options)
            )
            for name, answer in BASELINES.items()
        )
