"""``prv``: the certified two-sided accountant."""

from __future__ import annotations

from typing import final

from dpaudit._version import __version__
from dpaudit.accounting.accountant import RTOL, Accountant, Bounds, Question, charged, resting_on
from dpaudit.accounting.prv.curves import epsilon_interval
from dpaudit.accounting.relations import Charges

NUMERICS = f"{__version__}+prv3"
"""This package's version with that of its lattice, by which a certificate's numbers are compared with fresh ones.

The second lattice is composed by few Fourier coefficients, and its cells are wider in the tails. The third sums
these coefficients in another order, which moves a bound by some 1e-7 of it, and its bounds by moments are tighter.
"""


@final
class PrvAccountant(Accountant[Charges]):
    """An interval that holds ε, from discretised privacy losses composed by a fast Fourier transform."""

    name = "prv"
    options = frozenset({"assume", "rtol"})

    @property
    def version(self) -> str:
        """This package's version with that of the lattice."""
        return NUMERICS

    def prepare(self, question: Question) -> Charges:
        """The charges of the ledger."""
        return charged(question)

    def bounds(self, question: Question, prepared: Charges) -> Bounds:
        """The interval; without its lower end where no data set is known to attain the pair."""
        rtol = RTOL if question.rtol is None else question.rtol
        found = epsilon_interval(prepared, question.delta, rtol=rtol)
        if prepared.tight or prepared.infinite:
            return Bounds(lower=found.lower, upper=found.upper, notes=resting_on(prepared))
        untight = "no data set is known to attain this bound, so there is no lower one"
        return Bounds(upper=found.upper, notes=resting_on(prepared, untight))
