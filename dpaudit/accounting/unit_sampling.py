"""Records or whole units: which design leaves less noise at the same ε for a unit and the same number of gradients.

Both are priced by the accountant alone, before a record is read (Charles et al., 2407.07737). With records drawn, the
number of a unit's records in a step is Binomial(k, q). With units drawn, a unit enters as one clipped gradient of G
records.
"""

from __future__ import annotations

import dataclasses
import math

from dpaudit.accounting.calibrate import StageTarget, calibrate_noise_multiplier
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Relation, Sampling, Stage


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnitDesign:
    """One way to draw minibatches, with its noise calibrated to the target ε.

    Parameters
    ----------
    sampling_unit : str
        "record" or "unit", as in a configuration.
    sampling_probability : float
        q of a record, or of a unit.
    contributions : float
        L, expected number of clipped gradients in a step.
    noise_multiplier : float
        σ, smallest that the accountant certifies.
    """

    sampling_unit: str
    sampling_probability: float
    contributions: float
    noise_multiplier: float

    @property
    def noise(self) -> float:
        """σ/L: deviation of the noise in a coordinate of the mean, in clipping norms."""
        return self.noise_multiplier / self.contributions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UnitSampling:
    """Both designs at the same ε, δ, steps and gradients.

    Parameters
    ----------
    records, units : UnitDesign
    records_per_unit : int
        G of the drawn units.
    """

    records: UnitDesign
    units: UnitDesign
    records_per_unit: int

    @property
    def break_even(self) -> float:
        """Largest norm of a unit's mean gradient, in norms of one record's, at which drawn units have less noise.

        It is 1 where the gradients of a unit's records agree and 1/√G where they are independent.
        """
        return self.records.noise / self.units.noise

    @property
    def better(self) -> str:
        """ "unit" or "record" where that holds however the gradients of a unit agree, else "depends"."""
        if self.break_even >= 1:
            return "unit"
        return "record" if self.break_even * math.sqrt(self.records_per_unit) <= 1 else "depends"

    def __str__(self) -> str:
        words = {
            "unit": "draw whole units: they have less noise however alike the records of a unit are",
            "record": "draw records: units would have more noise however unlike the records of a unit are",
            "depends": "draw whole units where the records of a unit are unlike each other",
        }
        return (
            f"{words[self.better]} (a unit's mean gradient may be {self.break_even:.3g} times as long as a record's;"
            f" it is 1 where they agree and {1 / math.sqrt(self.records_per_unit):.3g} where they are independent)."
        )


def compare_unit_sampling(
    *,
    target_epsilon: float,
    delta: float,
    relation: str | Relation,
    steps: int,
    units: int,
    records: int,
    max_records_per_unit: int,
    cohort: float,
    records_per_unit: int,
    accountant: str = "prv",
) -> UnitSampling:
    """Draw records, or whole units, at the same ε for a unit and the same gradients a step.

    Parameters
    ----------
    target_epsilon, delta, relation
        The claim for one unit.
    steps : int
        T.
    units, records : int
        Public numbers of units and of records, the latter after the bound.
    max_records_per_unit : int
        k, bound on a unit's records where records are drawn; up to 128.
    cohort : float
        Expected number of units in a step where units are drawn.
    records_per_unit : int
        G, records of a drawn unit in a step. Records are drawn at cohort · G a step.
    accountant : str

    Returns
    -------
    UnitSampling

    Raises
    ------
    InvalidValue
        For numbers that contradict each other.

    Examples
    --------
    >>> found = compare_unit_sampling(target_epsilon=2, delta=1e-6, relation="add_or_remove_one", steps=100, units=500,
    ...                               records=4000, max_records_per_unit=16, cohort=100, records_per_unit=4)
    >>> found.better, round(found.break_even, 2)
    ('unit', 1.92)
    """
    validate.integer_at_least(1, units=units, records=records, max_records_per_unit=max_records_per_unit)
    validate.integer_at_least(1, records_per_unit=records_per_unit)
    validate.positive(cohort=cohort)
    gradients = cohort * records_per_unit
    if cohort > units or gradients > records:
        raise InvalidValue(
            f"cohort={cohort:g} of units={units}, with records_per_unit={records_per_unit} of records={records}, asks"
            " for more than there is; lower the cohort."
        )
    if records > units * max_records_per_unit:
        raise InvalidValue(
            f"records={records} must be <= units={units} times max_records_per_unit={max_records_per_unit}; give the"
            " number of records that stay under the bound."
        )

    def design(kind: str, contributions: float, size: int, group: int) -> UnitDesign:
        q = contributions / size
        stage = Stage(sampling_probability=q, noise_multiplier=1.0, steps=steps, sampling=Sampling.POISSON)
        target = StageTarget(
            epsilon=target_epsilon,
            delta=delta,
            relation=Relation.parse(relation),
            accountant=accountant,
            group_size=group,
        )
        sigma = calibrate_noise_multiplier(stage, target)
        return UnitDesign(
            sampling_unit=kind, sampling_probability=q, contributions=contributions, noise_multiplier=sigma
        )

    return UnitSampling(
        records=design("record", gradients, records, max_records_per_unit),
        units=design("unit", cohort, units, 1),
        records_per_unit=records_per_unit,
    )
