"""ε of a ledger by every accountant asked for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from typing import Any

from dpaudit.accounting.accountant import Question
from dpaudit.accounting.registry import accountant
from dpaudit.accounting.tuning import Tuning
from dpaudit.privacy.errors import InvalidValue, UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee
from dpaudit.privacy.ledger import Ledger


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one accountant said: its guarantee, or the sentence with which it refused."""

    accountant: str
    guarantee: Guarantee | None = None
    refused: str | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with the keys of ``dpaudit account --json``; ``refused`` is null where it answered."""
        if self.guarantee is not None:
            return self.guarantee.to_dict() | {"refused": None}
        return {
            "accountant": self.accountant,
            "version": None,
            "epsilon_lower": None,
            "epsilon_upper": None,
            "epsilon_estimate": None,
            "rigorous": False,
            "assumption": "",
            "seconds": self.seconds,
            "refused": self.refused,
        }


def replies(
    ledger: Ledger,
    *,
    delta: float,
    accountants: Sequence[str] = ("prv",),
    group_size: int = 1,
    assume: Collection[str] = (),
    tuning: str | Tuning | None = None,
    rtol: float | None = None,
) -> tuple[Reply, ...]:
    """Ask every accountant named for ε at δ; the refusal of one does not discard the answers of the others.

    Parameters
    ----------
    ledger, delta, accountants, group_size, assume, tuning, rtol
        As in :func:`account`.

    Returns
    -------
    tuple of Reply
        In the order asked for.

    Raises
    ------
    InvalidValue
        An argument is out of its bounds, or a name is no accountant's: a mistake of the caller, not of an accountant.
    """
    if not isinstance(ledger, Ledger):
        raise InvalidValue(
            f"ledger is {type(ledger).__name__} and must be a Ledger; make one of"
            " dpaudit.Ledger(stages=..., relation=...), or of (sigma, q, steps) with dpaudit.accounting.from_triples."
        )
    names = (accountants,) if isinstance(accountants, str) else tuple(accountants)
    if not names:
        raise InvalidValue("accountants=() asks nobody; name at least one accountant, such as 'prv'.")
    question = Question(
        ledger=ledger,
        delta=delta,
        group_size=group_size,
        assume=tuple(assume),
        tuning=Tuning.parse(tuning) if isinstance(tuning, str) else tuning,
        rtol=rtol,
    )
    return tuple(_reply(name, question) for name in names)


def _reply(name: str, question: Question) -> Reply:
    start = time.perf_counter()
    try:
        return Reply(accountant=name, guarantee=accountant(name).epsilon(question))
    except UnsupportedStage as error:
        return Reply(accountant=name, refused=str(error), seconds=time.perf_counter() - start)


def account(
    ledger: Ledger,
    *,
    delta: float,
    accountants: Sequence[str] = ("prv",),
    group_size: int = 1,
    assume: Collection[str] = (),
    tuning: str | Tuning | None = None,
    rtol: float | None = None,
) -> tuple[Guarantee, ...]:
    """ε at δ of a ledger, one guarantee for each accountant named; the first refusal is raised.

    Parameters
    ----------
    ledger : Ledger
        What ran, with its relation; its ``max_records_per_unit`` multiplies the group size.
    delta : float
        δ in (0, 1).
    accountants : names
        ``prv`` (certified two-sided), ``rdp``, ``pld``, ``gdp`` (rigorous upper bounds), ``gdp-clt`` (an estimate),
        or the name of an installed plug-in (entry-point group ``dpaudit.accountants``).
    group_size : int
        Units of privacy that change together.
    assume : names
        Explicit statements the ledger cannot make; see ``dpaudit.accounting.relations.charges``.
    tuning : str or Tuning, optional
        Law of the number of runs when only the best is released; ``rdp`` only.
    rtol : float, optional
        Relative width that ``prv`` aims at, 5e-3 where it is left out. An accountant of one-sided bounds has none.

    Returns
    -------
    tuple of Guarantee
        In the order asked for. Infinite where a stage adds no noise; the assumption then says so.

    Raises
    ------
    UnsupportedStage
        An accountant cannot treat a stage or an option; the message names it and the remedy. ``replies`` keeps the
        answers of the others.
    """
    found = replies(
        ledger,
        delta=delta,
        accountants=accountants,
        group_size=group_size,
        assume=assume,
        tuning=tuning,
        rtol=rtol,
    )
    return answered(found, everyone=True)


def answered(found: Sequence[Reply], *, everyone: bool = False) -> tuple[Guarantee, ...]:
    """The guarantees among some replies.

    Raises
    ------
    UnsupportedStage
        Nobody answered, or with ``everyone`` somebody did not; the message is the accountants' own.
    """
    refusals = [reply.refused for reply in found if reply.refused is not None]
    if refusals and (everyone or len(refusals) == len(found)):
        raise UnsupportedStage(refusals[0] if everyone else " ".join(dict.fromkeys(refusals)))
    return tuple(reply.guarantee for reply in found if reply.guarantee is not None)


def epsilon_upper(
    ledger: Ledger, delta: float, accountant: str = "prv", *, group_size: int = 1, assume: Collection[str] = ()
) -> float:
    """The certified upper bound of one accountant, as a number.

    Parameters
    ----------
    ledger : Ledger
        Stages that ran or are planned, with their neighbouring relation.
    delta : float
        δ in (0, 1).
    accountant : str, default="prv"
        Name of an accountant that proves upper bounds.
    group_size : int, default=1
        Units of privacy that the claim covers together, beside the ledger's own ``max_records_per_unit``.
    assume : collection of str
        Premises that the caller vouches for and the ledger does not record; an accountant that needs one names it.

    Returns
    -------
    float
        Certified upper bound on ε at δ; infinite where the accountant proves no finite one.

    Raises
    ------
    InvalidValue
        If the accountant is unknown or proves no upper bound, or δ is outside (0, 1).
    UnsupportedStage
        If the accountant cannot treat a stage of the ledger.
    """
    (found,) = account(ledger, delta=delta, accountants=(accountant,), group_size=group_size, assume=assume)
    if found.epsilon_upper is None:
        raise InvalidValue(f"accountant {accountant!r} proves no upper bound; use 'prv', 'pld', 'rdp' or 'gdp'.")
    return found.epsilon_upper
