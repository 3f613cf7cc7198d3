"""Minibatch draws from a secret stream of their own, at a cost that grows with the batch alone."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.privacy.stage import Sampling
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.secret import PerProcess, Secret


class Sampler(Protocol):
    """One logical minibatch per call, as sorted indices of records; ``is_test`` marks injected randomness."""

    @property
    def is_test(self) -> bool: ...
    def draw(self) -> NDArray[np.int64]: ...


@runtime_checkable
class CountedSampler(Sampler, Protocol):
    """A sampler that says how many records it draws from, as every sampler beside in-run canaries has to.

    ``n_records`` counts the member canaries too, where it draws them.
    """

    n_records: int


class PoissonSampler(Secret):
    """Every record is drawn independently with probability q at every step.

    A draw is a Binomial(n, q) count and that many distinct uniform indices, which is the same law as n coin flips
    and costs O(batch): a billion records are as cheap as a thousand.

    Parameters
    ----------
    n_records : int
        Records in the data set at hand. It may differ from the plan's ``public_size``; q does not follow it.
    sampling_probability : float
        q of the plan.
    generator : numpy.random.Generator or None
        For tests only: injected randomness marks the run ``status: test``. By default the stream is seeded from
        the operating system's entropy, kept private and never stored; a forked child draws from a stream of its own.

    Raises
    ------
    InvalidValue
        If q is outside [0, 1] or ``n_records`` is negative.

    Examples
    --------
    >>> sampler = PoissonSampler(10**9, 1e-7)
    >>> bool(sampler.draw().size < 300)
    True
    """

    def __init__(
        self, n_records: int, sampling_probability: float, *, generator: np.random.Generator | None = None
    ) -> None:
        validate.integer_at_least(0, n_records=n_records)
        validate.probability(sampling_probability=sampling_probability)
        self.n_records = n_records
        self.sampling_probability = sampling_probability
        self.is_test = generator is not None
        self._stream = secret_stream(generator)

    @property
    def _generator(self) -> np.random.Generator:
        return self._stream.get()

    def draw(self) -> NDArray[np.int64]:
        """Sorted indices of one minibatch; empty draws are draws too."""
        count = int(self._generator.binomial(self.n_records, self.sampling_probability))
        # choice() runs Floyd's algorithm unless the sample is above 1/50 of the records: O(batch) either way.
        if count == 0:
            return np.empty(0, dtype=np.int64)
        return np.sort(self._generator.choice(self.n_records, size=count, replace=False, shuffle=False))


class TruncatedPoissonSampler(Secret):
    """A Poisson draw cut down to ``max_batch`` records by a uniform choice among those drawn.

    The stage records ``truncated_poisson``: the cut couples the records, so only accountants that treat it may be
    asked for ε.
    """

    def __init__(
        self,
        n_records: int,
        sampling_probability: float,
        max_batch: int,
        *,
        generator: np.random.Generator | None = None,
    ) -> None:
        validate.integer_at_least(1, max_batch=max_batch)
        self.n_records, self.max_batch = n_records, max_batch
        self.is_test = generator is not None
        self._stream = secret_stream(generator)
        self._poisson = PoissonSampler(n_records, sampling_probability, generator=generator)

    def draw(self) -> NDArray[np.int64]:
        """Sorted indices of one minibatch of at most ``max_batch`` records."""
        drawn = self._poisson.draw()
        if drawn.size <= self.max_batch:
            return drawn
        return np.sort(self._stream.get().choice(drawn, size=self.max_batch, replace=False, shuffle=False))


class FullSampler:
    """Every record at every step: ``sampling='none'``, q = 1."""

    is_test = False

    def __init__(self, n_records: int) -> None:
        validate.integer_at_least(0, n_records=n_records)
        self.n_records = n_records

    def draw(self) -> NDArray[np.int64]:
        """All indices, in order."""
        return np.arange(self.n_records, dtype=np.int64)


class ScriptedSampler:
    """Draws that were written down beforehand, for tests; when they run out, :class:`InvalidValue`.

    Parameters
    ----------
    draws : iterable of sequence of int
        Indices of the records of each draw.
    n_records : int, default=0
        What the draws are from; needed beside in-run canaries.
    """

    is_test = True

    def __init__(self, draws: Iterable[Sequence[int]], *, n_records: int = 0) -> None:
        self._draws, self.n_records = iter(draws), n_records

    def draw(self) -> NDArray[np.int64]:
        """The next draw of the script."""
        drawn = next(self._draws, None)
        if drawn is None:
            raise InvalidValue("the script of draws is used up; write one draw for each step.")
        return np.asarray(drawn, dtype=np.int64)


def sampler_for(plan: PrivacyPlan, n_records: int, *, generator: np.random.Generator | None = None) -> Sampler:
    """The sampler that a plan names, over ``n_records`` records.

    Parameters
    ----------
    plan : PrivacyPlan
        Gives sampling, q and ``max_batch``.
    n_records : int
        Records (or units) that are drawn from; q does not follow it.
    generator : numpy.random.Generator, optional
        For tests only; it marks the run ``status: test``.

    Returns
    -------
    Sampler
        Its ``draw()`` gives an int64 array of distinct record numbers, which may be empty.

    Raises
    ------
    PrivacyRefusal
        If the plan names a sampling that no sampler here executes.
    """
    match plan.sampling:
        case Sampling.POISSON:
            return PoissonSampler(n_records, plan.sampling_probability, generator=generator)
        case Sampling.TRUNCATED_POISSON:
            assert plan.max_batch is not None  # the stage required it
            return TruncatedPoissonSampler(n_records, plan.sampling_probability, plan.max_batch, generator=generator)
        case Sampling.NONE:
            return FullSampler(n_records)
        case _:
            raise PrivacyRefusal(
                f"sampling={str(plan.sampling)!r} is executed by no sampler here; plan sampling='poisson', or pass a"
                " sampler of your own that draws what the plan says."
            )


def countable(records: Any) -> int:
    """Number of records, refusing what cannot be sampled record by record.

    Raises
    ------
    PrivacyRefusal
        If ``records`` has no length or no random access: a stream cannot be Poisson-sampled.
    """
    if not hasattr(records, "__len__") or not hasattr(records, "__getitem__"):
        raise PrivacyRefusal(
            f"records of type {type(records).__name__} have no length and index, so no record can be drawn"
            " independently with probability q; materialise the stream first (a list, or datasets' Dataset)."
        )
    return len(records)


def secret_stream(generator: np.random.Generator | None = None) -> PerProcess[np.random.Generator]:
    """A generator of one's own in each process, from the operating system's entropy; or an injected one, for tests."""
    return PerProcess((lambda: _secret_generator()) if generator is None else (lambda: generator))


def _secret_generator() -> np.random.Generator:
    # NumPy keeps only 128 bits of a seed unless the pool is made larger.
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(secrets.randbits(256), pool_size=8)))
