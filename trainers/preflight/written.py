"""Refuse, before the first step, a model whose forward pass keeps something of the records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.trainers.distributed.shards import has_shards, local
from dpaudit.trainers.preflight.randomness import still_randomness
from dpaudit.trainers.state import ModelState


def refuse_running_statistics(model: nn.Module) -> None:
    """Refuse norms that mix a batch's examples or keep running statistics of them, by name.

    Raises
    ------
    PrivacyRefusal
        With what to put in their place.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            continue
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if mixes and (module.training or not module.track_running_stats):
            raise PrivacyRefusal(
                f"module {name!r} ({type(module).__name__}) mixes the examples of a batch and keeps statistics without"
                " noise; replace it by GroupNorm or LayerNorm, or freeze it in eval mode."
            )
        if module.training and module.track_running_stats:
            raise PrivacyRefusal(
                f"module {name!r} ({type(module).__name__}) keeps running statistics of the records without noise;"
                " build it with track_running_stats=False, or freeze it in eval mode."
            )


def refuse_written_state(
    model: nn.Module, twins: tuple[Any, Any], losses: Callable[[Any], Tensor], start: list[ModelState]
) -> None:
    """Refuse a buffer, attribute or parameter that a forward pass writes, by name; everything is put back.

    Forwards run in the model's own modes over two batches of one shape, each from the state at the ``start``. A cache
    that depends on that shape alone is the same after both, and after a second look at the first; a statistic of the
    records, or a count, is not.

    Raises
    ------
    PrivacyRefusal
        Names the first place written and the way out.
    """
    refuse_exchanged(start)
    weights = {name: (p, p._version, _print(p)) for name, p in model.named_parameters()}
    after: list[list[ModelState]] = []
    try:
        for number, batch in enumerate((twins[0], twins[1], twins[0])):
            if number < 2:
                for state in start:
                    state.restore()
            with still_randomness():
                losses(batch)
            refuse_exchanged(start)
            after.append([ModelState(state.model) for state in start])
        for state, first, second, third in zip(start, *after, strict=True):
            if names := first.differs(second) or second.differs(third):
                raise _refusal("state", names[0], state.model)
        now = dict(model.named_parameters())
        for name, (p, version, printed) in weights.items():
            if now.get(name) is not p and not has_shards(model):  # shards are other objects while they are gathered
                raise _refusal("parameter", name, model)
            if p._version != version or _print(p) != printed:
                raise _refusal("parameter", name, model)
    finally:
        for state in start:
            state.restore()


def refuse_exchanged(start: list[ModelState]) -> None:
    """Refuse a forward pass that put another module in the place of one, by name.

    Which module computes would then follow from the records of earlier batches, such as from their length.

    Raises
    ------
    PrivacyRefusal
        With what to set so that the module stays.
    """
    for state in start:
        if names := state.exchanged():
            raise PrivacyRefusal(
                f"the forward pass puts another module in the place of {names[0]!r}, so that what the model computes"
                " depends on the batches before; choose the form in its configuration before training (for BigBird:"
                " attention_type='original_full')."
            )


def _refusal(what: str, name: str, root: nn.Module) -> PrivacyRefusal:
    owner = name.rpartition(".")[0]
    modules = dict(root.named_modules())
    while owner not in modules:
        owner = owner.rpartition(".")[0]
    return PrivacyRefusal(
        f"{what} {name!r} ({type(modules[owner]).__name__}) is written by the forward pass, so that it would leave with"
        " the model as a noise-free function of the records and carry them into later losses; do not keep it, or freeze"
        " it (eval mode, track_running_stats=False)."
    )


@torch.no_grad()
def _print(parameter: Tensor) -> tuple[float, float]:
    """Two sums that tell a changed tensor from an unchanged one, without a copy of it."""
    if parameter.numel() == 0 or not parameter.is_floating_point():
        return 0.0, 0.0
    wide = local(parameter).detach()
    return float(wide.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(wide, dtype=torch.float64))
