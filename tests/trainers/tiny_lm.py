"""Twenty records, a plan of one step, and a language model of two layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpaudit.trainers import PrivacyPlan
from dpaudit.trainers.tasks.losses import token_losses

PLAN = PrivacyPlan(
    delta=1e-3,
    relation="add_or_remove_one",
    sampling="poisson",
    unit="record",
    public_size=20,
    expected_batch_size=4,
    steps=1,
    clipping_norm=0.5,
    noise_multiplier=1.0,
)
RECORDS = [[1 + (i * k) % 9 for k in range(1, 4 + i % 5)] for i in range(20)]


class TinyLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids))  # type: ignore[no-any-return]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return token_losses(model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:])
