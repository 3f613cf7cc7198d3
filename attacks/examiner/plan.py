"""The plan that a training step claims to follow, as the examiner reads it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dpaudit import Ledger, Relation, Stage
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.protocols import RunPlan
from dpaudit.privacy.stage import Clip, Mechanism, Sampling


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExamPlan:
    """The plan of a training step, in the numbers that the examiner compares it with.

    Parameters
    ----------
    stage : Stage
        Sampling, q, σ, steps, directions; with ``clipping_norm`` C. A bound that adapts is stated by
        ``quantile_sigma``; C is then the first one, and an adapter with ``bounds()`` tells those of a run.
    normaliser : float
        Public constant L that the noisy sum is divided by; 1 when the sum itself is released.
    relation : Relation
        Neighbouring relation of the claim.
    size : int or None
        Number of records, for the test of δ.
    delta, epsilon : float or None
        The claim; None leaves it untested.

    Raises
    ------
    InvalidValue
        If the stage has no clipping norm or no noise, or the normaliser is not finite and positive.
    """

    stage: Stage
    normaliser: float
    relation: Relation = Relation.ADD_OR_REMOVE_ONE
    size: int | None = None
    delta: float | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.stage.clipping_norm is None:
            raise InvalidValue("clipping_norm is missing in the plan's stage; the examiner measures against it.")
        if not (self.normaliser > 0 and math.isfinite(self.normaliser)):
            raise InvalidValue(f"normaliser={self.normaliser} must be finite and > 0; give the sum's divisor.")
        if not self.stage.noise_multiplier > 0:
            raise InvalidValue(
                f"noise_multiplier={self.stage.noise_multiplier} must be > 0; a plan without noise claims nothing that"
                " could be examined."
            )

    @classmethod
    def read(cls, plan: Any) -> ExamPlan:
        """Take an :class:`ExamPlan`, or a trainer's plan (see ``RunPlan``).

        Parameters
        ----------
        plan : ExamPlan or PrivacyPlan
            Or any object with the members of ``RunPlan``.

        Returns
        -------
        ExamPlan
            The same plan in the examiner's numbers.

        Raises
        ------
        InvalidValue
            If ``plan`` is neither.
        """
        if isinstance(plan, cls):
            return plan
        if not isinstance(plan, RunPlan):
            raise InvalidValue(f"plan of type {type(plan).__name__} has no stage(); pass an ExamPlan or PrivacyPlan.")
        return cls(
            stage=plan.stage(),
            normaliser=plan.normaliser,
            relation=plan.relation,
            size=plan.public_size,
            delta=plan.delta,
            epsilon=plan.target_epsilon,
        )

    @property
    def clipping_norm(self) -> float:
        """C."""
        assert self.stage.clipping_norm is not None  # checked when the plan was made
        return self.stage.clipping_norm

    @property
    def sensitivity(self) -> float:
        """Largest L2 change of the SUM by one record added or removed: C, or C√P for P directions clipped apart."""
        if self.stage.clip is Clip.PER_DIRECTION:
            return self.clipping_norm * math.sqrt(self.stage.releases_per_step)
        return self.clipping_norm

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each RELEASED coordinate: σC/L (times √2 for Laplace)."""
        scale = self.stage.noise_multiplier * self.clipping_norm / self.normaliser
        return scale * math.sqrt(2) if self.laplace else scale

    @property
    def laplace(self) -> bool:
        """Whether the noise is Laplace of scale σC."""
        return self.stage.mechanism is Mechanism.LAPLACE

    @property
    def mu(self) -> float:
        """μ of one step for a record that takes part in it: sensitivity / (σC)."""
        return self.sensitivity / (self.stage.noise_multiplier * self.clipping_norm)

    @property
    def poisson(self) -> bool:
        """Whether every record is to be drawn independently."""
        return self.stage.sampling is Sampling.POISSON

    def ledger(self) -> Ledger:
        """The ledger of the whole plan."""
        return Ledger(stages=(self.stage,), relation=self.relation)
