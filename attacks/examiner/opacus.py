"""Opacus as a step: its optimizer, loader and wrapped model, as ``PrivacyEngine.make_private`` returns them.

Nothing of Opacus is imported; the adapter calls what its users call: ``zero_grad``, a backward pass of the batch's
mean loss, ``optimizer.step()``, and the loader's own batch sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.attacks.examiner.adapter import Batch
from dpaudit.attacks.examiner.loop import LoopAdapter

ADAPTED = ("max_grad_norm", "sample_size", "unclipped_num")
"""Attributes in which an optimizer with an adaptive bound keeps it; they belong to a snapshot."""


class OpacusAdapter(LoopAdapter):
    """An Opacus training step, in any of its modes.

    Parameters
    ----------
    model, optimizer, loader : objects
        What ``make_private`` returned. Under an inner optimizer other than plain SGD the release is what that optimizer
        is handed.
    records : sequence
        The data set behind the loader; ``adversaries`` are further records by name.
    collate : callable
        List of records to a batch.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)``; reduced by the mean, as Opacus expects.
    adversaries : mapping, optional
        Further records by name.
    backward : callable or None
        ``backward(model, batch)`` runs the backward pass instead, as the wrapped criterion of ghost clipping does.
    physical_batch_size : int or None
        Cuts minibatches as ``BatchMemoryManager`` does: the optimizer's step is skipped for all parts but the last.
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
        backward: Callable[[nn.Module, Any], None] | None = None,
        physical_batch_size: int | None = None,
        rebuild: Callable[[int], OpacusAdapter] | None = None,
    ) -> None:
        self.optimizer, self._loader = optimizer, loader
        self._collate, self._loss_fn, self._own_backward = collate, loss_fn, backward
        self._rows, self._part = [*records, *(adversaries or {}).values()], physical_batch_size
        self._draws: Iterator[Batch] | None = None
        self._bounds: list[float] = []
        super().__init__(
            model, self._run, self._next, size=len(records), clean_step=self._without_noise, restart=self._begin,
            optimizer=optimizer,
            adversaries={name: len(records) + k for k, name in enumerate(adversaries or {})},
        )  # fmt: skip
        if rebuild is not None:
            setattr(self, "resized", rebuild)  # noqa: B010  # offered only where it was given
        assert self.blocks is not None
        self.blocks = tuple((name.removeprefix("_module."), count) for name, count in self.blocks)

    def snapshot(self) -> dict[str, Any]:
        """Copies of the weights, of the inner optimizer's state, and of a bound that adapts."""
        bound = {name: getattr(self.optimizer, name) for name in ADAPTED if hasattr(self.optimizer, name)}
        return super().snapshot() | {"bound": bound}

    def load(self, state: Mapping[str, Any], /) -> None:
        """Load them within one run."""
        super().load(state)
        for name, value in state["bound"].items():
            setattr(self.optimizer, name, value)

    def bounds(self) -> list[float]:
        """Clipping bounds in force at the steps of this run."""
        return list(self._bounds)

    def _begin(self) -> None:
        """The loader starts a new epoch."""
        self._draws, self._bounds = None, []

    def _next(self) -> Batch:
        """The loader's next minibatch, over as many epochs as are asked for."""
        if self._draws is None:
            self._draws = self._epochs()
        return next(self._draws)

    def _epochs(self) -> Iterator[Batch]:
        while True:
            yield from self._loader.batch_sampler

    def _run(self, indices: Batch) -> None:
        """One step."""
        bound = getattr(self.optimizer, "max_grad_norm", None)
        if bound is not None and not isinstance(bound, Sequence):  # one for each layer does not adapt
            self._bounds.append(float(bound))
        self.optimizer.zero_grad()
        size = self._part or max(len(indices), 1)
        parts = [list(indices[k : k + size]) for k in range(0, len(indices), size)] or [[]]
        for place, part in enumerate(parts):
            if self._part:
                self.optimizer.signal_skip_step(do_skip=place < len(parts) - 1)
            self._back(part)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _back(self, indices: Sequence[int]) -> None:
        rows = [self._rows[i] for i in indices]
        batch = self._collate(rows or [self._rows[0]])
        if not rows:  # what Opacus' loader does for an empty draw: tensors of length zero through the model
            batch = {name: values[:0] for name, values in batch.items()}
        if self._own_backward is not None:
            self._own_backward(self.model, batch)
            return
        losses = self._loss_fn(self.model, batch)
        torch.autograd.backward(losses.mean() if rows else losses.sum())

    def _without_noise(self, indices: Batch) -> None:
        """Run the step with a noise multiplier of zero."""
        held, self.optimizer.noise_multiplier = self.optimizer.noise_multiplier, 0.0
        try:
            self._run(indices)
        finally:
            self.optimizer.noise_multiplier = held
