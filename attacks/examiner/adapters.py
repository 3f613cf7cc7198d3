"""Ready adapters for this library's trainers, handed in as callables."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit import Ledger, MemoryJournal
from dpaudit.attacks.examiner.adapter import FACTORS, Batch, Movement, Vector
from dpaudit.privacy.errors import InvalidValue


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """A task's record with a factor on its loss."""

    record: Any
    factor: float = 1.0


class _Silent:
    """Zeros instead of noise."""

    is_test = True

    def sample(self, shape: Sequence[int], std: float, device: Any = "cpu") -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.float32, device=device)


class _Script:
    """Minibatches given beforehand."""

    is_test = True

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = iter(batches)

    def draw(self) -> NDArray[np.int64]:
        return np.asarray(next(self._batches), dtype=np.int64).reshape(-1)


def _one_weight() -> nn.Module:
    """A model for runs of which only the minibatches are wanted: no sampler may depend on the weights."""
    return nn.Linear(1, 1, bias=False)


class _NoGradients:
    """A clipper for runs of which only the minibatches are wanted."""

    def backward(self, losses: Tensor) -> Tensor:
        return losses.detach()


def _without_preflight(train: Callable[..., Any]) -> dict[str, Any]:
    """An examination measures the step as it is; a trainer of this library would refuse some faults beforehand."""
    return {"preflight": False} if "preflight" in inspect.signature(train).parameters else {}


class _TrainerPlan(Protocol):
    """What these adapters read of a plan of our trainers."""

    @property
    def draws_units(self) -> bool: ...
    @property
    def target_epsilon(self) -> float | None: ...
    @property
    def noise_multiplier(self) -> float | None: ...


def _in_units(plan: _TrainerPlan, rows: Sequence[_Record]) -> tuple[Sequence[_Record], dict[str, Any]]:
    """Records as units of privacy, where the plan draws whole units: each is a unit of two rows, itself and a copy.

    What a unit adds is then what the record alone would, unless its rows are clipped apart or another unit's are among
    them; with one row for each unit neither would show.
    """
    if not plan.draws_units:
        return rows, {}
    numbers = list(range(len(rows)))
    return [*rows, *rows], {"units": numbers + numbers}


def _drawn(plan: _TrainerPlan, indices: Sequence[int], rows: int) -> tuple[int, ...]:
    """The records of a minibatch, of each the number that it was given; in order where units were drawn."""
    if not plan.draws_units:
        return tuple(indices)
    return tuple(sorted({i % rows for i in indices}))


@dataclasses.dataclass(slots=True)
class _Trace:
    vectors: list[Vector] = dataclasses.field(default_factory=list)
    batches: list[tuple[int, ...]] = dataclasses.field(default_factory=list)


def _without_target(plan: Any) -> Any:
    """The plan without the ε that it aims at: an examination runs other numbers of steps, which may well miss it."""
    if plan.target_epsilon is None or plan.noise_multiplier is None:
        return plan
    return dataclasses.replace(plan, target_epsilon=None)


class _TrainerAdapter:
    """What the adapters of our two trainers share: records with factors, the journal, one run per question."""

    def __init__(
        self,
        train: Callable[..., Any],
        model: nn.Module,
        records: Sequence[Any],
        *,
        collate: Callable[[list[Any]], Any],
        loss_fn: Callable[[nn.Module, Any], Tensor],
        special: Mapping[str, Any] | None,
        options: Mapping[str, Any] | None,
    ) -> None:
        if len(records) < 8:
            raise InvalidValue(f"records={len(records)} must be at least 8 for an examination; give more.")
        self._train, self.model = train, model
        self._collate, self._loss_fn = collate, loss_fn
        self._options = {**_without_preflight(train), **(options or {})}
        self._special = dict(special or {})
        self._plain = list(records)
        self.size = len(self._plain)
        rows = [_Record(record) for record in self._plain]
        self.adversaries: dict[str, int] = {}
        for name, record in self._special.items():
            self.adversaries[name] = len(rows)
            rows.append(_Record(record))
        for name, factor in FACTORS.items():
            self.adversaries[name] = len(rows)
            rows.append(_Record(self._plain[0], factor))
        self._rows = rows
        self._journal = MemoryJournal()
        self._published: dict[str, float] = {}

    def _on_first(self, size: int) -> dict[str, Any]:
        """What this was made with, but for the first ``size`` records alone."""
        return {
            "train": self._train, "model": self.model, "records": self._plain[:size], "collate": self._collate,
            "loss_fn": self._loss_fn, "special": self._special, "options": self._options,
        }  # fmt: skip

    # -- what a checkpoint holds -----------------------------------------------------------------------------------
    def snapshot(self) -> dict[str, Tensor]:
        """Copies of the weights."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor], /) -> None:
        """Load the weights; every run makes its noise and sampler anew."""
        self.model.load_state_dict(state)

    # -- the four calls and their relatives ------------------------------------------------------------------------
    def draw(self) -> tuple[int, ...]:
        """One minibatch by the trainer's own sampler."""
        return self.draws(1)[0]

    def draws(self, count: int) -> list[tuple[int, ...]]:
        """Minibatches of ``count`` consecutive steps of one run."""
        return self._run(None, count, draws_only=True).batches

    def release(self, indices: Batch, /) -> Vector:
        """One step with its own noise."""
        return self._run([indices], 1).vectors[0]

    def clean(self, indices: Batch, /) -> Vector:
        """One step with zeros for noise."""
        return self._run([indices], 1, clean=True).vectors[0]

    def run(self, batches: Sequence[Batch]) -> Vector:
        """Consecutive steps of one run, (steps, d)."""
        return np.stack(self._run(batches, len(batches)).vectors)

    def ledger(self) -> Ledger:
        """Everything counted in all runs so far."""
        return self._as_ledger(self._journal)

    def published(self) -> dict[str, float]:
        """Numbers beside the release: what a callback may publish."""
        return dict(self._published)

    def _as_ledger(self, journal: MemoryJournal) -> Ledger:
        return Ledger(stages=journal.ledger_stages(), relation=self._relation)

    @property
    def _relation(self) -> Any:
        raise NotImplementedError

    def _collated(self, rows: list[_Record]) -> dict[str, Any]:
        return {
            "batch": self._collate([row.record for row in rows]),
            "factor": torch.tensor([row.factor for row in rows], dtype=torch.float64),
        }

    def _losses(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        losses = self._loss_fn(model, batch["batch"])
        factor: Tensor = batch["factor"].to(losses.dtype)
        # 1 is not multiplied in, so that ordinary records run exactly as they do without the examiner
        return torch.where(factor == 1, losses, losses * factor)

    def _rows_and_arguments(
        self, batches: Sequence[Batch] | None, *, silent: bool
    ) -> tuple[Sequence[_Record], dict[str, Any]]:
        """Rows and arguments: the records alone where the trainer draws, all rows where minibatches are given."""
        rows: Sequence[_Record] = self._rows if batches is not None else self._rows[: self.size]
        arguments: dict[str, Any] = {} if batches is None else {"sampler": _Script(batches)}
        return rows, arguments | ({"noise": _Silent()} if silent else {})

    def _run(
        self, batches: Sequence[Batch] | None, steps: int, *, clean: bool = False, draws_only: bool = False
    ) -> _Trace:
        raise NotImplementedError


class FirstOrderAdapter(_TrainerAdapter):
    """``dpaudit.trainers.train`` (handed in) as a step: the released vector is the movement of the weights.

    Parameters
    ----------
    train : callable
        ``dpaudit.trainers.train``, or a function of its signature.
    model, records, plan, collate, loss_fn
        As ``train`` takes them; the model is moved and put back.
    optimizer : object
        Settings of plain SGD with a constant learning rate of 1, so that the weights move by minus the release.
    special : mapping, optional
        Adversarial records of the task by name, such as {"empty label": …}; losses scaled by ``FACTORS`` are
        added to them.
    options : mapping, optional
        Further arguments of ``train``, such as ``physical_batch_size``.

    Raises
    ------
    InvalidValue
        If the optimizer is anything but SGD with a learning rate of 1.
    """

    def __init__(
        self,
        train: Callable[..., Any],
        model: nn.Module,
        records: Sequence[Any],
        plan: Any,
        *,
        collate: Callable[[list[Any]], Any],
        loss_fn: Callable[[nn.Module, Any], Tensor],
        optimizer: Any,
        special: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(train, model, records, collate=collate, loss_fn=loss_fn, special=special, options=options)
        if getattr(optimizer, "algorithm", "") != "sgd" or getattr(optimizer, "learning_rate", 0) != 1:
            raise InvalidValue(
                "optimizer must be plain SGD with learning_rate=1, so that the weights show the release."
            )
        self._plan, self._optimizer = plan, optimizer
        self._moving = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.blocks = tuple((name, p.numel()) for name, p in self._moving.items())

    @property
    def _relation(self) -> Any:
        return self._plan.relation

    def resized(self, size: int) -> FirstOrderAdapter:
        """The same on the first ``size`` records."""
        return FirstOrderAdapter(plan=self._plan, optimizer=self._optimizer, **self._on_first(size))

    def resume(self, before: int, after: int) -> Ledger:
        """Steps counted by a run of ``before`` steps and its continuation by ``after``."""
        journal, start = MemoryJournal(), self.snapshot()
        plan = dataclasses.replace(self._plan, steps=before)
        rest = dataclasses.replace(self._plan, steps=before + after)
        first = self._call(plan, journal, self._rows[: self.size], sampler=_Script([()] * before))
        self._call(
            rest, journal, self._rows[: self.size], sampler=_Script([()] * after),
            start_step=before, optimizer_state=first.optimizer_state,
        )  # fmt: skip
        self.restore(start)
        return self._as_ledger(journal)

    def _run(
        self, batches: Sequence[Batch] | None, steps: int, *, clean: bool = False, draws_only: bool = False
    ) -> _Trace:
        trace = _Trace()
        held = None if draws_only else self._flat()
        rows, extra = self._rows_and_arguments(batches, silent=clean or draws_only)

        def callback(report: Any) -> None:
            nonlocal held
            trace.batches.append(_drawn(self._plan, report.private.indices, len(rows)))
            self._published = {"clipping_norm": float(report.clipping_norm)}
            if held is not None:
                moved = self._flat()
                trace.vectors.append(held - moved)
                held = moved

        if draws_only and self._plan.clipping != "adaptive":
            extra |= {"clipper": _NoGradients(), "collate": len, "loss_fn": lambda model, size: torch.zeros(size)}
            extra["model"] = _one_weight()
        self._call(dataclasses.replace(self._plan, steps=steps), self._journal, rows, callback=callback, **extra)
        return trace

    def _call(self, plan: Any, journal: MemoryJournal, rows: Sequence[_Record], **extra: Any) -> Any:
        arguments = {
            "collate": self._collated, "loss_fn": self._losses, "optimizer": self._optimizer, **self._options, **extra,
        }  # fmt: skip
        rows, units = _in_units(plan, rows)
        return self._train(
            arguments.pop("model", self.model), rows, _without_target(plan), journal=journal, **units, **arguments
        )

    def _flat(self) -> Vector:
        parts = [p.detach().double().flatten() for p in self._moving.values()]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


class ZerothOrderAdapter(_TrainerAdapter):
    """``dpaudit.trainers``' zeroth-order loop (handed in) as a step: the released vector is the P noisy slopes.

    Parameters
    ----------
    train : callable
        ``zo_train``, or a function of its signature.
    stage : object
        A ``ZOStage``: the plan with C, σ, P and clip, and the rates.
    directions : object
        The public directions of the run.
    model, records, collate, loss_fn, special, options
        As for :class:`FirstOrderAdapter`.
    """

    def __init__(
        self,
        train: Callable[..., Any],
        model: nn.Module,
        records: Sequence[Any],
        stage: Any,
        *,
        collate: Callable[[list[Any]], Any],
        loss_fn: Callable[[nn.Module, Any], Tensor],
        directions: Any,
        special: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(train, model, records, collate=collate, loss_fn=loss_fn, special=special, options=options)
        self._stage, self._directions = stage, directions

    @property
    def _relation(self) -> Any:
        return self._stage.plan.relation

    def resized(self, size: int) -> ZerothOrderAdapter:
        """The same on the first ``size`` records."""
        return ZerothOrderAdapter(stage=self._stage, directions=self._directions, **self._on_first(size))

    def resume(self, before: int, after: int) -> Ledger:
        """Steps counted by a run of ``before`` steps and its continuation by ``after``."""
        journal, start = MemoryJournal(), self.snapshot()
        first = self._call(before + after, journal, self._rows, sampler=_Script([()] * before), stop=(0, before))
        self._call(
            before + after, journal, self._rows, sampler=_Script([()] * after), start=(0, before), state=first.state
        )
        self.restore(start)
        return self._as_ledger(journal)

    def movements(self, steps: int) -> list[Any]:
        """Steps on empty minibatches: what moved, and what the released numbers and the directions call for."""
        trail, released = [self._weights()], []

        def callback(report: Any) -> None:
            trail.append(self._weights())
            released.append(report.released)

        done = self._call(steps, MemoryJournal(), self._rows, sampler=_Script([()] * steps), callback=callback)
        rate, pull, found = self._stage.learning_rate, self._stage.proximal, []
        for step, numbers in enumerate(released):
            mean = sum(g * self._direction(step, p, done.state) for p, g in enumerate(numbers)) / len(numbers)
            live = self._direction(step, 0, done.state) != 0
            back = np.where(live, rate * pull * (trail[step] - trail[0]), 0.0)
            found.append(Movement(trail[step + 1] - trail[step], -rate * mean, -back))
        return found

    def executed_scale(self, direction: int = 0) -> float:
        """Distance of the two evaluations along a direction over the planned one, by a loss that reads the weights."""
        first = self._call(1, MemoryJournal(), self._rows, sampler=_Script([()]), noise=_Silent())
        v = self._direction(0, direction, first.state)
        size = 0.01 * self._stage.plan.clipping_norm / float(v @ v)
        start = self._weights()

        def along(model: nn.Module, rows: list[_Record]) -> Tensor:
            return torch.tensor([size * float(v @ (self._weights() - start))], dtype=torch.float64)

        seen: list[float] = []
        self._call(
            1, MemoryJournal(), self._rows, sampler=_Script([(0,)]), noise=_Silent(), collate=list, loss_fn=along,
            perturbation_mode="in_place", physical_batch_size=1,
            callback=lambda report: seen.append(report.released[direction]),
        )  # fmt: skip
        return float(seen[0] * self._stage.plan.normaliser / (0.01 * self._stage.plan.clipping_norm))

    def _weights(self) -> Vector:
        parts = [p.detach().double().flatten() for p in self.model.parameters() if p.requires_grad]
        return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float64)

    def _direction(self, step: int, number: int, state: Mapping[str, Any]) -> Vector:
        """One public direction over all weights, zero where the mask holds them."""
        parts = []
        for name, p in self.model.named_parameters():
            if not p.requires_grad:
                continue
            index = state["mask_index"].get(name) if state["masked"] else None
            if state["masked"] and index is None:
                parts.append(torch.zeros(p.numel(), dtype=torch.float64))
                continue
            size = p.numel() if index is None else len(index)
            values = self._directions.values(step=step, direction=number, tensor=name, size=size).double()
            if index is not None:
                weight = state["mask_weight"].get(name)
                values = values if weight is None else values * weight
                values = torch.zeros(p.numel(), dtype=torch.float64).index_copy(0, index, values)
            parts.append(values)
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)

    def _run(
        self, batches: Sequence[Batch] | None, steps: int, *, clean: bool = False, draws_only: bool = False
    ) -> _Trace:
        trace = _Trace()
        rows, extra = self._rows_and_arguments(batches, silent=clean)

        def callback(report: Any) -> None:
            trace.vectors.append(np.asarray(report.released, dtype=np.float64))
            trace.batches.append(_drawn(self._stage.plan, report.private.indices, len(rows)))

        if draws_only:
            extra |= {"collate": len, "loss_fn": lambda model, size: torch.zeros(size), "model": _one_weight()}
        self._call(steps, self._journal, rows, callback=callback, **extra)
        return trace

    def _call(self, steps: int, journal: MemoryJournal, rows: Sequence[_Record], **extra: Any) -> Any:
        stage = dataclasses.replace(
            self._stage, plan=_without_target(dataclasses.replace(self._stage.plan, steps=steps))
        )
        model = extra.pop("model", self.model)
        if model is not self.model:
            stage = dataclasses.replace(stage, mask=None, proximal=0.0)  # its weights have other names
        arguments = {
            "collate": self._collated, "loss_fn": self._losses, "directions": self._directions, **self._options,
            **extra,
        }  # fmt: skip
        rows, units = _in_units(stage.plan, rows)
        return self._train(model, rows, [stage], journal=journal, **units, **arguments)
