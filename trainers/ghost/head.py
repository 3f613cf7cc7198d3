"""The language-model head whose logits are never held for the whole batch.

For hidden states a (B, T, d), a head W (V, d) and targets y, example i loses Σ_t w_it (logsumexp z_it − z_it[y_it])
with z = a Wᵀ and w_it = 1 / its counted tokens, so the gradient of its logits is known in closed form:
b_it = w_it (softmax z_it − e(y_it)). A few examples at a time, the forward pass turns z into the losses, into b W (the
gradient of a), into the Gram matrix of b and into b at the example's own tokens (for a tied embedding); z and b are
then dropped. The clipped sum computes them once more, from the same operands in the same chunks. The slopes
softmax z_it − e(y_it) are the largest tensor, so that they stay unweighted and w multiplies what is made of them.

Memory is O(T V) of a few examples instead of O(B T V) three or four times over, for one product more.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.trainers.ghost import products
from dpaudit.trainers.ghost.uses import Gram, Grams, Square, gram_plan, wide

CHUNK_WORDS = 2**24
"""Logits held at a time: 64 MiB in fp32, or those of one example; the head's weight is read once for each chunk."""

IGNORED = -100
"""Label of a token that does not count."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class HeadInputs:
    """The operands of a head's losses.

    Parameters
    ----------
    hidden : Tensor of shape (B, T, d)
    weight : Tensor of shape (V, d)
    bias : Tensor of shape (V,) or None
    targets : Tensor of shape (B, T)
        -100 does not count.
    dtype : torch.dtype
        Of the product; that of autocast where it was on in the forward pass.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    dtype: torch.dtype

    def chunks(self) -> list[slice]:
        """Slices of examples whose logits are held together."""
        size, length, _ = self.hidden.shape
        step = max(1, CHUNK_WORDS // max(1, length * len(self.weight)))
        return [slice(i, min(i + step, size)) for i in range(0, size, step)]

    def logits(self, rows: slice | Tensor) -> Tensor:
        """Logits z in at least fp32, (n, T, V)."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(self.dtype)
            hidden, weight = self.hidden[rows].to(self.dtype), self.weight.to(self.dtype)
            if products.onednn_for(hidden):
                return products.affine(hidden, weight, bias)
            return wide(F.linear(hidden, weight, bias))

    def weights(self, rows: slice | Tensor) -> Tensor:
        """Weights w of the positions of some examples, (n, T) in at least fp32: 1 / counted tokens, or 0."""
        counted = self.targets[rows] != IGNORED
        dtype = torch.promote_types(self.dtype, torch.float32)
        return counted.to(dtype) / counted.sum(1, keepdim=True).clamp(min=1)

    def losses_and_slopes(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Losses (n,) and unweighted slopes (n, T, V) of some examples; the slopes take the place of the logits."""
        logits, targets = self.logits(rows), self.targets[rows]
        logits = _log_softmax(logits)
        terms = -logits.gather(2, targets.clamp(min=0)[:, :, None]).squeeze(2)
        # An ignored position may hold an infinite logit; 0 · inf would be NaN.
        losses = (terms.masked_fill(targets == IGNORED, 0) * self.weights(rows)).sum(1)
        return losses, _less_targets(logits.exp_(), targets)

    def losses(self, rows: slice | Tensor) -> Tensor:
        """The losses alone, (n,)."""
        return self.losses_and_slopes(rows)[0]

    def slopes(self, rows: slice | Tensor) -> Tensor:
        """Unweighted slopes of the losses over the logits for some examples, (n, T, V).

        They are the bits whose norm was measured: where a target's probability rounds to one, another order of the same
        operations gives a slope that is wrong by itself, and a contribution of twice C.
        """
        return self.losses_and_slopes(rows)[1]


def _log_softmax(logits: Tensor) -> Tensor:
    """Over the vocabulary, in the logits' memory on a CPU, whose routine reads a row before it writes the row."""
    return torch.log_softmax(logits, 2, out=logits) if logits.device.type == "cpu" else torch.log_softmax(logits, 2)


def _less_targets(b: Tensor, targets: Tensor) -> Tensor:
    """Probabilities minus one at their targets, in place, and zero where no token counts."""
    index = targets.clamp(min=0)[:, :, None]
    b.scatter_add_(2, index, b.new_full((), -1.0).expand(index.shape))
    return _cleared(b, targets == IGNORED)


def _cleared(b: Tensor, where: Tensor) -> Tensor:
    """Zero at some positions, in place: an infinite or NaN value there is gone, which 0 times it would not be."""
    if b.device.type != "cpu":  # to ask whether there are any would wait for the device
        return b.masked_fill_(where[:, :, None], 0)
    if where.any():
        b[where] = 0
    return b


@dataclasses.dataclass(slots=True, eq=False)
class HeadUse:
    """The use of a head's weight by its own losses; ``weight`` is stored (V, d).

    Parameters
    ----------
    inputs : HeadInputs
    scale : Tensor of shape (B,)
        Gradient of the total with respect to each example's loss: b stands for scale · b.
    gram : Gram
        Of b, without ``scale``.
    ids, picked : Tensor or None
        Token ids (B, S) and b at them, (B, T, S), without ``scale``.
    exact : bool
        Write G_i down instead of using ``gram``.
    live : Tensor or None
        The examples selected, if not all.
    """

    inputs: HeadInputs
    scale: Tensor
    gram: Gram
    ids: Tensor | None
    picked: Tensor | None
    exact: bool = False
    live: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.inputs.weight.shape

    @property
    def size(self) -> int:
        """B."""
        return len(self.scale)

    def square(self, grams: Grams) -> Square:
        """|G_i|² from the Gram matrices, or from G_i itself where ``exact``."""
        if self.exact:
            rows = torch.arange(len(self.scale), device=self.scale.device)
            value = torch.cat([self.instance(row[None]).square().sum((1, 2)) for row in rows])
            return Square(value, value)
        length, width = self.inputs.hidden.shape[1:]
        starts, onednn = gram_plan(length, (width + self.shape[0]) // 2, self.inputs.hidden)
        found = grams.shared(self.inputs.hidden, starts, onednn).dot(self.gram)
        factor = self.scale.to(found.value.dtype).square()
        return Square(found.value * factor, found.scale * factor)

    def instance(self, rows: Tensor | None = None) -> Tensor:
        """G_i written down, (n, V, d)."""
        chosen = torch.arange(len(self.scale), device=self.scale.device) if rows is None else rows
        b = self.inputs.slopes(chosen)
        factors = self.inputs.weights(chosen) * self.scale[chosen].to(b.dtype)[:, None]
        return torch.bmm(b.mT, wide(self.inputs.hidden[chosen]) * factors[:, :, None])

    def at(self, ids: Tensor) -> Tensor:
        """Slopes b at ids (B, S) of each example's own, (B, T, S)."""
        if self.picked is not None and self.ids is not None and torch.equal(ids, self.ids):
            picked = self.picked
        else:
            picked = torch.cat(
                [
                    _pick(self.inputs.slopes(r), ids[r]) * self.inputs.weights(r)[:, :, None]
                    for r in self.inputs.chunks()
                ]
            )
        return picked * self.scale.to(picked.dtype).view(-1, 1, 1)

    def weighted(self, factors: Tensor, total: Tensor | None) -> Tensor:
        """Σ_i c_i G_i, added into ``total`` (V, d) where there is one."""
        c = factors
        if self.live is not None:
            # The chunks stay those whose norms were measured: narrow types round by the shape of the product.
            c = factors.new_zeros(len(self.scale)).index_copy_(0, self.live, factors)
        # 0 · NaN is NaN: what was clipped to nothing is also written as zero.
        c = torch.where(c == 0, torch.zeros_like(c), c * self.scale.to(c.dtype))
        for rows in self.inputs.chunks():
            dropped = (c[rows] == 0)[:, None].expand(-1, self.inputs.hidden.shape[1])
            b = _cleared(self.inputs.slopes(rows), dropped)
            a = wide(self.inputs.hidden[rows])
            a = a * (self.inputs.weights(rows) * c[rows, None].to(a.dtype))[:, :, None]
            a = a.masked_fill(dropped[:, :, None], 0).reshape(-1, a.shape[2])
            total = products.add_outer(total, b.reshape(-1, b.shape[2]), a)
        assert total is not None
        return total

    def select(self, rows: Tensor) -> HeadUse:
        """The same use for some of the examples."""
        return dataclasses.replace(self, live=rows)


@dataclasses.dataclass(slots=True, eq=False)
class UnitHeadUse:
    """A head's use whose rows belong to units: G_u is the sum of its rows' gradients, written down one unit at a time.

    Parameters
    ----------
    rows : HeadUse
        The use, row by row.
    of : Tensor of shape (R,)
        Unit of each row.
    units : Tensor of shape (U,)
        The units in question, in order.
    """

    rows: HeadUse
    of: Tensor
    units: Tensor

    @property
    def size(self) -> int:
        """U."""
        return len(self.units)

    def square(self, grams: Grams) -> Square:
        """|G_u|² from G_u itself."""
        each = [self.instance(unit[None]).square().sum((1, 2)) for unit in torch.arange(self.size)]
        value = torch.cat(each) if each else self.rows.scale.new_zeros(0)
        return Square(value, value)

    def instance(self, rows: Tensor | None = None) -> Tensor:
        """G_u written down, (n, V, d), for all units or for those at ``rows``."""
        chosen = self.units if rows is None else self.units[rows.to(self.units.device)]
        full = wide(self.rows.inputs.hidden[:0]).new_zeros(len(chosen), *self.rows.shape)
        for place, unit in enumerate(chosen):
            for row in (self.of == unit).nonzero().squeeze(1):  # a row's gradient is as large as the vocabulary
                full[place] += self.rows.instance(row[None])[0]
        return full

    def weighted(self, factors: Tensor, total: Tensor | None) -> Tensor:
        """Σ_u c_u G_u, added into ``total`` (V, d) where there is one."""
        spread = factors.new_zeros(int(self.of.max()) + 1 if len(self.of) else 0)
        known = self.units < len(spread)
        spread = spread.index_copy_(0, self.units[known], factors[known])
        return self.rows.weighted(spread[self.of], total)

    def select(self, rows: Tensor) -> UnitHeadUse:
        """The same use for some of the units."""
        return dataclasses.replace(self, units=self.units[rows])


def _weighted(gram: Gram, starts: tuple[int, ...], w: Tensor) -> list[Tensor]:
    """Strips of the Gram of w b from those of the Gram of b."""
    pairs = zip(gram.strips, itertools.pairwise(starts), strict=True)
    return [strip * w[:, low:high, None] * w[:, None, low:] for strip, (low, high) in pairs]


def _pick(b: Tensor, ids: Tensor) -> Tensor:
    return b.gather(2, ids[:, None, :].expand(-1, b.shape[1], -1))


class HeadLosses(torch.autograd.Function):
    """(B,) losses of a head in chunks; its backward hands a :class:`HeadUse` to ``record``.

    ``record(weight_use, bias_gradients)`` is None where the head is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        hidden: Tensor,
        inputs: HeadInputs,
        ids: Tensor | None,
        record: Callable[[HeadUse, Tensor | None], None] | None,
        wants_bias: bool,
    ) -> Tensor:
        losses, back, strips, picked, biases = [], [], [], [], []
        length, width = hidden.shape[1:]
        starts, onednn = gram_plan(length, (width + len(inputs.weight)) // 2, hidden)
        for rows in inputs.chunks():
            loss, b = inputs.losses_and_slopes(rows)
            w = inputs.weights(rows)
            losses.append(loss)
            with torch.autocast(hidden.device.type, enabled=False):
                if ctx.needs_input_grad[1]:
                    weight = inputs.weight.to(inputs.dtype)
                    found = products.right(b.to(inputs.dtype), weight, transposed=True)
                    back.append((found * w[:, :, None]).to(hidden.dtype))
                if record is not None:
                    strips.append(_weighted(Gram.of(b, starts, onednn), starts, w))
                    if ids is not None:
                        picked.append(_pick(b, ids[rows]) * w[:, :, None])
                    if wants_bias:
                        biases.append(torch.bmm(w[:, None], b).squeeze(1))
            del b
        ctx.set_materialize_grads(False)
        ctx.record, ctx.inputs, ctx.ids = record, inputs, ids
        ctx.gram = Gram([torch.cat(parts) for parts in zip(*strips, strict=True)])
        ctx.picked = torch.cat(picked) if picked else None
        ctx.biases = torch.cat(biases) if biases else None
        ctx.save_for_backward(*([torch.cat(back)] if back else []))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        (scale,) = gradients
        back = None
        if scale is not None:
            scale = scale.detach()
            if ctx.record is not None:
                biases = None if ctx.biases is None else ctx.biases * scale[:, None]
                ctx.record(HeadUse(ctx.inputs, scale, ctx.gram, ctx.ids, ctx.picked), biases)
            if ctx.saved_tensors:
                (saved,) = ctx.saved_tensors
                back = saved * scale.to(saved.dtype).view(-1, 1, 1)
        return (None, back, None, None, None, None)


def losses_in_chunks(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The losses alone, (B,), a few examples at a time, without a gradient."""
    inputs = head_inputs(hidden, head, targets)
    return torch.cat([inputs.losses(rows) for rows in inputs.chunks()])


def frozen_head_losses(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """The losses in chunks with a gradient for ``hidden`` alone; no clipper has to know of a frozen head."""
    if not hidden.requires_grad:
        return losses_in_chunks(hidden, head, targets)
    losses: Tensor = HeadLosses.apply(
        hidden.new_zeros(()), hidden, head_inputs(hidden, head, targets), None, None, False
    )  # type: ignore[no-untyped-call]
    return losses


def head_inputs(hidden: Tensor, head: nn.Linear, targets: Tensor) -> HeadInputs:
    """Operands, detached, with the type that the product would have in the head's own forward."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    bias = None if head.bias is None else head.bias.detach()
    return HeadInputs(hidden.detach(), head.weight.detach(), bias, targets, dtype)
