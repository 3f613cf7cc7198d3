"""From scores to guesses, without looking at the coins, and from coins to counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.auditing.plan import AuditPlan
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.scores import Scores, check_ids, check_member, check_scores, refuse_unequal


def ranking(ids: Sequence[str], scores: ArrayLike) -> NDArray[np.int64]:
    """Positions from highest to lowest score; equal scores stand in the order of SHA-256(id).

    The order of ties depends on nothing but the ids, so that neither the caller nor the coins can choose it.
    """
    names, values = check_ids(ids), check_scores(scores)
    refuse_unequal(names, values)
    order = np.argsort(-values, kind="stable")
    falling = values[order]
    same = falling[1:] == falling[:-1]
    tied = np.concatenate((same, [False])) | np.concatenate(([False], same))
    places = np.sort(order[tied])
    if places.size:
        # Digests are slow to make, so only tied scores get one. That numpy drops trailing zero bytes keeps their order,
        # since zero is the smallest byte.
        digests = np.array([hashlib.sha256(names[i].encode("utf-8")).digest() for i in places.tolist()], dtype="S32")
        # Equal scores stand together already, so that the tied ones keep their places and only change among themselves.
        order[tied] = places[np.lexsort((digests, -values[places]))]
    return order.astype(np.int64)


def guess(ids: Sequence[str], scores: ArrayLike, plan: AuditPlan | tuple[int, int]) -> NDArray[np.int8]:
    """Guess the coins: +1 ("in") for the top scores, −1 ("out") for the bottom ones, 0 for the rest.

    Parameters
    ----------
    ids : sequence of str, length m
        Unique ids of the canaries.
    scores : array of shape (m,)
        Higher = member. NaN is refused.
    plan : AuditPlan or (int, int)
        Gives the numbers of guesses in and out.

    Returns
    -------
    int8 array of shape (m,)
        Guesses in the order of the ids; ties are broken by SHA-256 of the id.

    Raises
    ------
    InvalidValue
        If lengths differ.
    InvalidEvidence
        If an id appears twice or a score is not finite.

    Examples
    --------
    >>> guess(["a", "b", "c"], [0.1, 0.9, 0.5], (1, 1)).tolist()
    [-1, 1, 0]
    """
    return guess_in_order(ranking(ids, scores), plan)


def guess_in_order(order: NDArray[np.int64], plan: AuditPlan | tuple[int, int]) -> NDArray[np.int8]:
    """The guesses of :func:`guess` from the order that :func:`ranking` gave, for several numbers of guesses."""
    k_in, k_out = (plan.guesses_in, plan.guesses_out) if isinstance(plan, AuditPlan) else plan
    if k_in < 0 or k_out < 0 or k_in + k_out > order.size:
        raise InvalidValue(
            f"{k_in} guesses in and {k_out} out do not fit {order.size} canaries; guess each at most once."
        )
    guesses = np.zeros(order.size, dtype=np.int8)
    guesses[order[:k_in]] = 1
    guesses[order[order.size - k_out :]] = -1
    return guesses


def count_correct(guesses: ArrayLike, member: ArrayLike) -> tuple[int, int]:
    """Number of guesses made and of right ones: ``(guesses, correct)``.

    >>> count_correct([1, -1, 0, 1], [1, 0, 1, 0])
    (3, 2)
    """
    values = np.asarray(guesses)
    coins = check_member(member, values.size)
    if not np.isin(values, (-1, 0, 1)).all():
        raise InvalidEvidence("guesses hold values other than -1, 0 and +1; restore the recorded guesses.")
    right = ((values == 1) & coins) | ((values == -1) & ~coins)
    return int(np.count_nonzero(values)), int(np.count_nonzero(right))


def pair_scores(pairs: Sequence[Any], scores: Scores) -> Scores:
    """Turn paired canaries into one coin per pair, as replace_one needs.

    Each pair holds two canaries of which a fair coin put exactly one into the data. The pair's score is the score of
    its first canary (by id) minus that of its second; its coin is 1 when the first was inserted.

    Parameters
    ----------
    pairs : sequence of length 2n
        Name of each canary's pair.
    scores : Scores
        Of the 2n canaries; higher = member.

    Returns
    -------
    Scores
        Pair names, score differences and coins, for :func:`guess` and :func:`audit` under replace_one.

    Raises
    ------
    InvalidValue
        If ``pairs`` and ``scores`` have different lengths.
    InvalidEvidence
        If a pair has not two canaries, exactly one of them inserted.
    """
    names, values, coins = scores.ids, scores.values, scores.members
    if len(pairs) != values.size:
        raise InvalidValue(f"{len(pairs)} pair names stand beside {values.size} scores; name the pair of each canary.")
    groups: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault(str(pair), []).append(place)
    out_names, differences, firsts = [], [], []
    for pair, places in groups.items():
        if len(places) != 2 or int(coins[places].sum()) != 1:
            raise InvalidEvidence(
                f"pair {pair!r} has {len(places)} canaries of which {int(coins[places].sum())} inserted;"
                " a pair needs two canaries and exactly one inserted."
            )
        first, second = sorted(places, key=lambda i: names[i])
        out_names.append(pair)
        differences.append(values[first] - values[second])
        firsts.append(bool(coins[first]))
    return Scores(out_names, differences, firsts)
