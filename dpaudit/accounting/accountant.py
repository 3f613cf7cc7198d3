"""What an accountant is: a name, what its numbers are worth, what it refuses, and ε at δ.

The accountants of this package and those of plug-ins are the same kind of thing. An accountant refuses in one place
only, :meth:`Accountant.prepare`; :meth:`Accountant.supports` and :meth:`Accountant.epsilon` both walk through it, so
that what is said to be supported cannot differ from what is computed.
"""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, final

from dpaudit._version import __version__
from dpaudit.accounting.relations import Charges, charges
from dpaudit.accounting.tuning import Tuning
from dpaudit.privacy import validate
from dpaudit.privacy.errors import UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.ledger import Ledger

T = TypeVar("T")
RTOL = 5e-3
"""Relative width of a two-sided bound where none is asked for."""
OPTIONS = ("assume", "tuning", "rtol")
"""What a question may carry beside ledger, δ and group size; an accountant names those that it takes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of an accountant: ε of this ledger at this δ.

    Parameters
    ----------
    ledger : Ledger
        What ran, with its relation; its ``max_records_per_unit`` multiplies the group size.
    delta : float
        δ in (0, 1).
    group_size : int
        Units of privacy that change together.
    assume : tuple of str
        Explicit statements that the ledger cannot make; see ``dpaudit.accounting.relations.charges``.
    tuning : Tuning, optional
        Law of the number of runs when only the best is released.
    rtol : float, optional
        Relative width of a two-sided bound; None is the accountant's own.
    """

    ledger: Ledger
    delta: float
    group_size: int = 1
    assume: tuple[str, ...] = ()
    tuning: Tuning | None = None
    rtol: float | None = None

    def __post_init__(self) -> None:
        validate.open_unit(delta=self.delta)
        validate.integer_at_least(1, group_size=self.group_size)
        if self.rtol is not None:
            validate.positive(rtol=self.rtol)
            validate.finite(rtol=self.rtol)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that were given."""
        return tuple(name for name in OPTIONS if getattr(self, name) not in (None, ()))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What an accountant found: bounds on ε or an estimate, and in words what they rest on.

    ``version`` and ``rigorous`` replace the accountant's own where they are known only with the answer.

    Attributes
    ----------
    lower, upper : float or None
        Certified bounds on ε; None where none is proven.
    estimate : float or None
        Uncertified value; never a bound.
    notes : sequence of str
        Premises of the answer, in words.
    version : str or None
        Version of the program that answered, where it is known only now.
    rigorous : bool or None
        Whether ``upper`` is proven for this ledger, where that is known only now.
    """

    lower: float | None = None
    upper: float | None = None
    estimate: float | None = None
    notes: Sequence[str] = ()
    version: str | None = None
    rigorous: bool | None = None


class Accountant(abc.ABC, Generic[T]):
    """An accountant, built in or from a plug-in (entry-point group ``dpaudit.accountants``).

    A subclass sets ``name``, gives :meth:`prepare` and :meth:`bounds`, and overrides a default where it does not hold.

    Attributes
    ----------
    name : str
        What it is called on the command line.
    rigorous : bool
        Whether ``upper`` (and ``lower``) are proven bounds. An accountant that is not rigorous may only estimate.
    options : frozenset of str
        Which of ``OPTIONS`` it takes. A question with another one is refused, never answered without it.
    """

    name: str
    rigorous: bool = True
    options: frozenset[str] = frozenset()

    @property
    def version(self) -> str:
        """Version of what computes the numbers; this package's own by default."""
        return __version__

    @abc.abstractmethod
    def prepare(self, question: Question) -> T:
        """Translate the question, or refuse it; everything that :meth:`bounds` needs.

        Raises
        ------
        UnsupportedStage
            The accountant has no bound for this ledger; the message names the stage and the remedy.
        """

    @abc.abstractmethod
    def bounds(self, question: Question, prepared: T) -> Bounds:
        """ε at δ of a question that :meth:`prepare` let pass."""

    @final
    def supports(self, question: Question) -> str | None:
        """None where :meth:`epsilon` would answer, and else the sentence with which it would refuse."""
        try:
            self._prepared(question)
        except UnsupportedStage as error:
            return str(error)
        return None

    @final
    def epsilon(self, question: Question) -> Guarantee:
        """ε at δ as a guarantee.

        Raises
        ------
        UnsupportedStage
            The accountant refuses the question.
        """
        start = time.perf_counter()
        found = self.bounds(question, self._prepared(question))
        ledger = question.ledger
        return Guarantee(
            accountant=self.name,
            version=self.version if found.version is None else found.version,
            delta=question.delta,
            relation=ledger.relation,
            group_size=question.group_size * ledger.max_records_per_unit,
            epsilon_lower=found.lower,
            epsilon_upper=found.upper,
            epsilon_estimate=found.estimate,
            rigorous=self.rigorous if found.rigorous is None else found.rigorous,
            assumption="; ".join(found.notes),
            seconds=time.perf_counter() - start,
        )

    def _prepared(self, question: Question) -> T:
        for name in question.options:
            if name not in self.options:
                raise UnsupportedStage(
                    f"accountant {self.name!r} cannot take {name}={_told(getattr(question, name))} and does not ignore"
                    f" it; leave it out or use accountant {_TAKES[name]!r}."
                )
        return self.prepare(question)


_TAKES = {"assume": "prv", "rtol": "prv", "tuning": "rdp"}


def _told(value: Any) -> str:
    return f"{value.name}:{value.mean:g}" if isinstance(value, Tuning) else repr(value)


def charged(question: Question) -> Charges:
    """The charges of a question's ledger: where every accountant of this package starts."""
    return charges(question.ledger, group_size=question.group_size, assume=question.assume)


def resting_on(cost: Charges, *notes: str) -> tuple[str, ...]:
    """Notes of a bound: why it is infinite, or what the charges and the accountant assume."""
    return (cost.infinite,) if cost.infinite else (*cost.assumptions, *notes)


@final
class CallableAccountant(Accountant[None]):
    """A plain function ``(ledger, delta, group_size) -> Guarantee`` as an accountant.

    It takes no options, so a question that carries one is refused.
    """

    def __init__(self, name: str, function: Callable[[Ledger, float, int], Guarantee]) -> None:
        self.name, self._function = name, function

    def prepare(self, question: Question) -> None:
        """Nothing is known about the function before it is called."""

    def bounds(self, question: Question, prepared: None) -> Bounds:
        """Call the function; its answer has to be about the question."""
        found = self._function(question.ledger, question.delta, question.group_size)
        if not isinstance(found, Guarantee):
            raise UnsupportedStage(
                f"accountant plug-in {self.name!r} returned {type(found).__name__} where a Guarantee is due;"
                " report this to its author."
            )
        for field, asked in (("delta", question.delta), ("relation", question.ledger.relation)):
            if getattr(found, field) != asked:
                raise UnsupportedStage(
                    f"accountant plug-in {self.name!r} answered for {field}={getattr(found, field)} where {asked} was"
                    " asked; report this to its author."
                )
        return Bounds(
            version=found.version,
            rigorous=found.rigorous,
            lower=found.epsilon_lower,
            upper=found.epsilon_upper,
            estimate=found.epsilon_estimate,
            notes=(found.assumption,) if found.assumption else (),
        )
