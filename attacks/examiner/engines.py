"""Adapters for engines attached to a torch optimizer (fastDP, private-transformers) and for Hugging Face trainers.

Nothing of those libraries is imported: the adapters call what their users call. What leaves the step is what the
optimizer is handed, or the movement of the weights where the optimizer is plain SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.attacks.examiner.adapter import Batch
from dpaudit.attacks.examiner.loop import LoopAdapter
from dpaudit.privacy.errors import InvalidValue


class EngineAdapter(LoopAdapter):
    """A privacy engine attached to a torch optimizer, as fastDP and private-transformers have it.

    Parameters
    ----------
    model : nn.Module
    engine : object
        The engine; ``noise_multiplier`` (or ``noise`` names another attribute) is set to 0 for the step without noise.
    optimizer : torch optimizer
        As the engine left it.
    records : sequence
    collate : callable
        List of records to a batch.
    loss_fn : callable
        ``loss_fn(model, batch) -> (B,)``.
    draw : callable
        Record numbers of the run's next minibatch.
    adversaries : mapping
        Further records by name.
    hand_over : bool
        Whether ``optimizer.step(loss=losses)`` takes the losses and runs the backward pass itself, as in
        private-transformers; otherwise the mean loss is sent backward and ``optimizer.step()`` follows.
    noise : str, default="noise_multiplier"
        Attribute of the engine that holds σ.
    restart : callable or None
        Called when a snapshot is put back, to draw afresh what a new process draws afresh.

    Raises
    ------
    InvalidValue
        If the engine has no attribute ``noise``.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: Any,
        optimizer: Any,
        records: Sequence[Any],
        *,
        collate: Callable[[list[Any]], Any],
        loss_fn: Callable[[nn.Module, Any], Tensor],
        draw: Callable[[], Batch],
        adversaries: Mapping[str, Any] | None = None,
        hand_over: bool = False,
        noise: str = "noise_multiplier",
        restart: Callable[[], None] | None = None,
    ) -> None:
        if not hasattr(engine, noise):
            raise InvalidValue(f"noise={noise!r} is no attribute of {type(engine).__name__}; name the one of σ.")
        rows = [*records, *(adversaries or {}).values()]

        def step(indices: Batch) -> None:
            optimizer.zero_grad()
            losses = loss_fn(model, collate([rows[i] for i in indices]))
            if hand_over:
                optimizer.step(loss=losses)
            else:
                torch.autograd.backward(losses.mean())
                optimizer.step()
            optimizer.zero_grad()

        def clean_step(indices: Batch) -> None:
            with _set(engine, noise, 0.0):
                step(indices)

        super().__init__(
            model, step, draw, size=len(records), clean_step=clean_step, restart=restart, optimizer=optimizer,
            adversaries={name: len(records) + k for k, name in enumerate(adversaries or {})},
        )  # fmt: skip


class TrainerAdapter(LoopAdapter):
    """A Hugging Face ``Trainer`` or a relative: its own training step, its own optimizer, its own sampler.

    Parameters
    ----------
    trainer : object
        With ``model``, ``training_step``, ``data_collator`` and ``create_optimizer``.
    records : sequence
        The training set; ``adversaries`` are further records by name.
    silence : callable
        ``silence()`` is a context manager in which the trainer adds no noise.
    adversaries : mapping, optional
        Further records by name.
    clip : float or None
        ``max_grad_norm`` that the trainer's loop applies to the whole gradient between its training step and its
        optimizer's; taken from ``trainer.args`` by default.
    restart : callable or None
        Called when a snapshot is put back, to draw afresh what a new process draws afresh.
    """

    def __init__(
        self,
        trainer: Any,
        records: Sequence[Any],
        *,
        silence: Callable[[], Any],
        adversaries: Mapping[str, Any] | None = None,
        clip: float | None = None,
        restart: Callable[[], None] | None = None,
    ) -> None:
        if trainer.optimizer is None:
            trainer.create_optimizer()
        if not hasattr(trainer, "current_gradient_accumulation_steps"):  # which train() sets before its first step
            trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        model, rows = trainer.model, [*records, *(adversaries or {}).values()]
        bound = trainer.args.max_grad_norm if clip is None else clip
        self._trainer = trainer
        self._drawn: Iterator[Batch] | None = None

        def step(indices: Batch) -> None:
            model.train()
            batch = trainer.data_collator([rows[i] for i in indices])
            trainer.training_step(model, batch)
            if bound:
                nn.utils.clip_grad_norm_(model.parameters(), bound)
            trainer.optimizer.step()
            model.zero_grad()

        def clean_step(indices: Batch) -> None:
            with silence():
                step(indices)

        super().__init__(
            model, step, self._next, size=len(records), clean_step=clean_step, restart=restart,
            optimizer=trainer.optimizer,
            adversaries={name: len(records) + k for k, name in enumerate(adversaries or {})},
        )  # fmt: skip

    def _next(self) -> list[int]:
        """Record numbers by the trainer's own loader: its batch sampler, epoch after epoch."""
        if self._drawn is None:
            self._drawn = self._epochs()
        return [int(i) for i in next(self._drawn)]

    def _epochs(self) -> Iterator[Batch]:
        while True:
            yield from self._trainer.get_train_dataloader().batch_sampler


@contextmanager
def _set(target: Any, name: str, value: Any) -> Any:
    held = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, held)
