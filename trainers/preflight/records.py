"""Generated batches of a collator's schema, and the ways of changing a batch around one example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.tasks.losses import IGNORED


def generated_batch(
    schema: Mapping[str, Any], model: nn.Module, *, size: int = 4, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """A batch with the keys, types and trailing shapes of ``schema`` and content drawn at random.

    Nothing of the schema's content is read, so that it may come from private records: token ids are uniform over the
    model's vocabulary, class labels over its labels, masks are right-padded at random lengths, labels of tokens are
    the tokens with padding ignored, and floating-point values are standard normal.

    Parameters
    ----------
    schema : mapping of Tensor
        One collated batch. Tensors with a leading axis of another size than the batch (broadcast ids) are kept.
    model : nn.Module
        Its config, where it has one, gives ``vocab_size``, ``num_labels`` and ``type_vocab_size``.
    size : int
        Examples to generate.

    Raises
    ------
    InvalidValue
        If the batch is not a mapping of tensors: then pass generated records through your own collator.
    """
    if not isinstance(schema, Mapping) or not all(isinstance(v, Tensor) for v in schema.values()):
        raise InvalidValue(
            f"a batch of type {type(schema).__name__} must be a mapping of tensors to be generated from its schema;"
            " collate made-up records yourself and pass that batch."
        )
    rng = generator or torch.Generator().manual_seed(0)
    config = getattr(model, "config", None)
    count = _batch_size(schema)
    vocabulary = int(getattr(config, "vocab_size", 0) or 0) or _rows_of_first_embedding(model)
    lengths: Tensor | None = None
    if (mask := schema.get("attention_mask")) is not None and mask.ndim == 2:
        width = mask.shape[1]
        lengths = torch.randint(max(2, width // 2), width + 1, (size,), generator=rng).clamp(max=width)
        lengths[0] = width
    made: dict[str, Tensor] = {}
    for name, like in schema.items():
        if like.ndim == 0 or like.shape[0] != count:
            made[name] = like
            continue
        shape = (size, *like.shape[1:])
        if name == "attention_mask" and lengths is not None:
            made[name] = (torch.arange(shape[1]) < lengths[:, None]).to(like.dtype)
        elif like.is_floating_point():
            made[name] = torch.randn(shape, generator=rng).to(like.dtype)
        else:
            made[name] = torch.randint(0, _bound(name, like, config, vocabulary), shape, generator=rng).to(like.dtype)
    if "labels" in made and "input_ids" in made and made["labels"].shape == made["input_ids"].shape:
        made["labels"] = made["input_ids"].clone()
        if lengths is not None:
            made["labels"][torch.arange(made["labels"].shape[1]) >= lengths[:, None]] = IGNORED
    return made


def select(batch: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The batch with these rows only; tensors without the batch axis stay."""
    count = _batch_size(batch)
    return {k: v[rows] if v.ndim and v.shape[0] == count else v for k, v in batch.items()}


def with_other_content(batch: Mapping[str, Tensor], other: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """``row`` of the batch among the rows of another batch of the same shape."""
    count = _batch_size(batch)
    mixed = {k: v.clone() for k, v in other.items()}
    for k, v in batch.items():
        if v.ndim and v.shape[0] == count:
            mixed[k][row] = v[row]
    return mixed


def with_longer_neighbours(batch: Mapping[str, Tensor], row: int, extra: int = 5) -> dict[str, Tensor] | None:
    """The batch with ``extra`` more tokens in every row but ``row``, which is padded; None where nothing masks."""
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return None
    grown = {}
    for k, v in batch.items():
        if v.shape[:2] != mask.shape:
            grown[k] = v
            continue
        # the tail repeats each row's own first tokens: valid ids for every vocabulary
        tail = v[:, :extra].clone() if v.shape[1] >= extra else v[:, :1].expand(-1, extra, *v.shape[2:]).clone()
        if k == "attention_mask":
            tail.fill_(1)
            tail[row] = 0
        elif k == "labels":
            tail = torch.where(tail == IGNORED, torch.zeros_like(tail), tail)
            tail[row] = IGNORED
        grown[k] = torch.cat([v, tail], dim=1)
    return grown


def _batch_size(batch: Mapping[str, Tensor]) -> int:
    sizes = [v.shape[0] for v in batch.values() if v.ndim]
    if not sizes:
        raise InvalidValue("the batch holds 0 tensors with a batch axis and needs at least one; check the collator.")
    return max(sizes)


def _bound(name: str, like: Tensor, config: Any, vocabulary: int) -> int:
    if name == "token_type_ids":
        return max(1, int(getattr(config, "type_vocab_size", 1) or 1))
    if name in ("label", "labels") and like.ndim == 1:
        return max(1, int(getattr(config, "num_labels", 2) or 2))
    if name.endswith("mask"):
        return 2
    if name == "position_ids":
        return max(1, like.shape[-1])
    return max(1, vocabulary)


def _rows_of_first_embedding(model: nn.Module) -> int:
    return next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), 2)
