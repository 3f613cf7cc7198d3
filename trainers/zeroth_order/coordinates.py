"""Which coordinates a zeroth-order step may touch: the trainable parameters, whole or under a mask."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, UnsupportedModel
from dpaudit.trainers.distributed.shards import (
    first_coordinate,
    gather_nothing,
    has_shards,
    local,
    refuse_other_types,
    whole,
)
from dpaudit.trainers.refusals import refuse_model


@dataclasses.dataclass(frozen=True, slots=True)
class Mask:
    """Coordinates of one tensor that are perturbed and updated; all others stay bit for bit.

    Attributes
    ----------
    index : Tensor
        Flat positions, int64 of shape (k,), sorted.
    weight : Tensor or None
        fp32 of shape (k,): factor on the direction at each position (DP-ZOPO's ranks); None means 1. It multiplies
        the perturbation and the update alike, so the estimator stays unbiased for the weighted subspace.
    """

    index: Tensor
    weight: Tensor | None = None


Masks = Mapping[str, Mask]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, by canonical name, each tied parameter once.

    Raises
    ------
    UnsupportedModel
        If there is none, or one is in half precision: perturbing bf16 in place at β = 1e-3 walks it away by 20 % of β
        a step, and updates of 1e-4 vanish below half an ulp of a weight of 0.05. Also for shards that are gathered in
        half precision, compiled models and computed weights, and with PrivacyRefusal for wrapped ones; see
        :mod:`dpaudit.trainers.refusals`.
    """
    refuse_model(model)
    if has_shards(model):
        gather_nothing(model)  # so that the parameters are the shards, which are what moves
        refuse_other_types(model)
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise UnsupportedModel("no parameter of the model requires gradients; set requires_grad on those to train.")
    for name, parameter in found.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise UnsupportedModel(
                f"parameter {name!r} is {str(parameter.dtype).removeprefix('torch.')} and zeroth-order training needs"
                " fp32 masters; load the model with dtype=torch.float32, or call .float() on the trainable parameters"
                " (frozen ones may stay in half precision)."
            )
        if not local(parameter).is_contiguous():
            raise UnsupportedModel(f"parameter {name!r} is not contiguous in memory; replace it by a contiguous copy.")
    return found


def count(parameters: Mapping[str, Tensor], masks: Masks | None) -> int:
    """Number of coordinates that move, d (or the mask's k)."""
    if masks is not None:
        return sum(mask.index.numel() for mask in masks.values())
    return sum(p.numel() for p in parameters.values())


def check_masks(parameters: Mapping[str, Tensor], masks: Masks) -> None:
    """Refuse a mask of a parameter that is not trainable, or out of its bounds."""
    for name, mask in masks.items():
        if name not in parameters:
            raise InvalidValue(f"mask of parameter {name!r} names no trainable parameter; mask trainable ones only.")
        index = mask.index
        if index.numel() and (
            int(index[0]) < 0 or int(index[-1]) >= parameters[name].numel() or not bool((index.diff() > 0).all())
        ):
            raise InvalidValue(f"mask of parameter {name!r} must hold sorted, unique flat positions inside the tensor.")


def masks_digest(masks: Masks | None) -> str | None:
    """SHA-256 of a mask set, for the log; None for no mask."""
    if masks is None:
        return None
    digest = hashlib.sha256()
    for name, mask in sorted(masks.items()):
        digest.update(name.encode() + b"\0" + mask.index.cpu().numpy().astype("<i8").tobytes())
        if mask.weight is not None:
            digest.update(mask.weight.cpu().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def weights_digest(parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 of the trainable weights' bytes, by name; sharded ones are gathered one at a time."""
    digest = hashlib.sha256()
    for name, p in sorted(parameters.items()):
        digest.update(name.encode() + b"\0" + str(tuple(p.shape)).encode())
        digest.update(whole(p).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Moving(NamedTuple):
    """The coordinates of one tensor that move in this process: all of them, those under a mask, or those of a shard."""

    name: str
    flat: Tensor
    """This process's part, flattened, sharing its memory."""
    mask: Mask | None
    size: int
    start: int
    """Where the part begins in the flattened tensor: its direction is read from there."""


def moving(parameters: Mapping[str, Tensor], masks: Masks | None) -> Iterator[Moving]:
    """Every tensor that moves, in one fixed order."""
    for name, p in sorted(parameters.items()):
        flat = local(p).detach().view(-1)
        if masks is None:
            yield Moving(name, flat, None, flat.numel(), first_coordinate(p))
        elif name in masks and masks[name].index.numel():
            yield Moving(name, flat, masks[name], masks[name].index.numel(), 0)
