"""Row 5, first part: table to text, scored by BLEU and ROUGE-L.

Private against non-private, and against a non-private model that was never pretrained. Records come from the generator
of the benchmarks; validation and test are other draws of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from restaurant_tables import generated_tables
from text_metrics import corpus_bleu, corpus_rouge_l

from dpaudit.trainers import causal_lm_losses, pad_labelled
from dpaudit.trainers.tasks.text import complete, encode_table, linearise_table
from findings import language, pretrained, prompts
from findings.choices import remembered
from findings.jobs import FIRST_ORDER, Job, Options, named, seeded


@dataclasses.dataclass(frozen=True)
class Amounts:
    """Batches and steps of a private run, and of an ordinary one that reads as many records."""

    batch: int
    steps: int
    ordinary_batch: int
    ordinary_steps: int


RECORDS, LENGTH, TESTED = 4000, 80, 25
RATES = (6e-3, 2e-2)
AMOUNTS = Amounts(400, 16, 50, 128)
SETTINGS = (("pretrained", 8.0), ("pretrained", None), ("random", None), ("pretrained", 3.0), ("random", 8.0))


def start(kind: str, seed: int, options: Options) -> Any:
    """The model that is fine-tuned."""
    if options.backbone == "smollm2":
        return prompts.backbone("smollm2").to(options.device)
    size = "small" if options.backbone == "small" and options.steps is None else "trial"
    return pretrained.model("causal", size) if kind == "pretrained" else pretrained.causal(size, seed)


def encoded(records: list[Any], options: Options) -> list[dict[str, Any]]:
    """Tables with labels on their sentences alone."""
    known = prompts.words_of(options.backbone)
    return [encode_table(known, record.fields, record.text, length=LENGTH) for record in records]


def collator(options: Options) -> Any:
    """Right-padded batches of token ids and labels, on the device."""
    known = prompts.words_of(options.backbone)
    pad = known.pad_token_id if known.pad_token_id is not None else known.eos_token_id
    return lambda chunk: language.to(options.device, pad_labelled(chunk, pad=pad))


def tuned(model: Any, rows: list[dict[str, Any]], rate: float, epsilon: float | None, seed: int, options: Options,
          *, sigma_of: int | None = None, amounts: Amounts = AMOUNTS) -> dict[str, Any]:  # fmt: skip
    """Fine-tune in place on the targets' tokens alone."""
    common = {"collate": collator(options), "loss_fn": lambda m, batch: causal_lm_losses(m, **batch), "rate": rate}
    if epsilon is None:
        steps = options.at_most(amounts.ordinary_steps)
        return language.ordinary(model, rows, batch=amounts.ordinary_batch, steps=steps, seed=seed, **common)
    steps = options.at_most(amounts.steps)
    return language.private(
        model, rows, epsilon=epsilon, batch=amounts.batch, steps=steps, sigma_of=sigma_of, physical=64, **common
    )


def scored(model: Any, records: list[Any], options: Options) -> dict[str, Any]:
    """BLEU and ROUGE-L of greedy texts, and the first of them."""
    known = prompts.words_of(options.backbone)
    tables = [linearise_table(record.fields) for record in records]
    longest = 40 if options.steps is None else 4
    written = complete(model, known, tables, max_new_tokens=longest)
    references = [list(record.references) for record in records]
    return {
        "bleu": corpus_bleu(written, references),
        "rouge_l": corpus_rouge_l(written, references),
        "table": tables[0],
        "sample": written[0],
        "reference": references[0][0],
    }


@remembered
def rate_for(kind: str, private: bool, options: Options) -> float:
    """The rate with the better ROUGE-L on public tables, with the noise of ε = 8; a random start takes the same."""
    if options.backbone != "small" or options.steps is not None:
        return 2e-4 if options.backbone == "smollm2" else RATES[0]
    if kind == "random":
        return float(rate_for("pretrained", private, options))
    public = generated_tables(1000, seed=77)

    def bleu(rate: float) -> float:
        model = start(kind, 100, options)
        epsilon = FIRST_ORDER[1] if private else None
        tuned(model, encoded(public, options), rate, epsilon, 100, options, sigma_of=RECORDS if private else None)
        return float(scored(model, generated_tables(15, seed=78), options)["rouge_l"])

    return max(RATES, key=bleu)


def measured(kind: str, epsilon: float | None, seed: int, options: Options) -> dict[str, Any]:
    """One run."""
    torch.manual_seed(seed)
    count, tested = (RECORDS, TESTED) if options.steps is None else (200, 2)
    rate = rate_for(kind, epsilon is not None, options)
    model = start(kind, seed, options)
    found = tuned(model, encoded(generated_tables(count, seed=seed), options), rate, epsilon, seed, options)
    return {**found, **scored(model, generated_tables(tested, seed=10_000 + seed), options), "rate": rate}


def jobs(options: Options) -> Iterable[Job]:
    """Private before non-private; a random start is the non-private baseline without pretraining."""
    return seeded(
        lambda seed, k=kind, e=epsilon: Job(
            5, named(on=options.backbone, start=k, epsilon=e or "none"), seed, lambda: measured(k, e, seed, options)
        )
        for kind, epsilon in SETTINGS
        if options.backbone == "small" or kind == "pretrained"
    )
