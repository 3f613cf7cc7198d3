"""Generated batches of a collator's schema, and the padding that a collator may add around one example."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.preflight.company import Company, Composition
from dpaudit.trainers.preflight.made import Ranges, is_label, positions
from dpaudit.trainers.tasks.losses import IGNORED

SIDES = ("right", "left", "both", "none")
_GROWTH = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """One collated batch, of which keys, types and shapes are used; a tensor, tuple or list counts its fields."""

    fields: dict[str, Tensor]
    kind: type
    count: int

    @classmethod
    def of(cls, batch: Any) -> Schema:
        """Read a batch's schema."""
        if isinstance(batch, Tensor):
            found: Mapping[str, Any] = {"": batch}
        elif isinstance(batch, (tuple, list)):
            found = {f".{i}": value for i, value in enumerate(batch)}
        else:
            found = batch
        if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
            raise _not_a_mapping(batch)
        kind = dict if isinstance(batch, Mapping) else Tensor if isinstance(batch, Tensor) else type(batch)
        return cls(dict(found), kind, batch_size(found))

    def as_given(self, fields: dict[str, Tensor]) -> Any:
        """Fields in the form in which the batch came."""
        if self.kind is dict:
            return fields
        return fields[""] if self.kind is Tensor else self.kind(fields.values())

    @property
    def tokens(self) -> str | None:
        """The field that has one entry for each token, (B, T): the mask, the ids, or the first whole-number matrix."""
        for name in ("attention_mask", "input_ids"):
            if name in self.fields and self.fields[name].ndim == 2:
                return name
        matrices = (n for n, v in self.fields.items() if v.ndim == 2 and not v.is_floating_point())
        return next((n for n in matrices if len(self.fields[n]) == self.count and self.fields[n].shape[1] > 1), None)

    def resized(self, width: int) -> Schema:
        """The same schema with ``width`` tokens a row."""
        assert self.tokens is not None
        shape = self.fields[self.tokens].shape
        made = {}
        for name, value in self.fields.items():
            made[name] = value
            if value.shape[:2] == shape:
                made[name] = value.new_zeros((self.count, width, *value.shape[2:]))
            elif value.ndim == 2 and value.shape == (1, shape[1]):  # ids that the whole batch shares
                made[name] = torch.arange(width).to(value)[None] if width > shape[1] else value[:, :width]
        return dataclasses.replace(self, fields=made)


def _not_a_mapping(batch: Any) -> InvalidValue:
    return InvalidValue(
        f"a batch of type {type(batch).__name__} must be a mapping of tensors to be generated from its schema; collate"
        " made-up records yourself and pass that batch."
    )


def generated(
    schema: Schema, ranges: Ranges, *, size: int, rng: torch.Generator, full: bool = False, side: str = "right"
) -> dict[str, Tensor]:
    """A batch with the keys, types and trailing shapes of a schema and content drawn at random.

    Nothing of the schema's content is read, so that it may come from private records: token ids are uniform over the
    vocabulary, class labels over the classes, masks are padded at random lengths, labels of tokens are the tokens with
    padding ignored, and floating-point values are standard normal. Tensors with a leading axis of another size than
    the batch (broadcast ids) are kept.
    """
    mask = _lengths_mask(schema, size, rng, full=full, side=side)
    made: dict[str, Tensor] = {}
    for name, like in schema.fields.items():
        if like.ndim == 0 or like.shape[0] != schema.count:
            made[name] = like
            continue
        shape = (size, *like.shape[1:])
        if name == "attention_mask" and mask is not None:
            made[name] = mask.to(like.dtype)
        elif like.is_floating_point():
            made[name] = torch.randn(shape, generator=rng).to(like.dtype)
        elif name == "position_ids" and like.ndim == 2:
            made[name] = torch.arange(shape[1]).expand(shape).to(like.dtype).clone()
        else:
            made[name] = torch.randint(0, _bound(name, like, ranges), shape, generator=rng).to(like.dtype)
    ids = made.get("input_ids")
    for name, labels in made.items():
        if is_label(name) and ids is not None and labels.shape == ids.shape and not labels.is_floating_point():
            labels = ids.clone() if ranges.labels_are_tokens else labels
            made[name] = labels if mask is None else labels.masked_fill(~mask, IGNORED)
    return made


def schema_company(
    batch: Any, model: nn.Module, ranges: Ranges, *, size: int, rng: torch.Generator, padding: str | None, private: bool
) -> Company:
    """Records of a batch's schema, or of the batch itself if ``private``, alone and in company."""
    schema = Schema.of(batch)
    sides = _sides(schema, padding)
    side = sides[0] if sides else "right"
    base = dict(schema.fields) if private else generated(schema, ranges, size=size, rng=rng, side=side)
    count = batch_size(base)
    other = generated(schema, ranges, size=count, rng=rng, side=side)
    alone = [select(part, [i]) for part in (base, other) for i in range(count)]
    everyone = tuple((i, i) for i in range(count))
    whole = Composition(what="number", batch=base, rows=everyone, size=count)
    compositions = [whole]
    for row in sorted({0, count - 1}):
        rows = tuple((i, i if i == row else count + i) for i in range(count))
        mixed = with_other_content(base, other, row)
        compositions.append(Composition(what="content", batch=mixed, rows=rows, size=count))
    for where in sides if sides and _room(schema, model) else ():
        short, together = _padded_beside_longer(schema, model, ranges, size=count, rng=rng, side=where)
        rows = ((0, len(alone)),)
        alone.append(short)
        compositions.append(Composition(what="length", batch=together, rows=rows, size=count, side=where))
    rest = [[i for i in range(count) if i != left] for left in range(count)]
    found = Company(
        alone=tuple(alone),
        compositions=tuple(compositions),
        whole=(whole,),
        without=tuple((select(base, rows_left),) for rows_left in rest),
        twins=(base, other),
        collated=False,
    )
    return found.map(schema.as_given)


def select(batch: Mapping[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """The batch with these rows only; tensors without the batch axis stay."""
    count = batch_size(batch)
    return {k: v[rows] if v.ndim and v.shape[0] == count else v for k, v in batch.items()}


def with_other_content(batch: Mapping[str, Tensor], other: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """``row`` of the batch among the rows of another batch of the same shape."""
    count = batch_size(batch)
    mixed = {k: v.clone() for k, v in other.items()}
    for k, v in batch.items():
        if v.ndim and v.shape[0] == count:
            mixed[k][row] = v[row]
    return mixed


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """B: the largest leading axis."""
    sizes = [v.shape[0] for v in batch.values() if v.ndim]
    if not sizes:
        raise InvalidValue("the batch holds 0 tensors with a batch axis and needs at least one; check the collator.")
    return max(sizes)


def _sides(schema: Schema, padding: str | None) -> tuple[str, ...]:
    """Where to pad: as declared; else on the sides where the mask shows padding, on both where it shows none.

    Without a mask a record is padded on the right, by what is content to the model.
    """
    if padding is not None:
        validate.one_of(SIDES, padding=padding)
    if padding == "none" or schema.tokens is None:
        return ()
    if padding is not None:
        return ("right", "left") if padding == "both" else (padding,)
    mask = schema.fields.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return ("right",)
    seen = [side for side, column in (("right", -1), ("left", 0)) if bool((mask[:, column] == 0).any())]
    return tuple(seen) or ("right", "left")


def _room(schema: Schema, model: nn.Module) -> bool:
    """Whether one record can be shorter than another."""
    assert schema.tokens is not None
    return max(schema.fields[schema.tokens].shape[1], positions(model)) > 1


def _padded_beside_longer(
    schema: Schema, model: nn.Module, ranges: Ranges, *, size: int, rng: torch.Generator, side: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A short record by itself, and the same record padded to the length of ``size`` − 1 others."""
    assert schema.tokens is not None
    present = schema.fields[schema.tokens].shape[1]
    wide = present if present >= 2 * _GROWTH else min(present + _GROWTH, max(present, positions(model)))
    narrow = max(1, wide // 2)
    short = generated(schema.resized(narrow), ranges, size=1, rng=rng, full=True)
    longer = generated(schema.resized(wide), ranges, size=max(1, size - 1), rng=rng, full=True)
    pad = getattr(getattr(model, "config", None), "pad_token_id", None) or 0
    together = {}
    for name, value in longer.items():
        like, own = schema.fields[name], short[name]
        if like.ndim == 0 or like.shape[0] != schema.count:
            together[name] = value
            continue
        if own.shape[1:2] == (narrow,) and value.shape[1:2] == (wide,):
            fill = pad if name == "input_ids" else IGNORED if is_label(name) else 0
            filling = own.new_full((1, wide - narrow, *own.shape[2:]), fill)
            own = torch.cat([own, filling] if side == "right" else [filling, own], dim=1)
        together[name] = torch.cat([own, value])
    return short, together


def _lengths_mask(schema: Schema, size: int, rng: torch.Generator, *, full: bool, side: str) -> Tensor | None:
    """(B, T) booleans of records at random lengths, the first of them whole; None without a mask in the schema."""
    mask = schema.fields.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return None
    width = mask.shape[1]
    lengths = torch.randint(max(1, min(2, width), width // 2), width + 1, (size,), generator=rng).clamp(max=width)
    lengths[0] = width
    if full:
        lengths.fill_(width)
    at = torch.arange(width)
    return at < lengths[:, None] if side != "left" else at >= width - lengths[:, None]


def _bound(name: str, like: Tensor, ranges: Ranges) -> int:
    if name.endswith("mask"):
        return 2
    if name == "token_type_ids":
        return 1
    if name in ("input_ids", "decoder_input_ids", ""):
        return max(1, ranges.vocabulary)
    if like.ndim == 1:
        return ranges.classes
    if is_label(name):
        return max(1, ranges.vocabulary if ranges.labels_are_tokens else ranges.classes)
    return max(1, ranges.others)
