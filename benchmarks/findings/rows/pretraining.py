"""Row 1: does pretraining make private fine-tuning work, and do larger models gain more?

Three GPT-2 in small, pretrained here on public text or not at all, are fine-tuned on private paragraphs at the same ε.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from findings import language, pretrained, texts
from findings.choices import remembered
from findings.jobs import FIRST_ORDER, Job, Options, named, seeded

RECORDS, LENGTH, BATCH, STEPS = 3000, 24, 400, 12
RATES = {"pretrained": (2e-3, 6e-3, 2e-2), "random": (2e-3, 6e-3, 2e-2)}
ORDINARY = {"batch": 50, "steps": 96}
"""As many records as the private run reads; rates from the same grid."""
SIZES = ("tiny", "small", "medium")


def start(kind: str, size: str, seed: int) -> Any:
    """The model that is fine-tuned."""
    return pretrained.model("causal", size) if kind == "pretrained" else pretrained.causal(size, seed)


def tuned(model: Any, parts: texts.Paragraphs, rate: float, epsilon: float | None, options: Options, seed: int,
          sigma_of: int | None = None) -> dict[str, Any]:  # fmt: skip
    """Fine-tune in place; perplexity on the test part, and what was spent."""
    pad = pretrained.tokenizer().pad_token_id
    rows = pretrained.encoded(parts.training, LENGTH)
    common = {"collate": language.collator(pad), "loss_fn": language.lm_losses, "rate": rate}
    if epsilon is None:
        steps = options.at_most(ORDINARY["steps"])
        found = language.ordinary(model, rows, batch=ORDINARY["batch"], steps=steps, seed=seed, **common)
    else:
        steps = options.at_most(STEPS)
        found = language.private(model, rows, epsilon=epsilon, batch=BATCH, steps=steps, sigma_of=sigma_of, **common)
    return {**found, "perplexity": language.perplexity(model, pretrained.encoded(parts.test, LENGTH), pad=pad)}


@remembered
def rate_for(kind: str, private: bool, options: Options) -> float:
    """The rate with the least perplexity on public paragraphs, of the medium size, at ε = 3 (or without noise)."""
    if options.steps is not None:
        return RATES[kind][0]
    public = texts.public_paragraphs()

    def loss(rate: float) -> float:
        model = start(kind, "medium", 100)
        epsilon = FIRST_ORDER[0] if private else None
        return float(tuned(model, public, rate, epsilon, options, 100, RECORDS if private else None)["perplexity"])

    return min(RATES[kind], key=loss)


def measured(kind: str, size: str, epsilon: float | None, seed: int, options: Options) -> dict[str, Any]:
    """One run."""
    torch.manual_seed(seed)
    rate = rate_for(kind, epsilon is not None, options)
    model, parts = start(kind, size, seed), texts.paragraphs(RECORDS)
    pad = pretrained.tokenizer().pad_token_id
    before = language.perplexity(model, pretrained.encoded(parts.test, LENGTH), pad=pad)
    found = tuned(model, parts, rate, epsilon, options, seed)
    return {**found, "perplexity_before": before, "rate": rate, "parameters": model.num_parameters()}


def jobs(options: Options) -> Iterable[Job]:
    """ε = 3 of all sizes first, then ε = 8, then without privacy."""
    sizes = SIZES if options.steps is None else ("trial",)
    return seeded(
        lambda seed, e=epsilon, s=size, k=kind: Job(
            1, named(start=k, size=s, epsilon=e or "none"), seed, lambda: measured(k, s, e, seed, options)
        )
        for epsilon in (*FIRST_ORDER, None)
        for size in sizes
        for kind in ("pretrained", "random")
    )
