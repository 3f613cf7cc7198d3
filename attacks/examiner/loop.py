"""A plain PyTorch loop as a step: functions and a model whose weights, or whose optimizer, show the release."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dpaudit.attacks.examiner.adapter import Batch, StepAdapter, Vector
from dpaudit.attacks.examiner.optimizers import Optimizers
from dpaudit.privacy.errors import InvalidValue

OPTIONAL = ("resized", "ledger", "published", "resume", "run", "draws", "fix", "state")
"""Methods of :class:`StepAdapter` that may be handed in."""


class LoopAdapter(StepAdapter):
    """A plain PyTorch loop as a step: two functions and a model.

    Parameters
    ----------
    model : nn.Module
        The released vector is (weights before − weights after) / rate. Where the loop calls a torch optimizer that does
        more than that, with momentum, weight decay or adaptive rates, it is what that optimizer is handed as gradients.
    step : callable
        ``step(indices)`` trains one step on these records, its own noise included.
    draw : callable
        ``draw()`` gives the record numbers of the run's next minibatch.
    size : int
        Number of ordinary records.
    clean_step : callable or None
        ``step`` with the noise off.
    restart : callable or None
        Called when a snapshot is put back, to draw afresh what a new process draws afresh.
    learning_rate : float or callable
        Rate of a loop that moves its weights itself; a function gives the rate of the step about to run. An optimizer
        that the loop calls is asked for its own.
    optimizer : torch optimizer, optional
        The optimizer of these weights; those alive in the process are found by themselves. Its state, and that of its
        schedule, belongs to the snapshot.
    adversaries : mapping
        Numbers of adversarial records (beyond ``size``); :class:`LossFactors` makes some for any loss.
    **more
        Any optional method of :class:`StepAdapter`, such as ``resized`` or ``ledger``.

    Raises
    ------
    InvalidValue
        If ``more`` names a method that the examiner does not know.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[Batch], None],
        draw: Callable[[], Batch],
        *,
        size: int,
        clean_step: Callable[[Batch], None] | None = None,
        restart: Callable[[], None] | None = None,
        learning_rate: float | Callable[[], float] = 1.0,
        optimizer: Any = None,
        adversaries: Mapping[str, int] | None = None,
        **more: Callable[..., Any],
    ) -> None:
        self.model, self.size = model, size
        self._step, self._draw, self._clean_step, self._restart = step, draw, clean_step, restart
        self._rate = learning_rate
        self.adversaries = dict(adversaries or {})
        self._moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.blocks = tuple((name, p.numel()) for name, p in self._moving.items())
        self._optimizers = Optimizers(list(self._moving.values()), optimizer)
        self._last_norm = 0.0
        if clean_step is not None:
            setattr(self, "clean", self._clean)  # noqa: B010  # offered only where it was given
        for name, method in more.items():
            if name not in OPTIONAL:
                raise InvalidValue(f"method {name!r} is unknown to the examiner; see StepAdapter for the names.")
            setattr(self, name, method)

    def snapshot(self) -> dict[str, Any]:
        """Copies of the weights, the buffers, and the state of the optimizer."""
        model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {"model": model, "optimizers": self._optimizers.state()}

    def restore(self, state: Mapping[str, Any], /) -> None:
        """Load them, and restart what a new process restarts."""
        self.load(state)
        if self._restart is not None:
            self._restart()

    def load(self, state: Mapping[str, Any], /) -> None:
        """Load them within one run."""
        self.model.load_state_dict(state["model"])
        self._optimizers.put_back(state["optimizers"])

    def draw(self) -> Batch:
        """The loop's next minibatch."""
        return self._draw()

    def release(self, indices: Batch, /) -> Vector:
        """One step."""
        return self._moved(self._step, indices)

    def weights(self) -> Vector:
        """The weights, in the order of the release."""
        return _flat(self._moving.values())

    def state(self) -> dict[str, Vector]:
        """Buffers of the model, such as running statistics: they leave with the weights."""
        found = ((name, b) for name, b in self.model.named_buffers() if b.is_floating_point() and b.numel())
        return {name: np.asarray(b.detach().double().cpu().numpy()) for name, b in found}

    @property
    def rounding(self) -> float:  # type: ignore[override]  # it follows the weights
        """Largest error of a released vector: half of the spacing of the weights it is read from, over the rate."""
        if not self._optimizers.plain:
            eps = max(torch.finfo(p.dtype).eps for p in self._moving.values())
            return eps / 2 * self._last_norm
        total = 0.0
        for p in self._moving.values():
            size = p.detach().abs().double().clamp_min(torch.finfo(p.dtype).tiny)
            spacing = torch.finfo(p.dtype).eps * torch.exp2(torch.floor(torch.log2(size)))
            total += float((spacing / 2 / self._rate_of(p)).square().sum())
        # Errors of many coordinates add like independent ones, whose mean square is a third of the square of the
        # largest.
        many = sum(p.numel() for p in self._moving.values())
        return min(1.0, (1 + 3 / math.sqrt(many)) / math.sqrt(3)) * 1.2 * math.sqrt(total)

    def _rate_of(self, p: nn.Parameter) -> float:
        if self._optimizers.called:
            return float(self._optimizers.rates.get(id(p), 1.0))
        return float(self._rate() if callable(self._rate) else self._rate)

    def _clean(self, indices: Batch, /) -> Vector:
        assert self._clean_step is not None
        return self._moved(self._clean_step, indices)

    def _moved(self, step: Callable[[Batch], None], indices: Batch) -> Vector:
        watch = self._optimizers
        before = [p.detach().clone() for p in self._moving.values()]
        rate = self._rate() if callable(self._rate) else self._rate
        with watch.watched():
            step(indices)
        if watch.called and not watch.plain:
            assert watch.gradients is not None
            released = _flat(watch.gradients)
        else:
            parts = []
            for p, old in zip(self._moving.values(), before, strict=True):
                own = watch.rates.get(id(p), rate) if watch.called else rate
                parts.append((old.double() - p.detach().double()) / own)
            released = _flat(parts)
        self._last_norm = max(self._last_norm, float(np.linalg.norm(released)))
        return released


def _flat(parts: Any) -> Vector:
    joined = torch.cat([part.detach().double().flatten() for part in parts])
    return np.asarray(joined.cpu().numpy(), dtype=np.float64)
