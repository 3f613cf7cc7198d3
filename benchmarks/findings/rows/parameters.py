"""Row 4: full fine-tuning against LoRA, prefix, BitFit and the head alone; does dimension hurt?

On a CPU: the causal model on private paragraphs (perplexity; it has no head of its own, so four choices) and the
encoder with a fresh head on verses (accuracy; all five). With ``smollm2``: the prompted task, four choices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dpaudit.trainers import trained_parameters
from findings import language, pretrained, texts
from findings.choices import remembered
from findings.jobs import FIRST_ORDER, Job, Options, named, seeded
from findings.rows import alignment, pretraining

CAUSAL = ("all", "lora", "prefix", "bias")
ENCODER = ("all", "lora", "prefix", "bias", "head")


def chosen(choice: str, size: str) -> Any:
    """The pretrained causal model with one choice of parameters."""
    model = pretrained.model("causal", size)
    options = {"rank": 4, "alpha": 8} if choice == "lora" else {"length": 5} if choice == "prefix" else {}
    return model if choice == "all" else trained_parameters(model, choice, **options)


@remembered
def rate_for(choice: str, private: bool, options: Options) -> float:
    """The best rate on public paragraphs; few parameters bear larger ones."""
    rates = alignment.rates_for(choice)
    if options.steps is not None:
        return rates[0]
    public = texts.public_paragraphs()

    def loss(rate: float) -> float:
        model, epsilon = chosen(choice, "medium"), FIRST_ORDER[0] if private else None
        sigma_of = pretraining.RECORDS if private else None
        return float(pretraining.tuned(model, public, rate, epsilon, options, 100, sigma_of)["perplexity"])

    return min(rates, key=loss)


def measured(choice: str, epsilon: float | None, seed: int, options: Options) -> dict[str, Any]:
    """One run of the causal model."""
    torch.manual_seed(seed)
    rate = rate_for(choice, epsilon is not None, options)
    parts, model = texts.paragraphs(pretraining.RECORDS), chosen(choice, "medium" if options.steps is None else "trial")
    pad = pretrained.tokenizer().pad_token_id
    test = pretrained.encoded(parts.test, pretraining.LENGTH)
    before = language.perplexity(model, test, pad=pad)
    found = pretraining.tuned(model, parts, rate, epsilon, options, seed)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**found, "perplexity_before": before, "rate": rate, "trained": trained}


def jobs(options: Options) -> Iterable[Job]:
    """ε = 3 on both models first."""
    if options.backbone != "small":
        return seeded(
            lambda seed, c=choice, e=epsilon: Job(
                4,
                named(on=options.backbone, choice=c, epsilon=e or "none"),
                seed,
                lambda: alignment.measured_real("prompt", e, seed, options, choice=c),
            )
            for epsilon in (8.0, 3.0)
            for choice in CAUSAL
        )
    found = []
    for epsilon in (*FIRST_ORDER, None):
        for choice in CAUSAL:
            found.append(
                lambda seed, c=choice, e=epsilon: Job(
                    4, named(on="causal", choice=c, epsilon=e or "none"), seed, lambda: measured(c, e, seed, options)
                )
            )
        for choice in ENCODER:
            found.append(
                lambda seed, c=choice, e=epsilon: Job(
                    4,
                    named(on="encoder", choice=c, epsilon=e or "none"),
                    seed,
                    lambda: alignment.measured("head", e, seed, options, choice=c),
                )
            )
    return seeded(found)
