"""In-run canaries: fictitious records of one coordinate each, inserted into a run by fair coins and seen by every step.

A canary's clipped gradient is exactly the clipping norm on one coordinate of the trained parameters. Whoever sees every
noisy step adds up the log-likelihood ratio of "the canary is in the data" at that coordinate. Canaries on distinct
coordinates do not disturb one another, so that a run may carry as many as a tenth of its coordinates.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.attacks.canaries.running_scores import RunningScores
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue

SHARE = 10
"""Coordinates for each canary, at least: the default number of canaries is min(100,000, d / 10)."""
MOST = 100_000


def recommended_in_run_canaries(dimension: int) -> int:
    """Number of in-run canaries for a model with ``dimension`` trained coordinates: min(100,000, d / 10).

    >>> recommended_in_run_canaries(1_470_000)
    100000
    """
    validate.integer_at_least(1, dimension=dimension)
    return min(MOST, dimension // SHARE)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class InRunDesign:
    """Coordinates and coins of a run's canaries. The coins are secret until the run has ended.

    Attributes
    ----------
    coordinates : int64 array (m,)
        Distinct coordinates of the trained parameters, flattened in the model's order.
    coins : bool array (m,)
        Whether each canary is a record of the data set.
    dimension : int
        d, all trained coordinates.
    """

    coordinates: NDArray[np.int64]
    coins: NDArray[np.bool_]
    dimension: int

    def __post_init__(self) -> None:
        m = len(self.coordinates)
        if self.coins.shape != (m,) or len(np.unique(self.coordinates)) != m:
            raise InvalidValue(f"{m} in-run canaries need a coin and a coordinate of their own each.")
        if m and not (0 <= self.coordinates.min() and self.coordinates.max() < self.dimension):
            raise InvalidValue(f"coordinates of in-run canaries must lie in [0, {self.dimension}).")

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def members(self) -> NDArray[np.int64]:
        """Numbers of the canaries that are in the data set, in ascending order."""
        return np.flatnonzero(self.coins).astype(np.int64)


def draw_in_run_canaries(
    dimension: int, *, m: int | None = None, rng: np.random.Generator | None = None
) -> InRunDesign:
    """Draw coordinates and fair coins from operating-system entropy.

    Parameters
    ----------
    dimension : int
        d, number of trained coordinates.
    m : int, optional
        Number of canaries, at most d; ``recommended_in_run_canaries`` if None.
    rng : numpy Generator, optional
        Injected randomness, for tests alone: whoever knows its seed knows the coins.

    Returns
    -------
    InRunDesign
        m coordinates in ascending order, a coin for each (True = inserted), and the dimension.

    Raises
    ------
    InvalidValue
        If m exceeds d or either is below 1.
    """
    count = recommended_in_run_canaries(dimension) if m is None else m
    validate.integer_at_least(1, dimension=dimension, m=count)
    if count > dimension:
        raise InvalidValue(f"m={count} in-run canaries need a coordinate each and dimension={dimension}; lower m.")
    own = rng if rng is not None else np.random.Generator(np.random.PCG64(secrets.randbits(256)))
    coordinates = np.sort(own.choice(dimension, size=count, replace=False)).astype(np.int64)
    content = secrets.token_bytes(count) if rng is None else own.bytes(count)
    coins = (np.frombuffer(content, dtype=np.uint8) & 1).astype(np.bool_)
    return InRunDesign(coordinates, coins, dimension)


class InRunCanaries:
    """The canaries of one run: adds the drawn ones to each clipped sum, and scores all of them from each release.

    A loop makes two calls a step::

        canaries.add_to(sums, drawn)          # after clipping, before the noise
        canaries.observe(noisy_sums, deviation=noise_multiplier * clipping_norm)

    Parameters
    ----------
    design : InRunDesign
    sizes : sequence of int
        Coordinates of each trained parameter, in the order in which sums come.
    sampling_probability : float
        q, with which every record, canary or real, takes part in a step.
    contribution : float or sequence of float
        Norm of a canary's clipped gradient on each parameter: C for flat, adaptive and automatic clipping, and the
        bound of the parameter's own group for per-layer clipping. Adaptive clipping gives each step's own to the calls.

    Raises
    ------
    InvalidValue
        If ``sizes`` do not add up to the dimension that the canaries were drawn for, or a bound is out of its
        range.

    Notes
    -----
    Scores add up as in ``RunningScores``, where x is the release at the
    canary's coordinate over its contribution and s the noise's deviation over it: the most powerful statistic where
    nothing else moves the coordinate.
    """

    def __init__(
        self,
        design: InRunDesign,
        sizes: Sequence[int],
        *,
        sampling_probability: float,
        contribution: float | Sequence[float],
    ) -> None:
        if sum(sizes) != design.dimension:
            raise InvalidValue(f"sizes add up to {sum(sizes)} and the canaries were drawn for {design.dimension}.")
        self.design, self.sizes = design, tuple(int(n) for n in sizes)
        self._contribution = self._per_parameter(contribution)
        edges = np.concatenate([[0], np.cumsum(self.sizes)])
        self._owner = np.searchsorted(edges, design.coordinates, side="right") - 1
        self._local = design.coordinates - edges[self._owner]
        self._starts = np.searchsorted(design.coordinates, edges)
        self._scores = RunningScores(len(design), sampling_probability)
        self._index: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def coordinates(self) -> NDArray[np.int64]:
        """Coordinate (m,) of each canary among those of all trained parameters, one after another."""
        return self.design.coordinates

    @property
    def members(self) -> int:
        """Number of canaries in the data set: what the sampler draws beside the records."""
        return len(self.design.members)

    @property
    def steps(self) -> int:
        """Releases observed so far."""
        return self._scores.steps

    def _per_parameter(self, contribution: float | Sequence[float]) -> NDArray[np.float64]:
        values = np.broadcast_to(np.asarray(contribution, dtype=np.float64), (len(self.sizes),))
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise InvalidValue(f"contribution={contribution} must be finite and above 0; give the clipping norm.")
        return values

    @torch.no_grad()
    def add_to(
        self, sums: Sequence[Tensor], drawn: Sequence[int], *, contribution: float | Sequence[float] | None = None
    ) -> None:
        """Add the drawn canaries' clipped gradients to a step's clipped sums, in place.

        Parameters
        ----------
        sums : sequence of Tensor
            Clipped SUMS, one for each parameter, before noise and normaliser.
        drawn : sequence of int
            Positions, in the list of member canaries, that the run's sampler drew for this step.
        contribution : float or sequence of float, optional
            Norm of a canary's clipped gradient at this step, where the rule adapts; that of the constructor by
            default.
        """
        bounds = self._contribution if contribution is None else self._per_parameter(contribution)
        chosen = self._drawn(drawn)
        for number in np.unique(self._owner[chosen]):
            at = torch.from_numpy(self._local[chosen[self._owner[chosen] == number]]).to(sums[number].device)
            flat = sums[number].view(-1)
            flat.index_add_(0, at, torch.full((len(at),), float(bounds[number]), dtype=flat.dtype, device=flat.device))

    def _drawn(self, drawn: Sequence[int]) -> NDArray[np.int64]:
        return self.design.members[np.asarray(drawn, dtype=np.int64)]

    def added(
        self, drawn: Sequence[int], *, contribution: float | Sequence[float] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Coordinates and contributions that :meth:`add_to` adds, for those that hold the coordinates.

        Parameters
        ----------
        drawn : sequence of int
            Positions, in the list of member canaries, that the run's sampler drew for this step.
        """
        bounds = self._contribution if contribution is None else self._per_parameter(contribution)
        chosen = self._drawn(drawn)
        return self.design.coordinates[chosen], bounds[self._owner[chosen]]

    @torch.no_grad()
    def observe(
        self,
        noisy_sums: Sequence[Tensor],
        *,
        deviation: float,
        normaliser: float = 1.0,
        contribution: float | Sequence[float] | None = None,
    ) -> None:
        """Score every canary from one release.

        Parameters
        ----------
        noisy_sums : sequence of Tensor
            Noisy sums; or noisy means, with their ``normaliser``.
        deviation : float
            σC, declared standard deviation of the noise on each coordinate of the SUM.
        normaliser : float, default=1
            L, by which ``noisy_sums`` were divided.
        contribution : float or sequence of float, optional
            Norm of a canary's clipped gradient at this step, where the rule adapts; that of the constructor by
            default.
        """
        seen = np.empty(len(self.design))
        for number, release in enumerate(noisy_sums):
            start, stop = self._starts[number], self._starts[number + 1]
            if start < stop:
                seen[start:stop] = self._read(release, number, start, stop)
        self.score(seen, deviation=deviation, normaliser=normaliser, contribution=contribution)

    def score(
        self,
        seen: NDArray[np.float64],
        *,
        deviation: float,
        normaliser: float = 1.0,
        contribution: float | Sequence[float] | None = None,
    ) -> None:
        """Score every canary from what one release shows (m,) on the canaries' coordinates, as :meth:`observe` does."""
        validate.positive(deviation=deviation, normaliser=normaliser)
        bounds = self._contribution if contribution is None else self._per_parameter(contribution)
        each = bounds[self._owner]
        self._scores.add(seen * (normaliser / each), (deviation / each) ** 2)

    def _read(self, release: Tensor, number: int, start: int, stop: int) -> NDArray[np.float64]:
        key = (number, release.device)
        if key not in self._index:
            self._index[key] = torch.from_numpy(self._local[start:stop]).to(release.device)
        found = release.detach().reshape(-1).index_select(0, self._index[key])
        return np.asarray(found.double().cpu().numpy())

    def scores(self) -> NDArray[np.float64]:
        """Log-likelihood ratios (m,) so far, in nats; higher = member."""
        return self._scores.values()

    def state(self) -> dict[str, Any]:
        """Accumulators for a resume. They belong in ``private/`` until the run has ended."""
        return self._scores.state()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._scores.resume(state)
