"""Opacus as a step: its optimizer, loader and wrapped model, as ``PrivacyEngine.make_private`` returns them.

Nothing of Opacus is imported; the adapter calls what its users call: ``zero_grad``, a backward pass of the batch's
mean loss, ``optimizer.step()``, and the loader's own batch sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.attacks.examiner.adapter import Batch, StepAdapter, Vector
from dpaudit.privacy.errors import InvalidValue


class OpacusAdapter(StepAdapter):
    """An Opacus training step.

    Parameters
    ----------
    model, optimizer, loader : objects
        What ``make_private`` returned. The inner optimizer must be plain SGD, so that the weights show the release.
    records : sequence
        The data set behind the loader; ``adversaries`` are further records by name.
    collate : callable
        List of records to a batch.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)``; reduced by the mean, as Opacus expects.
    rebuild : callable or None
        ``rebuild(n)`` makes the adapter anew on the first n records, for the test of the normaliser.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        loader: Any,
        records: Sequence[Any],
        *,
        collate: Callable[[list[Any]], Any],
        loss_fn: Callable[[nn.Module, Any], Tensor],
        adversaries: Mapping[str, Any] | None = None,
        rebuild: Callable[[int], OpacusAdapter] | None = None,
    ) -> None:
        groups = optimizer.param_groups
        if len(groups) != 1 or groups[0].get("momentum") or groups[0].get("weight_decay"):
            raise InvalidValue("optimizer must be plain SGD in one group, so that the weights show the release.")
        self.model, self.optimizer, self._loader = model, optimizer, loader
        self._rate, self._collate, self._loss_fn = groups[0]["lr"], collate, loss_fn
        self.size = len(records)
        self._rows = [*records, *(adversaries or {}).values()]
        self.adversaries = {name: self.size + k for k, name in enumerate(adversaries or {})}
        self._moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.blocks = tuple((name.removeprefix("_module."), p.numel()) for name, p in self._moving.items())
        self._draws: Iterator[Batch] | None = None
        if rebuild is not None:
            setattr(self, "resized", rebuild)  # noqa: B010  # offered only where it was given

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the weights."""
        return {name: p.detach().clone() for name, p in self._moving.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Load them; the loader starts a new epoch."""
        for name, p in self._moving.items():
            p.copy_(state[name])
        self._draws = None

    def draw(self) -> Batch:
        """The loader's next minibatch, over as many epochs as are asked for."""
        if self._draws is None:
            self._draws = self._epochs()
        return next(self._draws)

    def _epochs(self) -> Iterator[Batch]:
        while True:
            yield from self._loader.batch_sampler

    def release(self, indices: Batch, /) -> Vector:
        """One step."""
        before = self._flat()
        self.optimizer.zero_grad()
        rows = [self._rows[i] for i in indices]
        if rows:
            loss = self._loss_fn(self.model, self._collate(rows)).mean()
        else:
            # what Opacus' loader does for an empty draw: tensors of length zero through the model
            batch = self._collate([self._rows[0]])
            empty = {k: v[:0] for k, v in batch.items()}
            loss = self._loss_fn(self.model, empty).sum()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return np.asarray((before - self._flat()) / self._rate, dtype=np.float64)

    def clean(self, indices: Batch, /) -> Vector:
        """The same with a noise multiplier of zero."""
        held, self.optimizer.noise_multiplier = self.optimizer.noise_multiplier, 0.0
        try:
            return self.release(indices)
        finally:
            self.optimizer.noise_multiplier = held

    def _flat(self) -> Vector:
        parts = [p.detach().double().flatten() for p in self._moving.values()]
        return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float64)
