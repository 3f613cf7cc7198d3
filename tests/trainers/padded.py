"""Rows of token ids and labels as one padded batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PAD = 1


def batch_of(
    rows: list[dict[str, Any]], *, side: str = "right", mask: bool = True, width: int | None = None
) -> dict[str, Tensor]:
    """Rows padded on one side; labels are a class or the tokens."""
    wide = max([1, *(len(r["input_ids"]) for r in rows)]) if width is None else width

    def beside(row: list[int], fill: int) -> list[int]:
        row = row[:wide]
        filling = [fill] * (wide - len(row))
        return filling + row if side == "left" else row + filling

    batch = {"input_ids": torch.tensor([beside(r["input_ids"], PAD) for r in rows])}
    if mask:
        batch["attention_mask"] = torch.tensor([beside([1] * len(r["input_ids"]), 0) for r in rows])
    if isinstance(rows[0]["labels"], int):
        batch["labels"] = torch.tensor([r["labels"] for r in rows])
    else:
        batch["labels"] = torch.tensor([beside(r["labels"], -100) for r in rows])
    return batch
