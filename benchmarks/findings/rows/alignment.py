"""Row 3: text infilling (a mask and words for the classes) against a fresh head, on real sentences.

On a CPU: verses of the Bible and the masked model pretrained here; every parameter moves in both. With ``smollm2`` the
prompt's next word stands against a fresh linear head on the last hidden state.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dpaudit.trainers import Infilling, pad_labelled, sequence_classification_losses
from findings import language, pretrained, prompts, texts
from findings.choices import remembered
from findings.jobs import FIRST_ORDER, Job, Options, named, seeded

BATCH, STEPS, LENGTH = 400, 8, 24
RATES = (2e-3, 6e-3, 2e-2)
ORDINARY = {"batch": 50, "steps": 64}
TEMPLATE, WORDS = "{0} This is a word of <mask>.", ("Israel", "Christ")
OBJECTIVES = ("infilling", "head")


class Encoder:
    """The masked model with one of the two objectives."""

    def __init__(self, objective: str, seed: int, options: Options, *, choice: str = "all") -> None:
        from dpaudit.trainers import trained_parameters

        size = "medium" if options.steps is None else "trial"
        self.model: Any = pretrained.model("masked", size)
        self.infilling = Infilling(pretrained.tokenizer(), TEMPLATE, WORDS) if objective == "infilling" else None
        if self.infilling is None:
            self.model = with_head(self.model, seed)
        if choice != "all":
            options_of = {"rank": 4, "alpha": 8} if choice == "lora" else {}
            self.model = trained_parameters(self.model, choice, **options_of)

    def records(self, rows: Any) -> list[dict[str, Any]]:
        """Token ids with labels."""
        if self.infilling is not None:
            return [self.infilling.encode([text], y, length=LENGTH + 8) for text, y in rows]
        ids = pretrained.encoded([text for text, _ in rows], LENGTH)
        return [{"input_ids": own, "labels": y} for own, (_, y) in zip(ids, rows, strict=True)]

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """Right-padded batches."""
        if self.infilling is not None:
            return self.infilling.collate(rows)
        batch = pad_labelled([{"input_ids": r["input_ids"]} for r in rows], pad=pretrained.tokenizer().pad_token_id)
        return {**batch, "labels": torch.tensor([r["labels"] for r in rows])}

    def losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """(B,) losses."""
        if self.infilling is not None:
            return self.infilling.losses(model, batch)
        return sequence_classification_losses(model, batch)

    @torch.no_grad()
    def accuracy(self, rows: list[dict[str, Any]]) -> float:
        """Share of the records whose own class has less loss than the other."""
        right = 0
        for at in range(0, len(rows), 200):
            chunk = rows[at : at + 200]
            other = [{**r, "labels": 1 - r["labels"]} for r in chunk]
            own, against = (self.losses(self.model, self.collate(part)) for part in (chunk, other))
            right += int((own < against).sum())
        return right / len(rows)


def with_head(masked: Any, seed: int) -> Any:
    """The same encoder with a fresh pooler and a fresh linear layer instead of the output layer for words."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    masked.config.num_labels = 2
    model = BertForSequenceClassification(masked.config).eval()
    model.bert.load_state_dict(masked.bert.state_dict(), strict=False)
    return model


def run(made: Any, rows: Any, test: Any, *, epsilon: float | None, rate: float, seed: int, options: Options,
        sigma_of: int | None = None) -> dict[str, Any]:  # fmt: skip
    """Train in place and test."""
    records = made.records(rows)
    common = {"collate": made.collate, "loss_fn": made.losses, "rate": rate}
    if epsilon is None:
        found = language.ordinary(
            made.model, records, batch=ORDINARY["batch"], steps=options.at_most(ORDINARY["steps"]), seed=seed, **common
        )
    else:
        found = language.private(
            made.model, records, epsilon=epsilon, batch=BATCH, steps=options.at_most(STEPS), sigma_of=sigma_of, **common
        )
    trained = sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    return {**found, "accuracy": made.accuracy(made.records(test)), "rate": rate, "trained": trained}


@remembered
def rate_for(objective: str, choice: str, private: bool, options: Options) -> float:
    """The best of ``RATES`` on public verses, with the noise of ε = 3 (or without)."""
    if options.steps is not None:
        return RATES[0]
    parts = texts.verses(100)

    def accuracy(rate: float) -> float:
        made, epsilon = Encoder(objective, 100, options, choice=choice), FIRST_ORDER[0] if private else None
        sigma_of = len(parts.private) if private else None
        found = run(made, parts.public, parts.validation, epsilon=epsilon, rate=rate, seed=100, options=options,
                    sigma_of=sigma_of)  # fmt: skip
        return float(found["accuracy"])

    return max(rates_for(choice), key=accuracy)


def rates_for(choice: str) -> tuple[float, ...]:
    """Few parameters bear larger rates."""
    return RATES if choice == "all" else tuple(5 * rate for rate in RATES)


def measured(
    objective: str, epsilon: float | None, seed: int, options: Options, *, choice: str = "all"
) -> dict[str, Any]:
    """One run on the encoder."""
    torch.manual_seed(seed)
    parts = texts.verses(seed)
    made = Encoder(objective, seed, options, choice=choice)
    before = made.accuracy(made.records(parts.test))
    rate = rate_for(objective, choice, epsilon is not None, options)
    return {**run(made, parts.private, parts.test, epsilon=epsilon, rate=rate, seed=seed, options=options),
            "before": before}  # fmt: skip


class LastHidden(nn.Module):
    """A causal model's last hidden state at the last real token, under a fresh linear layer."""

    def __init__(self, model: Any, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = model.base_model
        self.classifier = nn.Linear(model.config.hidden_size, 2).to(next(model.parameters()).device)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = attention_mask.sum(1) - 1
        out: torch.Tensor = self.classifier(hidden[torch.arange(len(last), device=hidden.device), last])
        return out


class Prompted:
    """The causal model of a real backbone with one of the two objectives; the interface of :class:`Encoder`."""

    def __init__(self, objective: str, seed: int, options: Options, *, choice: str = "all") -> None:
        from dpaudit.trainers import trained_parameters

        self.task = prompts.task(seed, options)
        self.head = objective == "head"
        self.model: Any = self.task.model()
        if self.head:
            self.model = LastHidden(self.task.raw(), seed).eval()
        elif choice != "all":
            self.model = trained_parameters(self.task.raw(), choice)

    def records(self, rows: Any) -> list[dict[str, Any]]:
        """They are encoded already."""
        return list(rows)

    def collate(self, rows: list[dict[str, Any]]) -> Any:
        """One length for all batches."""
        return self.task.collate(rows)

    def losses(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """(B,) losses."""
        from dpaudit.trainers.tasks.losses import classification_losses

        if not self.head:
            return self.task.losses(model, batch)
        return classification_losses(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])

    @torch.no_grad()
    def accuracy(self, rows: list[dict[str, Any]]) -> float:
        """Share of right answers."""
        return Encoder.accuracy(self, rows)  # type: ignore[arg-type]


REAL_RATES = {"all": 1e-4, "lora": 2e-3, "prefix": 1e-2, "bias": 2e-3}
"""For SmolLM2: fixed beforehand, not searched."""


def measured_real(
    objective: str, epsilon: float | None, seed: int, options: Options, *, choice: str = "all"
) -> dict[str, Any]:
    """One run on a real backbone."""
    made = Prompted(objective, seed, options, choice=choice)
    before = made.accuracy(made.task.test)
    found = run(made, made.task.private, made.task.test, epsilon=epsilon, rate=REAL_RATES[choice], seed=seed,
                options=options)  # fmt: skip
    return {**found, "before": before}


def jobs(options: Options) -> Iterable[Job]:
    """Both objectives at ε = 3, then 8, then without privacy."""
    run_one = measured if options.backbone == "small" else measured_real
    return seeded(
        lambda seed, o=objective, e=epsilon: Job(
            3, named(on=options.backbone, objective=o, epsilon=e or "none"), seed, lambda: run_one(o, e, seed, options)
        )
        for epsilon in (*FIRST_ORDER, None)
        for objective in OBJECTIVES
    )
