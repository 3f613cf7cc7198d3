"""The audit plan: everything that is fixed before the first training step, as a frozen value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.auditing.beacons import BeaconPlan
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.stage import Relation

PLAN_SCHEMA = "dpaudit.audit_plan/1"
PRIMARY_ONE_RUN = "steinke_nasr_jagielski"
PRIMARY_MANY_RUNS = "clopper_pearson_split"
KINDS = {"one_run": PRIMARY_ONE_RUN, "many_runs": PRIMARY_MANY_RUNS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlphaSplit:
    """How the false-alarm budget α is divided; the parts may not exceed the whole.

    Attributes
    ----------
    primary : float
        For the verdict on (ε, δ) by the primary estimator.
    declared_mechanism : float
        For the test of the declared mechanism's trade-off curve.
    examiner : float
        For the white-box tests of the step function.
    """

    primary: float = 0.04
    declared_mechanism: float = 0.005
    examiner: float = 0.005

    @classmethod
    def of(cls, alpha: float) -> AlphaSplit:
        """Divide ``alpha`` as 80 % primary, 10 % declared mechanism, 10 % examiner."""
        validate.open_unit(alpha=alpha)
        return cls(
            primary=round(0.8 * alpha, 15), declared_mechanism=round(0.1 * alpha, 15), examiner=round(0.1 * alpha, 15)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """What an audit will do, frozen before training; :func:`dpaudit.auditing.design` makes one.

    Attributes
    ----------
    m : int
        Canaries with a coin (pairs, for replace_one; runs, for many_runs).
    copies : int
        How many times an inserted canary stands in the data; k > 1 tests the group-k claim.
    guesses_in, guesses_out : int
        The top ``guesses_in`` scores are guessed "in", the bottom ``guesses_out`` "out", the others not at all.
    k_rule : str
        How the numbers of guesses were chosen.
    kind : str
        ``one_run`` or ``many_runs``.
    attack, attack_parameters
        Name and parameters of the score.
    primary : str
        The one estimator that may convict on (ε, δ).
    alpha, alpha_split
        Failure probability of the printed bound, and its division for the verdict.
    claimed_epsilon, delta, relation, unit
        The claim for one unit of privacy.
    group_epsilon : float or None
        The accountant's ε for ``copies`` records at the same δ; required for a verdict when ``copies`` > 1.
    coin_commitment : str or None
        Hexadecimal SHA-256 that commits to the coins, if made before training.
    ceiling, ceiling_at_verdict : float
        Largest ε a perfect attack could show at confidence 1 − ``alpha``, and at the verdict's stricter level.
    expected_epsilon_lower : float
        Mean bound at 1 − ``alpha`` if a Gaussian mechanism were exactly as claimed and the attack optimal.
    power_if_attack_were_optimal : float
        Probability that the optimal attack convicts a Gaussian mechanism with half of the claimed noise.
    decidable : bool
        False when no number of guesses has a ceiling above 1.1 × the claim, at the verdict's level.
    m_needed : int or None
        About how many canaries would make an undecidable claim decidable; None where decidable, or no number does.
    guesses_mechanism : int or None
        Guesses per side of the declared-mechanism test and of bounds that assume Gaussian noise; None: as the primary.
    control_canaries : int or None
        Fewest canaries of a positive control (over all its runs) that can show a power of at least 0.8 at the lower end
        of its 95 % interval, every guess right; with fewer no verdict is ``consistent``. None where no control can, and
        in plans written before this was stated.
    in_run : mapping or None
        The in-run audit of the same run, as :class:`~dpaudit.auditing.in_run.plan.InRunPlan` writes it; its levels
        come out of the same ``alpha``. None where there is none.
    beacons : BeaconPlan or None
        Canaries with many copies, outside the audit, that show whether the attack is alive. None where there are none;
        the canaries' own scores must show it then.

    Raises
    ------
    InvalidValue
        If more guesses than canaries are planned, the parts of ``alpha_split`` exceed ``alpha``, or a value is out
        of its bounds.
    """

    m: int
    copies: int
    guesses_in: int
    guesses_out: int
    k_rule: str
    attack: str
    attack_parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: str = "one_run"
    primary: str = PRIMARY_ONE_RUN
    alpha: float = 0.05
    alpha_split: AlphaSplit = dataclasses.field(default_factory=AlphaSplit)
    claimed_epsilon: float
    delta: float
    relation: Relation
    unit: str
    group_epsilon: float | None = None
    coin_commitment: str | None = None
    ceiling: float
    ceiling_at_verdict: float
    expected_epsilon_lower: float
    power_if_attack_were_optimal: float
    decidable: bool
    m_needed: int | None = None
    guesses_mechanism: int | None = None
    control_canaries: int | None = None
    in_run: Mapping[str, Any] | None = None
    beacons: BeaconPlan | None = None

    def __post_init__(self) -> None:
        validate.integer_at_least(1, m=self.m, copies=self.copies)
        validate.label(unit=self.unit, attack=self.attack)
        validate.integer_at_least(0, guesses_in=self.guesses_in, guesses_out=self.guesses_out)
        if self.guesses_in + self.guesses_out > self.m:
            raise InvalidValue(
                f"guesses_in={self.guesses_in} + guesses_out={self.guesses_out} exceeds m={self.m};"
                " guess each canary at most once."
            )
        if self.guesses_mechanism is not None and not 1 <= self.guesses_mechanism <= self.m // 2:
            raise InvalidValue(f"guesses_mechanism={self.guesses_mechanism} per side must be in 1..{self.m // 2}.")
        if self.control_canaries is not None:
            validate.integer_at_least(1, control_canaries=self.control_canaries)
        validate.one_of(KINDS, kind=self.kind)
        validate.one_of([KINDS[self.kind]], primary=self.primary)
        validate.positive(claimed_epsilon=self.claimed_epsilon)
        validate.open_unit(alpha=self.alpha, delta=self.delta)
        parts = self.alpha_split
        validate.open_unit(alpha_primary=parts.primary)
        validate.non_negative(alpha_declared=parts.declared_mechanism, alpha_examiner=parts.examiner)
        if parts.primary + parts.declared_mechanism + parts.examiner + _in_run_level(self) > self.alpha * (1 + 1e-12):
            raise InvalidValue(f"the parts of alpha_split exceed alpha={self.alpha}; make them sum to alpha or less.")

    @property
    def mechanism_guesses(self) -> tuple[int, int]:
        """Guesses in and out of the declared-mechanism test."""
        k = self.guesses_mechanism
        return (self.guesses_in, self.guesses_out) if k is None else (k, k)

    @property
    def tested_epsilon(self) -> float | None:
        """ε that the canaries test: the claim, or for copies > 1 the group claim (None when not known)."""
        return self.claimed_epsilon if self.copies == 1 else self.group_epsilon

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.audit_plan/1``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["attack_parameters"] = dict(self.attack_parameters)
        values["alpha_split"] = dataclasses.asdict(self.alpha_split)
        values["relation"] = self.relation.value
        if self.control_canaries is None:
            del values["control_canaries"]  # earlier plans lack this field, and their bytes must stay as they are
        if self.in_run is None:
            del values["in_run"]
        else:
            values["in_run"] = dict(self.in_run)
        if self.beacons is None:
            del values["beacons"]
        else:
            values["beacons"] = self.beacons.to_dict()
        return {"schema": PLAN_SCHEMA, **values}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> AuditPlan:
        """Read a plan written by :meth:`to_dict`; an unknown key or schema is refused.

        Parameters
        ----------
        value : mapping
            Plain JSON value, with its schema.

        Returns
        -------
        AuditPlan
            Equal to the one that was written.

        Raises
        ------
        InvalidEvidence
            If the schema or a key is unknown, or a key is missing.
        InvalidValue
            If a value is out of its bounds.
        """
        data = dict(value)
        schema = data.pop("schema", None)
        if schema != PLAN_SCHEMA:
            raise InvalidEvidence(
                f"audit plan schema={schema!r} is not {PLAN_SCHEMA!r}; use the version that wrote it."
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        required = {
            n
            for n, f in fields.items()
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        odd, missing = sorted(set(data) - set(fields)), sorted(required - set(data))
        if odd or missing:
            raise InvalidEvidence(f"audit plan has unknown keys {odd} and lacks keys {missing}; restore the file.")
        try:
            if "alpha_split" in data:
                data["alpha_split"] = AlphaSplit(**data["alpha_split"])
            if data.get("beacons") is not None:
                data["beacons"] = BeaconPlan.from_dict(data["beacons"])
            data["relation"] = Relation.parse(data["relation"])
            return cls(**data)
        except (TypeError, AttributeError) as error:
            raise InvalidEvidence(f"audit plan holds a value of another type ({error}); restore the file.") from None


def _in_run_level(plan: AuditPlan) -> float:
    """What the in-run audit takes of the level."""
    if plan.in_run is None:
        return 0.0
    try:
        levels = [float(level) for level in plan.in_run["alpha_split"].values()]
    except (KeyError, AttributeError, TypeError, ValueError):
        raise InvalidValue("in_run states no levels; write what an in-run plan gives.") from None
    validate.non_negative(**{f"alpha_in_run_{i}": level for i, level in enumerate(levels)})
    return sum(levels)
