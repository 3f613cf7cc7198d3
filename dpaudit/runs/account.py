"""Accounting of stages in text or of a ledger file: what to ask, the answers, and which fields a default filled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpaudit.accounting.account import Reply, answered, replies
from dpaudit.accounting.compare import Comparison, compare
from dpaudit.accounting.registry import BUILT_IN
from dpaudit.accounting.text import account_text, comparison_text
from dpaudit.privacy.ledger import Ledger
from dpaudit.runs.ledger_file import ledger_of
from dpaudit.runs.points import read_points


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question to accountants: the steps, and the guarantee that is asked of them.

    Attributes
    ----------
    stages : sequence of str
        Such as ``"q=0.01,sigma=1.0,steps=1000"``; empty where a ledger is given.
    ledger : Path or None
    relation : str or None
        Where nothing states one, ``add_or_remove_one`` is taken and the answer says so.
    delta : float
    group_size : int, default=1
        Units that change together.
    assume : sequence of str
        Assumptions of accountants, such as ``shuffle_fixed_schedule``.
    """

    stages: Sequence[str]
    ledger: Path | None
    relation: str | None
    delta: float
    group_size: int = 1
    assume: Sequence[str] = ()

    def ledger_and_echo(self) -> tuple[Ledger, dict[str, Any]]:
        """The ledger of the steps, and what an answer echoes of the question."""
        return ledger_of(self.stages, self.ledger, self.relation)

    def conditions(self) -> dict[str, Any]:
        """What every accountant is asked with the ledger."""
        return {"delta": self.delta, "group_size": self.group_size, "assume": self.assume}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The answers of every accountant that was asked.

    Attributes
    ----------
    ledger : Ledger
    delta : float
    group_size : int
        Units that change together.
    replies : tuple of Reply
        In the order asked for.
    echo : dict
        Relation, stages, and which fields a default filled.
    """

    ledger: Ledger
    delta: float
    group_size: int
    replies: tuple[Reply, ...]
    echo: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.account/1``."""
        return {
            "schema": "dpaudit.account/1",
            "delta": self.delta,
            **self.echo,
            "unit": self.ledger.unit,
            "group_size": self.group_size * self.ledger.max_records_per_unit,
            "results": [reply.to_dict() for reply in self.replies],
        }

    def __str__(self) -> str:
        filled = self.echo.get("defaulted_fields", ())
        return account_text(self.replies, delta=self.delta, relation=self.ledger.relation, defaulted=filled)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison of accountants, and which fields of the question a default filled."""

    comparison: Comparison
    echo: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.compare/1``."""
        return self.comparison.to_dict() | {k: v for k, v in self.echo.items() if k.startswith("defaulted")}

    def __str__(self) -> str:
        return comparison_text(self.comparison)


def account_stages(
    asked: Asked, *, accountants: Sequence[str] = (), tuning: str | None = None, rtol: float | None = None
) -> Accounts:
    """Ask accountants for ε of stages in text, or of a ledger file; ``prv`` where none is named.

    Parameters
    ----------
    asked : Asked
    accountants, tuning, rtol
        As for :func:`dpaudit.account`.

    Raises
    ------
    UnsupportedStage
        When no accountant answers.
    """
    ledger, echo = asked.ledger_and_echo()
    found = replies(ledger, accountants=accountants or ("prv",), tuning=tuning, rtol=rtol, **asked.conditions())
    answered(found)
    return Accounts(ledger=ledger, delta=asked.delta, group_size=asked.group_size, replies=found, echo=echo)


def compare_stages(
    asked: Asked, *, accountants: Sequence[str] = (), points: Path | None = None, curves: bool = False
) -> Compared:
    """Compare accountants on stages in text, or on a ledger file; all built-in ones where none is named.

    Parameters
    ----------
    asked : Asked
    points : Path or None
        CSV fpr, tpr of an attack, which the trade-off figure shows.
    curves : bool, default=False
        Also compute what the figures draw.
    """
    ledger, echo = asked.ledger_and_echo()
    drawn = read_points(points) if points else ()
    found = compare(ledger, accountants=accountants or BUILT_IN, curves=curves, empirical=drawn, **asked.conditions())
    return Compared(comparison=found, echo=echo)
