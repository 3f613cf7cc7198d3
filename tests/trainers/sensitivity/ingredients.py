"""Collators, models and losses, honest and not, that the sensitivity guard draws from."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.trainers import causal_lm_losses, sequence_classification_losses
from dpaudit.trainers.huggingface.losses import per_example_losses
from dpaudit.trainers.tasks.losses import token_losses
from dpaudit.trainers.zeroth_order.tasks import answer_losses
from tests.trainers.ghost.test_families import build
from tests.trainers.padded import batch_of

Record = dict[str, Any]
Batch = dict[str, Tensor]
Collate = Callable[[list[Record]], Batch]
Losses = Callable[[Any, Batch], Tensor]
PAD = 1


def _pieces(row: Record, size: int) -> list[Record]:
    ids, labels = row["input_ids"], row["labels"]
    starts = range(0, len(ids), size)
    return [{"input_ids": ids[a : a + size], "labels": labels if isinstance(labels, int) else labels[a : a + size]}
            for a in starts]  # fmt: skip


def _joined(rows: list[Record]) -> Record:
    ids = [token for row in rows for token in row["input_ids"]]
    return {"input_ids": ids, "labels": rows[0]["labels"] if isinstance(rows[0]["labels"], int) else list(ids)}


def _group_texts(rows: list[Record]) -> Batch:
    whole = _joined(rows)
    width = -(-len(whole["input_ids"]) // len(rows))
    pieces = _pieces(whole, width)
    return batch_of((pieces * len(rows))[: len(rows)])


def _drop_and_refill(rows: list[Record]) -> Batch:
    kept = [r for r in rows if len(r["input_ids"]) > 3] or rows[:1]
    return batch_of((kept * len(rows))[: len(rows)])


def _deduplicated(rows: list[Record]) -> Batch:
    seen = {tuple(r["input_ids"]): r for r in rows}
    return batch_of((list(seen.values()) * len(rows))[: len(rows)])


def _labels_rolled(rows: list[Record]) -> Batch:
    batch = batch_of(rows)
    return {**batch, "labels": batch["labels"].roll(1, 0)}


def _counted_positions(rows: list[Record]) -> Batch:
    """Position ids that count padding on the left."""
    batch = batch_of(rows, side="left")
    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).expand(len(rows), -1).clone()}


def _own_positions(rows: list[Record]) -> Batch:
    batch = batch_of(rows, side="left")
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def _labels_on_padding(rows: list[Record]) -> Batch:
    batch = batch_of(rows)
    if batch["labels"].ndim == 1:
        return batch
    return {**batch, "labels": batch["input_ids"].clone()}


def _masked_labels_on_padding(rows: list[Record]) -> Batch:
    batch = _labels_on_padding(rows)
    return {k: v for k, v in batch.items() if k != "attention_mask"}


def _random_lengths(rows: list[Record]) -> Batch:
    """Pads to a multiple of a number of the batch's own."""
    widest = max(len(r["input_ids"]) for r in rows)
    return batch_of(rows, width=widest + len(rows) % 3)


COLLATORS: dict[str, Collate] = {
    "right": batch_of,
    "left": lambda rows: batch_of(rows, side="left"),
    "right, no mask": lambda rows: batch_of(rows, mask=False),
    "left, no mask": lambda rows: batch_of(rows, side="left", mask=False),
    "one length": lambda rows: batch_of(rows, width=12),
    "one length, left": lambda rows: batch_of(rows, width=12, side="left"),
    "wider than needed": _random_lengths,
    "own positions": _own_positions,
    "counted positions": _counted_positions,
    "labels on padding": _labels_on_padding,
    "labels on padding, no mask": _masked_labels_on_padding,
    "windows": lambda rows: batch_of([piece for row in rows for piece in _pieces(row, 4)]),
    "long windows": lambda rows: batch_of([piece for row in rows for piece in _pieces(row, 24)]),
    "packed": lambda rows: batch_of([_joined(rows)]),
    "packed in pairs": lambda rows: batch_of([_joined(rows[at : at + 2]) for at in range(0, len(rows), 2)]),
    "group_texts": _group_texts,
    "twice": lambda rows: batch_of([r for row in rows for r in (row, row)]),
    "sorted": lambda rows: batch_of(sorted(rows, key=lambda r: len(r["input_ids"]))),
    "shuffled": lambda rows: batch_of(random.sample(rows, len(rows))),
    "drops and refills": _drop_and_refill,
    "drops": lambda rows: batch_of([r for r in rows if len(r["input_ids"]) > 3] or rows[:1]),
    "deduplicated": _deduplicated,
    "to the shortest": lambda rows: batch_of(rows, width=min(len(r["input_ids"]) for r in rows)),
    "labels of the neighbour": _labels_rolled,
    "prompted by the first": lambda rows: batch_of(
        [{**r, "input_ids": [rows[0]["input_ids"][0], *r["input_ids"][1:]]} for r in rows]
    ),
}
HONEST = ("right", "left", "one length", "one length, left", "own positions", "wider than needed")


class Bag(nn.Module):
    """Embeddings, pooled and classified, with a fault of one's choice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.words, self.middle, self.out = nn.Embedding(29, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.kept: Tensor | None = None
        # a layer is made only for the kind that is about it: one that merely stands there is refused by name, and the
        # search would then learn nothing of the kind that was drawn
        if kind in ("running statistics", "instance norm"):
            self.norm = nn.InstanceNorm1d(6, track_running_stats=kind == "running statistics")
        if kind.startswith("batch norm"):
            self.batch_norm = nn.BatchNorm1d(6)
        if kind == "router":
            self.router = nn.Linear(6, 1)
        if kind == "running mean":
            self.register_buffer("mean", torch.zeros(6))
        if kind == "batch norm, frozen":
            self.batch_norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Bag:
        super().train(mode)
        if self.kind == "batch norm, frozen":
            self.batch_norm.eval()
        return self

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        weight = torch.ones_like(ids) if mask is None else mask
        if self.kind == "pools padding":
            weight = torch.ones_like(ids)
        hidden = torch.tanh(self.middle(self.words(ids)))
        if self.kind in ("running statistics", "instance norm"):
            hidden = self.norm(hidden.mT).mT
        x = (hidden * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
        match self.kind:
            case "centred":
                x = x - x.mean(0)
            case "batch norm" | "batch norm, frozen":
                x = self.batch_norm(x)
            case "running mean":
                self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
                x = x + self.mean
            case "remembers":
                before, self.kept = self.kept, x.detach().mean(0)
                x = x if before is None else x + before
            case "router":
                x = x * (self.router(x) >= self.router(x).median())
            case "capacity":
                x = x * (torch.arange(len(x))[:, None] < 3)
            case "attends to all":
                x = x + torch.softmax(x @ x.T, 1) @ x
        return self.out(x)  # type: ignore[no-any-return]


BAGS = ("plain", "pools padding", "running statistics", "instance norm", "centred", "batch norm", "batch norm, frozen",
        "running mean", "remembers", "router", "capacity", "attends to all")  # fmt: skip
FAMILIES = ("gpt2", "opt", "llama", "bert", "roberta", "distilbert")
CLASSIFIERS = ("bert", "roberta", "distilbert", *BAGS)


def model_of(name: str) -> nn.Module:
    """A model of that name, in fp64, always the same."""
    torch.manual_seed(7)
    return Bag(name).double().train() if name in BAGS else build(name, torch.float64).train()


def _logits(model: Any, batch: Batch) -> Tensor:
    if isinstance(model, Bag):
        return model(batch["input_ids"], batch.get("attention_mask"))  # type: ignore[no-any-return]
    return model(**{k: v for k, v in batch.items() if k != "labels"}).logits  # type: ignore[no-any-return]


def naive(model: Any, batch: Batch) -> Tensor:
    """A loss of one's own that trusts the labels alone."""
    logits = _logits(model, batch)
    if logits.ndim == 2:
        return F.cross_entropy(logits, batch["labels"], reduction="none")
    return token_losses(logits[:, :-1], batch["labels"][:, 1:])


def ours(model: Any, batch: Batch) -> Tensor:
    return naive(model, batch) if isinstance(model, Bag) else per_example_losses(model, batch)


def _share_of_width(model: Any, batch: Batch) -> Tensor:
    return naive(model, batch) * (batch["input_ids"] != PAD).sum(1) / batch["input_ids"].shape[1]


def _causal(model: Any, batch: Batch, **options: Any) -> Tensor:
    if batch["labels"].ndim == 1 or "position_ids" in batch:
        return ours(model, batch)
    return causal_lm_losses(model, **batch, **options)


LOSSES: dict[str, Losses] = {
    "ours": ours,
    "naive": naive,
    "causal": _causal,
    "chunked": lambda m, b: _causal(m, b, chunked_head=True),
    "answers": lambda m, b: answer_losses(m, b) if b["labels"].ndim == 2 else ours(m, b),
    "classes": lambda m, b: ours(m, b) if isinstance(m, Bag) or b["labels"].ndim == 2 else
    sequence_classification_losses(m, b),
    "mean over the batch": lambda m, b: ours(m, b) / len(b["labels"]),
    "less the mean": lambda m, b: ours(m, b) - ours(m, b).mean(),
    "times the share of the width": _share_of_width,
    "small auxiliary": lambda m, b: ours(m, b) + 0.01 * ours(m, b).square().mean(),
    "one for each token": lambda m, b: ours(m, b).repeat_interleave(b["input_ids"].shape[1]),
}  # fmt: skip
OWN = ("ours", "causal", "chunked", "answers", "classes")
