"""In-run canaries of zeroth-order training: fictitious records with known loss differences, seen by every scalar.

A zeroth-order step releases P scalars, each a sum of clipped loss differences plus noise. A canary's difference in
direction p of step t is the clipping bound with a sign that is public and random, so its contribution can be told from
the others' by those signs. All canaries share the P scalars of a step: their useful number is small
(:func:`recommended_canaries_zeroth_order`).
"""

from __future__ import annotations

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
from dpaudit.privacy.stage import Clip


class ScalarInRunCanaries:
    """The canaries of one zeroth-order run: differences for the drawn ones, and a score of all from each release.

    Parameters
    ----------
    coins : bool array (m,)
        Whether each canary is a record of the data set; secret until the run has ended.
    key : int
        Public 64-bit key of the signs, fixed before the run.
    sampling_probability : float
        q, with which every record, canary or real, takes part in a step.
    noise_multiplier : float
        σ of the stage: noise deviation of each released scalar over C.
    releases_per_step : int
        P.
    clip : Clip
        ``per_direction`` (a canary gives ±C in each scalar) or ``joint`` (±C/√P).

    Notes
    -----
    Scores add up as in :class:`~dpaudit.attacks.canaries.running_scores.RunningScores`, where x is the mean over
    directions of sign · scalar in units of the canary's own contribution, and s² the variance of noise and of the other
    canaries in it.
    """

    def __init__(
        self,
        coins: NDArray[np.bool_],
        key: int,
        *,
        sampling_probability: float,
        noise_multiplier: float,
        releases_per_step: int,
        clip: Clip | str,
    ) -> None:
        validate.positive(noise_multiplier=noise_multiplier)
        validate.integer_at_least(1, releases_per_step=releases_per_step)
        if coins.ndim != 1 or not len(coins):
            raise InvalidValue(f"coins of shape {coins.shape} must be (m,) with m of at least 1.")
        self.coins, self.key = coins.astype(np.bool_), int(key)
        self._p = int(releases_per_step)
        self._amplitude = self._p**-0.5 if Clip(clip) is Clip.JOINT else 1.0
        noise = (noise_multiplier / self._amplitude) ** 2 / self._p
        self._scores = RunningScores(len(coins), sampling_probability)
        self._variance = noise + sampling_probability * len(coins) / 2 / self._p
        self._members = np.flatnonzero(self.coins)

    def __len__(self) -> int:
        return len(self.coins)

    @property
    def members(self) -> int:
        """Number of canaries in the data set: what the sampler draws beside the records."""
        return len(self._members)

    @property
    def steps(self) -> int:
        """Releases observed so far."""
        return self._scores.steps

    def signs(self, step: int) -> NDArray[np.int8]:
        """Public signs (P, m) of a step, each −1 or +1, from the key and the step's number alone."""
        generator = np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, 0, step]))
        bits = generator.integers(2, size=(self._p, len(self.coins)), dtype=np.int8)
        return np.asarray(2 * bits - 1, dtype=np.int8)

    def differences(self, step: int, drawn: Sequence[int], clipping_norm: float) -> Tensor:
        """Loss differences (P, len(drawn)) in fp64 of the drawn member canaries, each at its clipping bound.

        Parameters
        ----------
        drawn : sequence of int
            Positions, in the list of member canaries, that the run's sampler drew for this step.
        """
        chosen = self._members[np.asarray(drawn, dtype=np.int64)]
        values = self.signs(step)[:, chosen].astype(np.float64) * (self._amplitude * clipping_norm)
        return torch.from_numpy(values)

    def observe(self, step: int, released: Sequence[float], *, clipping_norm: float, normaliser: float) -> None:
        """Score every canary from a step's P released means."""
        sums = np.asarray(released, dtype=np.float64) * normaliser
        if sums.shape != (self._p,):
            raise InvalidValue(f"step {step} released {sums.shape} scalars and the plan has {self._p}.")
        x = self.signs(step).T @ sums / (clipping_norm * self._amplitude * self._p)
        self._scores.add(x, self._variance)

    def scores(self) -> NDArray[np.float64]:
        """Scores (m,) so far, in nats; higher = member."""
        return self._scores.values()

    def state(self) -> dict[str, Any]:
        """Accumulators for a resume. They belong in ``private/`` until the run has ended."""
        return self._scores.state()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._scores.resume(state)


def draw_scalar_coins(m: int) -> tuple[NDArray[np.bool_], int]:
    """Fair coins for m canaries and a key for their signs, from operating-system entropy."""
    validate.integer_at_least(1, m=m)
    coins = (np.frombuffer(secrets.token_bytes(m), dtype=np.uint8) & 1).astype(np.bool_)
    return coins, secrets.randbits(64)
