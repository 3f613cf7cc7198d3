"""Any use of a parameter, and the inner product of two of them.

A parameter used k times has |G_i|² = Σ over all PAIRS of uses of <G_i, G'_i>; leaving the cross terms out would
under- or over-estimate the norm (tied embeddings) and break the bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpaudit.trainers.ghost.head import HeadUse, UnitHeadUse
from dpaudit.trainers.ghost.uses import DirectUse, MatrixUse, RowUse, Square, wide

Use = MatrixUse | RowUse | DirectUse | HeadUse | UnitHeadUse


def cross(one: Use, other: Use) -> Square:
    """<G_i, G'_i> of two uses of one parameter, (B,), without writing either down where both are layers."""
    match one, other:
        case MatrixUse(), MatrixUse() if one.transposed == other.transposed:
            left = torch.bmm(wide(one.a), wide(other.a).mT)
            right = torch.bmm(wide(one.b), wide(other.b).mT)
            return _sum_of_products(left, right)
        case MatrixUse(), RowUse() if one.transposed:
            # Weight (V, d): G_head = Σ_t b_tᵀ a_t meets G_emb = Σ_s e(id_s)ᵀ δ_s in Σ_{t,s} b_t[id_s] (a_t·δ_s).
            ids = other.ids[:, None, :].expand(-1, one.b.shape[1], -1)
            return _sum_of_products(wide(one.b.gather(2, ids)), torch.bmm(wide(one.a), wide(other.b).mT))
        case HeadUse(), RowUse():
            return _sum_of_products(one.at(other.ids), torch.bmm(wide(one.inputs.hidden), wide(other.b).mT))
        case RowUse(), MatrixUse() | HeadUse():
            return cross(other, one)
        case RowUse(), RowUse():
            same = (one.ids[:, :, None] == other.ids[:, None, :]).to(wide(one.b).dtype)
            return _sum_of_products(same, torch.bmm(wide(one.b), wide(other.b).mT))
        case (HeadUse() | UnitHeadUse() as head, _) | (_, HeadUse() | UnitHeadUse() as head):
            # One example at a time, since an example's gradient is as large as the vocabulary.
            rows = torch.arange(head.size)
            parts = [(one.instance(row[None]) * other.instance(row[None])).flatten(1).sum(1) for row in rows]
            value = torch.cat(parts)
            return Square(value, value.abs())
        case _:
            value = (one.instance() * other.instance()).flatten(1).sum(1)
            return Square(value, value.abs())


def _sum_of_products(left: Tensor, right: Tensor) -> Square:
    product = left * right
    return Square(product.sum((1, 2)), product.abs().sum((1, 2)))
