"""Observers of a zeroth-order stage: in-run canaries add loss differences, and every release is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpaudit.privacy.errors import PrivacyRefusal
from dpaudit.privacy.stage import Mechanism
from dpaudit.trainers.observer import Drawn, Members
from dpaudit.trainers.witness import ReleaseRecorder
from dpaudit.trainers.zeroth_order.log import StageEntry, ZOLog
from dpaudit.trainers.zeroth_order.stages import ZOPlan, ZOStage

SCALARS = "scalars"
"""Name of the one block that a zeroth-order release has."""


class ScalarCanaries(Members, Protocol):
    """Fictitious records with known loss differences, drawn by the run's sampler."""

    def differences(self, step: int, drawn: Sequence[int], clipping_norm: float) -> Tensor:
        """Loss differences (P, len(drawn)) of the drawn members."""
        ...

    def observe(self, step: int, released: Sequence[float], *, clipping_norm: float, normaliser: float) -> None:
        """Take in the P released means of one step."""
        ...


class Watched(Drawn):
    """Observers of one stage.

    Parameters
    ----------
    stage : ZOStage
    n_records : int
        Records in the data set at hand. Draws at or above it are canaries.
    canaries : ScalarCanaries, optional
    recorder : ReleaseRecorder, optional
        Of one block with P coordinates.

    Raises
    ------
    PrivacyRefusal
        For a sampling whose draws couple records, and for Laplace noise, whose energy is not a chi-square variable.
    """

    def __init__(
        self,
        stage: ZOStage,
        n_records: int,
        *,
        canaries: ScalarCanaries | None = None,
        recorder: ReleaseRecorder | None = None,
    ) -> None:
        super().__init__(stage.plan, n_records, canaries)
        if (canaries is not None or recorder is not None) and stage.mechanism is not Mechanism.GAUSSIAN:
            raise PrivacyRefusal(
                f"mechanism={str(stage.mechanism)!r} has no in-run audit; use mechanism='gaussian', or leave it out."
            )
        self._plan, self._canaries, self._recorder = stage.plan, canaries, recorder

    def joined(self, step: int, differences: Tensor, indices: Sequence[int]) -> Tensor:
        """Differences (P, B) of the records with those of the drawn canaries beside them."""
        drawn = self.canaries_of(indices)
        if self._canaries is None or not drawn:
            return differences
        beside = self._canaries.differences(step, drawn, self._plan.clipping_norm)
        return torch.cat([differences, beside.to(differences)], dim=1)

    def observe(self, step: int, released: Sequence[float]) -> None:
        """See a step's P released means; the noise's deviation is the declared one."""
        plan = self._plan
        sigma = plan.stage(0).noise_multiplier
        if not sigma:
            return
        if self._recorder is not None:
            deviation = sigma * plan.clipping_norm / plan.normaliser
            self._recorder.observe([torch.tensor(released, dtype=torch.float64)], deviation)
        if self._canaries is not None:
            self._canaries.observe(step, released, clipping_norm=plan.clipping_norm, normaliser=plan.normaliser)


def scalar_recorder(plan: ZOPlan) -> ReleaseRecorder | None:
    """The record of a plan's releases, its P scalars a step; None for Laplace noise, whose energy has no such test."""
    if any(stage.mechanism is not Mechanism.GAUSSIAN for stage in plan.stages):
        return None
    return ReleaseRecorder({SCALARS: plan.stages[0].plan.releases_per_step})


def watch_again(
    log: ZOLog, plan: ZOPlan, *, canaries: ScalarCanaries | None = None, recorder: ReleaseRecorder | None = None
) -> None:
    """Let observers see every release of a log, for a resume: what they know is a function of the releases alone.

    Parameters
    ----------
    log : ZOLog
        Of the run so far; undone entries are already dropped.
    plan : ZOPlan
        Its stages, whose declared noise the releases are compared with.
    canaries, recorder : optional
        That have seen nothing yet.
    """
    watched = None
    for entry in log.entries:
        if isinstance(entry, StageEntry):
            # Who is drawn matters to canaries before a release; afterwards they look at the scalars alone.
            watched = Watched(plan.stages[entry.index], 0, canaries=canaries, recorder=recorder)
        elif watched is not None:
            watched.observe(entry.step, entry.values)
