"""Observers of a run: they may add fictitious records to a clipped sum, and they see every release.

Observers receive what an adversary of differential privacy receives, the noisy releases, and nothing of the records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.privacy.stage import Sampling
from dpaudit.trainers.clipping import PerLayer
from dpaudit.trainers.contribution import Clipper, Layered, Summing, rule_of
from dpaudit.trainers.plan import PrivacyPlan
from dpaudit.trainers.sampling import CountedSampler, Sampler


class Members(Protocol):
    """Fictitious records of which some are in the data set."""

    @property
    def members(self) -> int:
        """Canaries that are in the data set; the sampler draws each with the records' own probability."""
        ...


class Canaries(Members, Protocol):
    """Fictitious records that the run's sampler draws: each drawn one adds a gradient to the clipped sum."""

    def add_to(
        self, sums: Sequence[Tensor], drawn: Sequence[int], *, contribution: float | Sequence[float] | None = None
    ) -> None:
        """Add the drawn canaries' clipped gradients to the clipped sums, in place."""
        ...

    def observe(
        self,
        noisy_sums: Sequence[Tensor],
        *,
        deviation: float,
        normaliser: float = 1.0,
        contribution: float | Sequence[float] | None = None,
    ) -> None:
        """Take in one release; ``deviation`` is the declared standard deviation of its noise."""
        ...


@runtime_checkable
class SparseCanaries(Canaries, Protocol):
    """Canaries of one coordinate each, which can be added and read by those that hold their coordinates."""

    @property
    def coordinates(self) -> NDArray[np.int64]:
        """Coordinate (m,) of each canary among those of all trained parameters, one after another."""
        ...

    def added(
        self, drawn: Sequence[int], *, contribution: float | Sequence[float] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Coordinates of the drawn members, and what each adds there to the clipped sum."""
        ...

    def score(
        self,
        seen: NDArray[np.float64],
        *,
        deviation: float,
        normaliser: float = 1.0,
        contribution: float | Sequence[float] | None = None,
    ) -> None:
        """Take in what one release shows (m,) on the canaries' coordinates."""
        ...

    def state(self) -> dict[str, Any]:
        """Accumulators for a resume."""
        ...

    def resume(self, state: Any) -> None:
        """Go on from :meth:`state`."""
        ...


class Recorder(Protocol):
    """Keeps what the releases of a run say of their noise, as :class:`~dpaudit.trainers.ReleaseRecorder` does."""

    def observe(self, released: Sequence[Tensor], deviation: float) -> Any:
        """Record one release of tensors whose noise has this declared deviation."""
        ...


class Drawn:
    """What the sampler of a run with in-run canaries draws from: records, then member canaries.

    Parameters
    ----------
    plan : PrivacyPlan
    n_records : int
        Records in the data set at hand; numbers of a draw at or above it are canaries.
    canaries : Members, optional

    Raises
    ------
    PrivacyRefusal
        If canaries meet a sampling whose draws couple records, so that canaries would change the records' own draws.
    """

    def __init__(self, plan: PrivacyPlan, n_records: int, canaries: Members | None) -> None:
        if canaries is not None and plan.sampling not in (Sampling.POISSON, Sampling.NONE):
            raise PrivacyRefusal(
                f"sampling={str(plan.sampling)!r} lets in-run canaries take the place of records; use"
                " sampling='poisson', or leave the in-run audit out."
            )
        self._n, self._members = n_records, 0 if canaries is None else canaries.members

    @property
    def drawn_from(self) -> int:
        """Records and member canaries: what the run's sampler draws from."""
        return self._n + self._members

    def records_of(self, indices: Sequence[int]) -> list[int]:
        """Those of a draw's indices that are records."""
        return [i for i in indices if i < self._n]

    def canaries_of(self, indices: Sequence[int]) -> list[int]:
        """The drawn canaries, by their place among the member canaries."""
        return [i - self._n for i in indices if i >= self._n]


class Observers(Drawn):
    """Everything that observes one run: at most one set of in-run canaries, and a record of the releases.

    Parameters
    ----------
    plan : PrivacyPlan
        Declares the noise; q, the normaliser and σ stay those of the declared records.
    n_records : int
        Records in the data set at hand. Draws at or above it are canaries.
    canaries : Canaries, optional
    recorder : Recorder, optional

    Raises
    ------
    PrivacyRefusal
        If canaries meet a sampling whose draws couple records, so that canaries would change the records' own draws.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        n_records: int,
        *,
        canaries: Canaries | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(plan, n_records, canaries)
        self._plan, self._canaries, self._recorder = plan, canaries, recorder
        self._sigma = plan.stage(0).noise_multiplier

    def add_to(
        self, totals: Sequence[Tensor], indices: Sequence[int], clipper: Clipper | Summing, clipping_norm: float
    ) -> None:
        """Add the drawn canaries to a step's clipped sums, before the noise."""
        if self._canaries is not None:
            drawn = self.canaries_of(indices)
            self._canaries.add_to(totals, drawn, contribution=contribution_of(clipper, clipping_norm))

    def observe(self, released: Sequence[Tensor], clipper: Clipper | Summing, clipping_norm: float) -> None:
        """Show a step's noisy means to the observers, with the noise's declared deviation, whatever it really was."""
        if not self._sigma:
            return
        deviation = self._sigma * clipping_norm
        if self._recorder is not None:
            self._recorder.observe(released, deviation / self._plan.normaliser)
        if self._canaries is not None:
            self._canaries.observe(
                released,
                deviation=deviation,
                normaliser=self._plan.normaliser,
                contribution=contribution_of(clipper, clipping_norm),
            )


def refuse_undrawn(sampler: Sampler, drawn_from: int, *, canaries: bool) -> None:
    """Refuse a sampler of too many records, and beside in-run canaries one that leaves some out or does not say so.

    Raises
    ------
    PrivacyRefusal
        Canaries that are never drawn would leave an audit that sees nothing.
    InvalidValue
        Of more records than there are: it counts records where units are drawn.
    """
    if isinstance(sampler, CountedSampler) and sampler.n_records > drawn_from:
        raise InvalidValue(
            f"the sampler draws from {sampler.n_records} and the plan from {drawn_from}; where whole units are drawn,"
            " give distributed_options(..., units=units) the units that train takes."
        )
    if not canaries:
        return
    if not isinstance(sampler, CountedSampler):
        raise PrivacyRefusal(
            f"sampler={type(sampler).__name__} does not say from how many records it draws, so that in-run canaries may"
            f" never be drawn; give it n_records={drawn_from}, records and member canaries, or leave canaries out."
        )
    if sampler.n_records < drawn_from:
        raise PrivacyRefusal(
            f"the sampler draws from {sampler.n_records} records and leaves out {drawn_from - sampler.n_records} in-run"
            " canaries, so that their audit would see nothing; where several processes train, give canaries to"
            " distributed_options()."
        )


def contribution_of(clipper: Clipper | Summing, clipping_norm: float) -> float:
    """Norm that a record whose gradient lies on one coordinate contributes under the clipper's rule.

    It is C for flat, adaptive and automatic clipping; for per-layer clipping with equal bounds C over the root of the
    number of layers.
    """
    rule = rule_of(clipper)
    if not isinstance(rule, PerLayer):
        return clipping_norm
    if rule.bounds is not None:
        raise InvalidValue("in-run canaries need equal bounds in per-layer clipping; leave bounds out.")
    layers = len(clipper.layers) if isinstance(clipper, Layered) else 0
    return clipping_norm / math.sqrt(layers) if layers else clipping_norm
