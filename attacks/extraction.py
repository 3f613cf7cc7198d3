"""Candidate-set extraction: which of K = 2^b secrets did the training data hold?

One right guess among 2^20 says far more than one membership bit. The truth must be drawn uniformly from the candidate
set, independently for every canary, and the guess may depend on the model only. The secret is always present, only
its value varies: the guesses test the *replace* relation. Bounds on ε are computed from ``n``, ``candidates`` and
``correct`` by the audit, not here.
"""

from __future__ import annotations

import secrets as entropy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.canaries.canary import CanarySet
from dpaudit.attacks.canaries.generate import fill_template, random_secrets
from dpaudit.attacks.scores.functions import as_finite
from dpaudit.attacks.scores.losses import FloatArray, canary_losses
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import integer_at_least

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CandidateSecrets:
    """n candidate sets of K secrets each, and the uniform truth of each set (private until the guesses stand).

    Attributes
    ----------
    candidates : tuple of n tuples of K str
        Distinct within a set.
    truth : tuple of n int
        Index of the inserted secret, uniform in 0 … K - 1.
    """

    candidates: tuple[tuple[str, ...], ...]
    truth: tuple[int, ...]

    @property
    def inserted(self) -> tuple[str, ...]:
        """The n secrets to insert."""
        return tuple(row[i] for row, i in zip(self.candidates, self.truth, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Extraction:
    """Result of guessing: counts for the audit, scores for choosing which guesses to make.

    Attributes
    ----------
    guesses : int64 array (n,)
        Index of the candidate with the lowest loss.
    scores : float64 array (n,)
        Margin to the second lowest loss in nats; higher = surer. Rank guesses by it to abstain on the rest.
    is_correct : bool array (n,)
        A tie for the lowest loss counts as wrong.
    candidates : int
        K, size of each candidate set.
    ties : int
        Number of sets with a tie for the lowest loss.
    """

    guesses: IntArray
    scores: FloatArray
    is_correct: BoolArray
    candidates: int
    ties: int

    @property
    def n(self) -> int:
        """Number of guesses."""
        return len(self.guesses)

    @property
    def correct(self) -> int:
        """Number of right guesses."""
        return int(self.is_correct.sum())

    @property
    def incorrect(self) -> int:
        """Number of wrong guesses."""
        return self.n - self.correct


def draw_candidates(
    n: int,
    bits: int,
    *,
    rng: np.random.Generator,
    alphabet: str = "0123456789",
    secret_length: int = 8,
    generator: np.random.Generator | None = None,
) -> CandidateSecrets:
    """Draw n candidate sets of 2^bits secrets and choose each set's truth uniformly.

    Parameters
    ----------
    n : int
        Number of canaries.
    bits : int
        b in [1, 20]; all losses of a set are computed, so that 2^b forward passes per canary are needed.
    rng : numpy.random.Generator
        Draws the candidate sets, which are no secret.
    alphabet, secret_length
        Alphabet and length of a secret.
    generator : numpy.random.Generator, optional
        For tests only: the truths of a real audit come from operating-system entropy, which this default uses.

    Returns
    -------
    CandidateSecrets
        n tuples of 2^bits distinct secrets, and the index of the true one in each.

    Raises
    ------
    InvalidValue
        If ``bits`` is outside 1..20, n is below 1, or the alphabet has too few secrets of this length.
    """
    integer_at_least(1, n=n, bits=bits)
    if bits > 20:
        raise InvalidValue(f"bits={bits} must be <= 20: 2^bits losses are computed for every canary.")
    size = 2**bits
    candidates = tuple(tuple(random_secrets(size, alphabet=alphabet, length=secret_length, rng=rng)) for _ in range(n))
    if generator is None:
        truth = tuple(entropy.randbelow(size) for _ in range(n))
    else:
        truth = tuple(int(i) for i in generator.integers(size, size=n))
    return CandidateSecrets(candidates, truth)


def candidate_losses(
    model: Any, tokenizer: Any, template: str, candidates: Sequence[Sequence[str]], *, batch_size: int = 256
) -> FloatArray:
    """Loss of every candidate in the template, summed over the secret's tokens: (n, K), nats."""
    rows = []
    for row in candidates:
        filled: CanarySet = fill_template(tokenizer, template, row, params={})
        rows.append(canary_losses(model, filled, batch_size=batch_size))
    return np.stack(rows)


def guess_candidates(losses: object, truth: object) -> Extraction:
    """Guess the candidate with the lowest loss in each set.

    Parameters
    ----------
    losses : array (n, K)
        Loss of each candidate, K >= 2; lower = likelier to be the inserted one. Calibrate by subtracting the base
        model's losses, if at all, before looking at the truth.
    truth : integer array (n,)
        Index of the inserted candidate.

    Returns
    -------
    Extraction
        Guesses, margins and whether each guess is right, all of shape (n,); a tie is not right.

    Raises
    ------
    InvalidValue
        If a loss is not finite, K is below 2, or ``truth`` is not n indices below K.

    Examples
    --------
    >>> found = guess_candidates([[3.0, 1.0, 2.0], [1.0, 1.0, 5.0]], [1, 0])
    >>> found.correct, found.incorrect, found.ties
    (1, 1, 1)
    """
    array = as_finite("losses", losses, ndim=2)
    true = np.asarray(truth)
    n, size = array.shape
    if size < 2:
        raise InvalidValue(f"losses has K={size} candidates for each secret and at least 2 are needed.")
    if true.shape != (n,) or not np.issubdtype(true.dtype, np.integer) or ((true < 0) | (true >= size)).any():
        raise InvalidValue(f"truth must hold {n} integers in [0, {size}), one for each row of losses.")
    guesses = array.argmin(axis=1)
    lowest = np.partition(array, 1, axis=1)[:, :2]
    margin = lowest[:, 1] - lowest[:, 0]
    return Extraction(
        guesses=guesses.astype(np.int64),
        scores=np.asarray(margin),
        is_correct=np.asarray((guesses == true) & (margin > 0)),
        candidates=size,
        ties=int((margin == 0).sum()),
    )
