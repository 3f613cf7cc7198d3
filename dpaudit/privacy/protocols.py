"""What one room receives from another, typed by shape so that no room imports the other."""

from __future__ import annotations

import abc
import dataclasses
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Relation, Stage


class Calibratable(Protocol):
    """A plan whose noise multiplier an accountant may choose before the first step."""

    @property
    def target_epsilon(self) -> float | None: ...
    @property
    def delta(self) -> float: ...
    def with_noise_multiplier(self, noise_multiplier: float) -> Calibratable: ...
    def ledger(self) -> Ledger: ...


@runtime_checkable
class RunPlan(Protocol):
    """A plan of one stage: what a training run promises to execute, as examinations read it."""

    @property
    def normaliser(self) -> float: ...
    @property
    def relation(self) -> Relation: ...
    @property
    def public_size(self) -> int: ...
    @property
    def delta(self) -> float: ...
    @property
    def target_epsilon(self) -> float | None: ...
    def stage(self) -> Stage: ...


P = TypeVar("P", bound=Calibratable)


class Calibrate(Protocol):
    """Returns the plan with the smallest noise multiplier whose certified ε meets its target."""

    def __call__(self, plan: P, /) -> P: ...


class Budget(Protocol):
    """Remaining ε of a ledger under a target; negative when overspent."""

    def __call__(self, ledger: Ledger, /) -> float: ...


TEST_REASON = "test: "
"""Beginning of the reason with which a trainer seals a segment whose randomness was injected."""


def seal_reason(reason: str, *, is_test: bool) -> str:
    """Why a segment ends; marked where sampler or noise were injected, since such steps are repeatable, not private."""
    return f"{TEST_REASON}{reason} with injected randomness" if is_test else reason


class Journal(Protocol):
    """Durable record of executed steps. ``count`` returns only when the step is on disk."""

    def begin(self, stage: Stage, /) -> None:
        """Open a stage (its ``steps`` field is ignored); seals the one before."""

    def count(self) -> None:
        """Count one step, BEFORE its noisy release."""

    def seal(self, reason: str, /) -> None:
        """Close the open stage: at a checkpoint, a stage change, or the end."""


@runtime_checkable
class LastingJournal(Journal, Protocol):
    """A journal that outlives the process, so that a resume can be held against what it counted."""

    @property
    def steps(self) -> int:
        """Steps counted so far, those of earlier processes included."""


class FileJournal(abc.ABC):
    """A lasting journal that is one file, from which a checkpoint takes its copy and its place."""

    @property
    @abc.abstractmethod
    def path(self) -> Path:
        """The sealed ledger's file."""

    @property
    @abc.abstractmethod
    def head(self) -> str:
        """SHA-256 of the last sealed line."""

    @property
    @abc.abstractmethod
    def heads(self) -> tuple[str, ...]:
        """SHA-256 of every sealed line."""

    @property
    @abc.abstractmethod
    def steps(self) -> int:
        """Steps counted so far, those of earlier processes included."""

    @abc.abstractmethod
    def ledger(self) -> Ledger:
        """The ledger so far, the open segment included."""

    @abc.abstractmethod
    def begin(self, stage: Stage, /) -> None:
        """Open a stage; its ``steps`` are ignored. Seals the one before."""

    @abc.abstractmethod
    def count(self) -> None:
        """Count one step BEFORE its noisy release; returns when that is on disk."""

    @abc.abstractmethod
    def seal(self, reason: str, /) -> None:
        """Close the open stage."""

    @abc.abstractmethod
    def copy_to(self, path: Path) -> None:
        """Write a copy of the sealed ledger."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give the ledger up, so that another journal may continue it."""


class MemoryJournal:
    """A journal in memory, for tests and bare loops; :meth:`ledger` gives what was counted.

    Parameters
    ----------
    relation : Relation or str, optional
        Neighbouring relation that :meth:`ledger` states.
    unit : str, optional
        Unit of privacy that it states.
    max_records_per_unit : int
        Records that one unit contributes at most.

    Raises
    ------
    InvalidValue
        From :meth:`ledger`, where relation and unit were not given.
    RuntimeError
        From :meth:`count`, where no stage was begun.
    """

    def __init__(
        self, *, relation: Relation | str | None = None, unit: str | None = None, max_records_per_unit: int = 1
    ) -> None:
        self._states = relation, unit, max_records_per_unit
        self._open: Stage | None = None
        self._steps = 0
        self._sealed: list[Stage] = []

    def begin(self, stage: Stage, /) -> None:
        """Open a stage, sealing the one before."""
        self.seal("stage change")
        self._open, self._steps = stage, 0

    def count(self) -> None:
        """Count one step of the open stage."""
        if self._open is None:
            raise RuntimeError("count() before begin(): no stage is open.")
        self._steps += 1

    def seal(self, reason: str, /) -> None:
        """Close the open stage, if any; zero-step stages are dropped."""
        if self._open is not None and self._steps:
            self._sealed.append(dataclasses.replace(self._open, steps=self._steps))
        self._open = None

    def ledger(self) -> Ledger:
        """What was counted, with the relation and the unit that the journal was made with.

        Raises
        ------
        InvalidValue
            When it was made without them: a ledger that protects nobody in particular has no epsilon.
        """
        relation, unit, records = self._states
        for name, value in (("relation", relation), ("unit", unit)):
            if value is None:
                raise InvalidValue(
                    f"{name}=None leaves open what the ledger protects; make the journal with it, as in"
                    ' MemoryJournal(relation="add_or_remove_one", unit="record").'
                )
        assert relation is not None and unit is not None
        return Ledger(
            stages=self.ledger_stages(), relation=Relation.parse(relation), unit=unit, max_records_per_unit=records
        ).merged()

    def ledger_stages(self) -> tuple[Stage, ...]:
        """Stages counted so far, the open one included."""
        live = () if self._open is None else (dataclasses.replace(self._open, steps=self._steps),)
        return (*self._sealed, *live)
