"""Find a loop's torch optimizers, note what they are handed, and restore their state with the weights."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

REPEATS = 3
"""Steps at which the movement of the weights is compared with what the optimizer makes of its gradients."""


class MovesMore(Exception):
    """Raised when weights move in another way than their optimizer moves them on the gradients it was handed."""


class Optimizers:
    """Optimizers that hold a model's weights, and what they are handed at a step.

    Parameters
    ----------
    moving : sequence of parameters
        Trainable weights.
    given : optimizer or None
        The optimizer; where None, those alive in the process that hold one of the weights.
    """

    def __init__(self, moving: Sequence[nn.Parameter], given: Any = None) -> None:
        self._moving = list(moving)
        self.each = _innermost(_holding(self._moving) if given is None else [given])
        self.schedules = [s for s in _alive("LRScheduler") if any(s.optimizer is o for o in self.each)]
        self.gradients: list[Tensor] | None = None
        self.rates: dict[int, float] = {}
        """Learning rate by the weight's identity, as last used."""
        self.called = 0
        self._watching, self._compared = False, 0
        for optimizer in self.each:
            optimizer.register_step_pre_hook(self._seen)

    @property
    def plain(self) -> bool:
        """Whether all are SGD without momentum, decay or schedule, so that the weights show the release themselves."""
        return not self.schedules and all(_is_plain(optimizer) for optimizer in self.each)

    def state(self) -> list[Any]:
        """Copies of what optimizers and schedules hold."""
        return [copy.deepcopy(each.state_dict()) for each in (*self.each, *self.schedules)]

    def put_back(self, states: Sequence[Any]) -> None:
        """Load such copies."""
        for each, state in zip((*self.each, *self.schedules), states, strict=True):
            each.load_state_dict(copy.deepcopy(state))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the gradients and rates of the optimizer steps inside."""
        self.gradients, self.called, self._watching = None, 0, True
        compare = not self.plain and self._compared < REPEATS
        before = ([p.detach().clone() for p in self._moving], self.state()) if compare else None
        try:
            yield
        finally:
            self._watching = False
        if before is not None and self.called == 1:
            self._compared += 1
            self._compare(*before)

    def _seen(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._watching:
            return
        self.called += 1
        own = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self._moving]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = [g if id(p) in held else torch.zeros_like(g) for p, g in zip(self._moving, own, strict=True)]
        self.gradients = own if self.gradients is None else [a + b for a, b in zip(self.gradients, own, strict=True)]
        for group in optimizer.param_groups:
            self.rates |= {id(p): float(group["lr"]) for p in group["params"]}

    def _compare(self, weights: list[Tensor], states: list[Any]) -> None:
        """Step again from the same state on the same gradients: the weights must come out where they did."""
        after, states_after = [p.detach().clone() for p in self._moving], self.state()
        held: list[Tensor | None] = [p.grad for p in self._moving]
        assert self.gradients is not None
        with torch.no_grad():
            for p, old, g in zip(self._moving, weights, self.gradients, strict=True):
                p.copy_(old)
                p.grad = g.clone()
        self.put_back(states)
        for optimizer in self.each:
            type(optimizer).step(optimizer)  # an engine may have replaced the method, so that of the class is called
        gap = math.sqrt(
            sum(float((p.detach() - q).double().square().sum()) for p, q in zip(self._moving, after, strict=True))
        )
        size = math.sqrt(sum(float((q - w).double().square().sum()) for q, w in zip(after, weights, strict=True)))
        with torch.no_grad():
            for p, q, kept in zip(self._moving, after, held, strict=True):
                p.copy_(q)
                p.grad = kept
        self.put_back(states_after)
        if gap > 1e-3 * size:
            raise MovesMore(
                f"the weights moved otherwise than their optimizer moves them on the gradients that it was handed (gap"
                f" {gap:.3g} of {size:.3g}); write an adapter whose release() returns what leaves the step"
            )


def _distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    pairs = zip(first, second, strict=True)
    return math.sqrt(sum(float((a.detach() - b).double().square().sum()) for a, b in pairs))


def _is_plain(optimizer: Any) -> bool:
    if not isinstance(optimizer, torch.optim.SGD):
        return False
    return not any(g.get("momentum") or g.get("weight_decay") or g.get("maximize") for g in optimizer.param_groups)


def _alive(kind: str) -> list[Any]:
    """All torch optimizers that the process holds."""
    base = torch.optim.Optimizer if kind == "Optimizer" else torch.optim.lr_scheduler.LRScheduler
    return [each for each in gc.get_objects() if issubclass(type(each), base)]


def _holding(moving: Sequence[nn.Parameter]) -> list[Any]:
    wanted = {id(p) for p in moving}
    found = []
    for optimizer in _alive("Optimizer"):
        groups: Sequence[Mapping[str, Any]] = getattr(optimizer, "param_groups", None) or ()
        if any(id(p) in wanted for group in groups for p in group["params"]):
            found.append(optimizer)
    return found


def _innermost(found: Sequence[Any]) -> list[Any]:
    """The optimizers that move the weights: of one that wraps another, the inner one."""
    inner: list[Any] = []
    for optimizer in found:
        while (wrapped := getattr(optimizer, "original_optimizer", None)) is not None:
            optimizer = wrapped
        if not any(optimizer is each for each in inner):
            inner.append(optimizer)
    return inner
