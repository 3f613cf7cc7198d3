"""Tiny problems for the examiner's tests of this library's trainers: an innocent step of each family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.attacks import FirstOrderAdapter, ZerothOrderAdapter
from dpaudit.trainers import OptimizerSettings, PrivacyPlan, pad_tokens, train
from dpaudit.trainers.tasks.losses import token_losses
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.stages import ZOStage
from dpaudit.trainers.zeroth_order.train import zo_train

RECORDS, BATCH, WORDS = 60, 6, 11


class TinyLM(nn.Module):
    """Embedding, one layer, a head; tied or not. Token 0 is padding."""

    def __init__(self, width: int = 4, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.layer = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, WORDS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.layer(self.embedding(tokens)))))


def lm_records(seed: int) -> list[list[int]]:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (RECORDS,), generator=rng).tolist()
    return [torch.randint(1, WORDS, (n,), generator=rng).tolist() for n in lengths]


def lm_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return token_losses(model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:])


def lm_collate(rows: list[list[int]]) -> dict[str, Tensor]:
    return pad_tokens(rows, length=8)


def fixed_collate(rows: list[list[int]]) -> dict[str, Tensor]:
    batch = pad_tokens([[*row, *[0] * (8 - len(row))] for row in rows])
    for row, ids in enumerate(rows):
        batch["labels"][row, len(ids) :] = -100
    return batch


SPECIAL = {"repeated token": [3] * 8, "one token": [4], "long record": [1, 2, 3, 4, 5, 6, 7, 8]}


def plan(**changes: Any) -> PrivacyPlan:
    values: dict[str, Any] = {
        "delta": 1e-3, "relation": "add_or_remove_one", "sampling": "poisson", "unit": "record",
        "public_size": RECORDS, "expected_batch_size": BATCH, "steps": 200, "clipping_norm": 0.5,
        "noise_multiplier": 1.0,
    }  # fmt: skip
    return PrivacyPlan(**{**values, **changes})


def first_order(seed: int, *, tied: bool = False, model: nn.Module | None = None, **changes: Any) -> Any:
    """Adapter and plan of an innocent first-order step."""
    torch.manual_seed(seed)
    model = TinyLM(tied=tied) if model is None else model
    made = plan(**changes)
    adapter = FirstOrderAdapter(
        train, model.eval(), lm_records(seed), made, collate=lm_collate, loss_fn=lm_losses, special=SPECIAL,
        optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0), options={"physical_batch_size": 3},
    )  # fmt: skip
    return adapter, made


def zeroth_order(seed: int, *, directions: int = 1, clip: str = "per_direction", **changes: Any) -> Any:
    """Adapter and plan of an innocent zeroth-order step."""
    torch.manual_seed(seed)
    stage_options = {key: changes.pop(key) for key in ("proximal", "mask", "scale") if key in changes}
    made = plan(
        clipping_norm=changes.pop("clipping_norm", 0.3), releases_per_step=directions,
        clip=clip if directions > 1 else None, **changes,
    )  # fmt: skip
    stage = ZOStage(plan=made, learning_rate=1e-2, scale=stage_options.pop("scale", 1e-3), **stage_options)
    adapter = ZerothOrderAdapter(
        zo_train, TinyLM().double().eval(), lm_records(seed), stage, collate=fixed_collate, loss_fn=_double_losses,
        special=SPECIAL, directions=Directions(run=f"examination {seed}"), options={"physical_batch_size": 8},
    )  # fmt: skip
    return adapter, made


def _double_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits, labels = model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
    flat = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    return flat.view(labels.shape).sum(1) / (labels != -100).sum(1).clamp(min=1)
