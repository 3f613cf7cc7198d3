"""The privacy plan: one frozen value from which the run, its ledger and its claim all derive."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from dpaudit import Ledger, Relation, Stage
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Clip, Mechanism, Sampling

CLIPPING_RULES = ("flat", "per_layer", "automatic", "adaptive")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What a private training run promises, fixed before its first step.

    δ, relation, sampling and unit have no defaults: they are the claim. The sampling probability and the
    normaliser derive from ``public_size`` and ``expected_batch_size`` alone, never from a count of the private
    records or of a realised batch.

    Parameters
    ----------
    delta : float
        δ of the claim, in (0, 1); a usual choice is 1/(2 ``public_size``).
    relation : Relation or str
        Neighbouring relation of the claim.
    sampling : Sampling or str
        How minibatches are drawn; the trainers here draw ``poisson``, ``truncated_poisson`` and ``none``.
    unit : str
        Unit of privacy in the users' words, such as "record" or "user".
    public_size : int
        Number of records as it may be published; fixed before any coin is flipped.
    expected_batch_size : float
        L: q = L / ``public_size``, and every noisy sum is divided by L.
    steps : int
        T, planned number of noisy releases.
    clipping_norm : float
        C, bound on one record's L2 contribution to the sum (AUTO-S's R; adaptive clipping's first C).
    target_epsilon : float or None
        ε the noise is calibrated to; give it or ``noise_multiplier``. Beside a noise multiplier that misses it,
        training is refused before its first step.
    noise_multiplier : float or None
        σ = noise standard deviation on the clipped sum divided by C; 0 means no privacy.
    max_records_per_unit : int
        Records one unit contributes at most; 1 where units are drawn whole.
    sampling_unit : str
        "record": records are drawn and clipped one by one. "unit": units of privacy are drawn, each with probability q,
        and their records' gradient is clipped as one; ``public_size`` and ``expected_batch_size`` then count units.
    records_per_unit : int or None
        G, records of a drawn unit that a step takes, with ``sampling_unit="unit"`` alone.
    unit_reduction : str
        "mean" or "sum" of a drawn unit's losses, which is then clipped: no question of privacy.
    clipping : str
        "flat", "per_layer", "automatic" (AUTO-S, Bu et al. 2206.07136) or "adaptive" (Andrew et al. 1905.03871).
    quantile_sigma : float or None
        Adaptive clipping only: noise on its count query, charged in the ledger.
    target_quantile, quantile_rate : float
        Adaptive clipping only: share of norms below C to steer to, and the rate of the geometric update.
    max_batch : int or None
        Cap of ``truncated_poisson``.
    mechanism : Mechanism or str
        ``gaussian`` for first-order training; ``laplace`` serves the zeroth-order trainers.
    releases_per_step, clip : int, Clip or None
        Directions that share one minibatch (zeroth order), as in :class:`dpaudit.Stage`.
    secure_noise : bool
        Every bit of noise from the operating system's generator directly; see :class:`dpaudit.trainers.NoiseSource`.

    Examples
    --------
    >>> plan = PrivacyPlan(delta=1e-4, relation="add_or_remove_one", sampling="poisson", unit="record",
    ...                    public_size=4000, expected_batch_size=200, steps=100, clipping_norm=0.1, target_epsilon=3)
    >>> plan.sampling_probability
    0.05
    >>> plan.with_noise_multiplier(1.1).stage().noise_multiplier
    1.1
    """

    delta: float
    relation: Relation
    sampling: Sampling
    unit: str
    public_size: int
    expected_batch_size: float
    steps: int
    clipping_norm: float
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    max_records_per_unit: int = 1
    clipping: str = "flat"
    quantile_sigma: float | None = None
    target_quantile: float = 0.5
    quantile_rate: float = 0.2
    max_batch: int | None = None
    mechanism: Mechanism = Mechanism.GAUSSIAN
    releases_per_step: int = 1
    clip: Clip | None = None
    secure_noise: bool = False
    sampling_unit: str = "record"
    records_per_unit: int | None = None
    unit_reduction: str = "mean"

    if TYPE_CHECKING:  # for type checkers: the constructor also takes the members' names

        def __init__(
            self,
            *,
            delta: float,
            relation: Relation | str,
            sampling: Sampling | str,
            unit: str,
            public_size: int,
            expected_batch_size: float,
            steps: int,
            clipping_norm: float,
            target_epsilon: float | None = None,
            noise_multiplier: float | None = None,
            max_records_per_unit: int = 1,
            clipping: str = "flat",
            quantile_sigma: float | None = None,
            target_quantile: float = 0.5,
            quantile_rate: float = 0.2,
            max_batch: int | None = None,
            mechanism: Mechanism | str = Mechanism.GAUSSIAN,
            releases_per_step: int = 1,
            clip: Clip | str | None = None,
            secure_noise: bool = False,
            sampling_unit: str = "record",
            records_per_unit: int | None = None,
            unit_reduction: str = "mean",
        ) -> None: ...

    def __post_init__(self) -> None:
        validate.open_unit(delta=self.delta)
        object.__setattr__(self, "relation", Relation.parse(self.relation))
        validate.one_of([s.value for s in Sampling], sampling=str(self.sampling))
        object.__setattr__(self, "sampling", Sampling(self.sampling))
        validate.integer_at_least(1, public_size=self.public_size)
        validate.integer_at_least(1, steps=self.steps, max_records_per_unit=self.max_records_per_unit)
        validate.positive(expected_batch_size=self.expected_batch_size, clipping_norm=self.clipping_norm)
        validate.finite(expected_batch_size=self.expected_batch_size)
        if self.expected_batch_size > self.public_size:
            raise InvalidValue(
                f"expected_batch_size={self.expected_batch_size} must be <= public_size={self.public_size};"
                " lower the batch or declare the size of the whole data set."
            )
        if self.sampling is Sampling.NONE and self.expected_batch_size != self.public_size:
            raise InvalidValue(
                f"sampling='none' with expected_batch_size={self.expected_batch_size} must have expected_batch_size="
                f"public_size={self.public_size}; choose sampling='poisson' for minibatches."
            )
        if self.target_epsilon is None and self.noise_multiplier is None:
            raise InvalidValue("target_epsilon and noise_multiplier are both missing; give one of the two.")
        if self.target_epsilon is not None:
            validate.positive(target_epsilon=self.target_epsilon)
        if self.noise_multiplier is not None:
            validate.non_negative(noise_multiplier=self.noise_multiplier)
        validate.one_of(CLIPPING_RULES, clipping=self.clipping)
        if (self.clipping == "adaptive") != (self.quantile_sigma is not None):
            raise InvalidValue(
                f"quantile_sigma={self.quantile_sigma} with clipping={self.clipping!r}: adaptive clipping needs"
                " quantile_sigma > 0 and the other rules take none; set both or neither."
            )
        if not 0 < self.target_quantile < 1:
            raise InvalidValue(f"target_quantile={self.target_quantile} must be in (0, 1); 0.5 steers to the median.")
        validate.positive(quantile_rate=self.quantile_rate)
        self._check_units()
        # A stage has rules of its own, which are to fail now and not at the first step.
        self._stage(self.noise_multiplier or 0.0, self.steps)

    def _check_units(self) -> None:
        validate.one_of(("record", "unit"), sampling_unit=self.sampling_unit)
        validate.one_of(("mean", "sum"), unit_reduction=self.unit_reduction)
        if (self.sampling_unit == "unit") != (self.records_per_unit is not None):
            raise InvalidValue(
                f"records_per_unit={self.records_per_unit} with sampling_unit={self.sampling_unit!r}: units drawn whole"
                " need the number of records that a step takes of each, and records drawn one by one take none; set"
                " both or neither."
            )
        if self.records_per_unit is None:
            return
        validate.integer_at_least(1, records_per_unit=self.records_per_unit)
        if self.max_records_per_unit != 1:
            raise InvalidValue(
                f"max_records_per_unit={self.max_records_per_unit} with sampling_unit='unit' must be 1: a drawn unit"
                " contributes one clipped gradient, however many records it has; records_per_unit says how many of them"
                " a step takes."
            )

    @property
    def draws_units(self) -> bool:
        """Whether units of privacy are drawn whole, and not their records one by one."""
        return self.sampling_unit == "unit"

    @property
    def sampling_probability(self) -> float:
        """q = expected_batch_size / public_size."""
        return self.expected_batch_size / self.public_size

    @property
    def is_calibrated(self) -> bool:
        """Whether σ is known."""
        return self.noise_multiplier is not None

    @property
    def normaliser(self) -> float:
        """L, the constant every noisy sum is divided by."""
        return self.expected_batch_size

    @property
    def noise_std(self) -> float:
        """σC, standard deviation of the noise on each coordinate of the clipped sum; 0 where σ is 0."""
        sigma = self._sigma()
        return sigma * self.clipping_norm if sigma else 0.0

    def with_noise_multiplier(self, noise_multiplier: float) -> PrivacyPlan:
        """The same plan at another σ; the target stays as the claim.

        Parameters
        ----------
        noise_multiplier : float
            σ.

        Returns
        -------
        PrivacyPlan
            With this σ.
        """
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)

    def stage(self, steps: int | None = None) -> Stage:
        """The stage this plan executes, with its planned number of steps or another.

        Parameters
        ----------
        steps : int, optional
            Number of steps; the planned one by default.

        Returns
        -------
        Stage
            As accountants and ledgers take it.

        Raises
        ------
        InvalidValue
            If σ is still to be calibrated.
        """
        return self._stage(self._sigma(), self.steps if steps is None else steps)

    def ledger(self) -> Ledger:
        """The ledger of the whole planned run."""
        return Ledger(
            stages=(self.stage(),),
            relation=self.relation,
            unit=self.unit,
            max_records_per_unit=self.max_records_per_unit,
        )

    def _sigma(self) -> float:
        if self.noise_multiplier is None:
            raise InvalidValue(
                f"noise_multiplier=None with target_epsilon={self.target_epsilon} must be a number before training;"
                " calibrate the plan first."
            )
        return self.noise_multiplier

    def _stage(self, noise_multiplier: float, steps: int) -> Stage:
        return Stage(
            sampling_probability=self.sampling_probability,
            noise_multiplier=noise_multiplier,
            steps=steps,
            sampling=self.sampling,
            mechanism=self.mechanism,
            releases_per_step=self.releases_per_step,
            clip=self.clip,
            max_batch=self.max_batch,
            clipping_norm=self.clipping_norm if math.isfinite(self.clipping_norm) else None,
            expected_batch_size=self.expected_batch_size,
            public_size=self.public_size,
            quantile_sigma=self.quantile_sigma,
        )
