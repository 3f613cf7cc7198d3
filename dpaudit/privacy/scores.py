"""Scores of canaries beside their coins: one value, checked once, when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue


@dataclasses.dataclass(frozen=True, slots=True, eq=False, init=False, repr=False)
class Scores:
    """Scores of canaries with the coins that decided their membership; both in the order of the ids.

    Parameters
    ----------
    ids : sequence of str, length m
        One id for each canary, each once. Under replace_one: names of pairs (see ``pair_scores``).
    values : array of shape (m,)
        Scores; higher = member. NaN is refused.
    members : array of shape (m,)
        The coins, 0 or 1; 1 = in the data.

    Raises
    ------
    InvalidEvidence
        When an id is repeated, a score is NaN, or a coin is neither 0 nor 1.
    InvalidValue
        When ids, scores and coins are not of one length.

    Examples
    --------
    >>> Scores(["a", "b", "c"], [0.5, 2.0, 0.1], [0, 1, 0])
    Scores(3 canaries, 1 member)
    """

    ids: tuple[str, ...]
    values: NDArray[np.float64]
    members: NDArray[np.bool_]

    def __init__(self, ids: Sequence[str], values: ArrayLike, members: ArrayLike) -> None:
        names, numbers = check_ids(ids), np.array(check_scores(values))
        refuse_unequal(names, numbers)
        coins = np.array(check_member(members, numbers.size))
        for array in (numbers, coins):
            array.setflags(write=False)
        for field, value in (("ids", tuple(names)), ("values", numbers), ("members", coins)):
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        count = self.member_count
        return f"Scores({len(self)} canaries, {count} member{'' if count == 1 else 's'})"

    @property
    def member_count(self) -> int:
        """Number of members."""
        return int(np.count_nonzero(self.members))

    @property
    def one_class(self) -> bool:
        """Whether all canaries are members, or none is."""
        return self.member_count in (0, len(self))

    @property
    def constant(self) -> bool:
        """Whether all scores are equal."""
        return bool(np.all(self.values == self.values[0]))

    @property
    def ties(self) -> int:
        """Number of canaries that share their score with another one."""
        _, counts = np.unique(self.values, return_counts=True)
        return int(counts[counts > 1].sum())

    def take(self, rows: NDArray[np.int64]) -> Scores:
        """The canaries at these positions.

        Parameters
        ----------
        rows : int64 array of shape (k,)
            Positions, from 0.

        Returns
        -------
        Scores
            Of k canaries, in this order.
        """
        return Scores([self.ids[i] for i in rows.tolist()], self.values[rows], self.members[rows])


def check_ids(ids: Sequence[str]) -> list[str]:
    """Ids as strings; duplicates are refused by name."""
    names = list(ids) if set(map(type, ids)) == {str} else [str(i) for i in ids]
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(n for n in names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise InvalidEvidence(f"id {twice!r} appears more than once; give one score for each canary.")
    return names


def check_scores(scores: ArrayLike, *, name: str = "scores") -> NDArray[np.float64]:
    """Scores as a 1-D float array, NaN refused and counted."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise InvalidValue(f"{name} has shape {values.shape} and must be one-dimensional; give one score per canary.")
    if values.size == 0:
        raise InvalidEvidence(f"{name} is empty; give at least one scored canary.")
    bad = int(np.isnan(values).sum())
    if bad:
        raise InvalidEvidence(f"{name} holds {bad} NaN among {values.size}; mend the attack, do not drop canaries.")
    return values


def check_member(member: ArrayLike, size: int) -> NDArray[np.bool_]:
    """Coins as booleans of length ``size``; anything but 0 and 1 is refused."""
    values = np.asarray(member)
    if values.shape != (size,):
        raise InvalidValue(f"member has shape {values.shape} for {size} scores; give one 0/1 coin for each.")
    if values.dtype != np.bool_:
        as_float = values.astype(np.float64)
        if not np.all((as_float == 0) | (as_float == 1)):
            raise InvalidEvidence("column member holds values other than 0 and 1; give the coin of each canary.")
        values = as_float == 1
    return values.astype(np.bool_)


def refuse_unequal(
    ids: Sequence[str], values: NDArray[np.float64], *, what: str = "score", plural: str = "scores"
) -> None:
    """Refuse ids and scores of unequal number."""
    if len(ids) != values.size:
        raise InvalidValue(f"{len(ids)} ids stand beside {values.size} {plural}; give one {what} for each id.")
