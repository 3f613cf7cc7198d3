"""What an in-run audit will do, as a frozen value: fixed and published before the first step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dpaudit.auditing.design import choose_guesses, design
from dpaudit.auditing.independent import EPSILONS
from dpaudit.auditing.plan import AlphaSplit, AuditPlan
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.stage import Relation

COORDINATES, SCALARS = "coordinates", "scalars"
KINDS = (COORDINATES, SCALARS)
"""What a canary occupies: a coordinate of the gradient of its own, or all scalars of zeroth-order steps together."""
OBSERVER = "every noisy update"
"""Who sees what an in-run audit sees."""
FEWEST = 100
"""Fewer canaries than this show nothing; such a run records its energy alone."""
ATTACK = "in-run-likelihood-ratio"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InRunAlpha:
    """Levels of the in-run audit's tests, parts of the run's whole false-alarm budget.

    Attributes
    ----------
    primary : float
        For the unconditional bound on (ε, δ).
    profile : float
        For the test of the declared privacy profile.
    energy : float
        For the energy of the releases.
    """

    primary: float
    profile: float
    energy: float

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return math.fsum((self.primary, self.profile, self.energy))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControlDesign:
    """The simulated control: the trainer's sampler, noise and canaries without records, with a shortfall of noise.

    Attributes
    ----------
    noise_factor : float
        Noise of the control as a share of the declared noise; below 1.
    canaries : int
        Canaries of each repetition, at most those of the run.
    repeats : int
        Independent repetitions.
    """

    noise_factor: float
    canaries: int
    repeats: int

    def __post_init__(self) -> None:
        validate.integer_at_least(1, control_canaries=self.canaries, control_repeats=self.repeats)
        if not 0 <= self.noise_factor < 1:
            raise InvalidValue(f"control noise_factor={self.noise_factor} must be in [0, 1): it names a shortfall.")

    @property
    def fault(self) -> str:
        """The named fault, in words."""
        return f"noise of {self.noise_factor:g} times the declared deviation"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InRunPlan:
    """An in-run audit, frozen before training.

    Attributes
    ----------
    kind : str
        ``coordinates`` (a coordinate for each canary) or ``scalars`` (zeroth order: all canaries share the scalars).
    m : int
        Canaries with a fair coin; 0 where only the energy of the releases is recorded.
    dimension : int
        d: coordinates of one release (trained numbers, or the P scalars of a zeroth-order step).
    claimed_epsilon, delta, relation, unit
        The run's claim.
    guesses : int
        Guesses on either side of the unconditional bound; ``guesses_in_run`` says how many.
    alpha : float
        Failure probability of the printed bound.
    alpha_split : InRunAlpha
        Levels of the tests that may convict.
    epsilons : tuple of float
        Points of the declared privacy profile that are tested.
    commitment : str or None
        Hexadecimal SHA-256 of nonce ‖ canonical manifest of coordinates and coins.
    control : ControlDesign or None
        The simulated control that measures power.
    reason : str
        Why there are no canaries, where m is 0.
    """

    kind: str
    m: int
    dimension: int
    claimed_epsilon: float
    delta: float
    relation: Relation
    unit: str
    guesses: int
    alpha: float
    alpha_split: InRunAlpha
    epsilons: tuple[float, ...] = EPSILONS
    commitment: str | None = None
    control: ControlDesign | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        validate.one_of(KINDS, kind=self.kind)
        validate.integer_at_least(0, m=self.m, guesses=self.guesses)
        validate.integer_at_least(1, dimension=self.dimension)
        validate.positive(claimed_epsilon=self.claimed_epsilon)
        validate.open_unit(alpha=self.alpha, delta=self.delta, alpha_energy=self.alpha_split.energy)
        if self.m and not FEWEST <= self.m:
            raise InvalidValue(f"m={self.m} in-run canaries are too few to show anything; take {FEWEST}, or 0.")
        if self.m and not 1 <= self.guesses <= self.m // 2:
            raise InvalidValue(f"guesses={self.guesses} per side must be in 1..{self.m // 2} for m={self.m}.")
        if self.m:
            validate.open_unit(alpha_primary=self.alpha_split.primary, alpha_profile=self.alpha_split.profile)
        if self.alpha_split.total > self.alpha * (1 + 1e-12):
            raise InvalidValue(f"the parts of the in-run audit's level exceed alpha={self.alpha}; lower them.")
        if not self.epsilons or any(not 0 <= e <= 50 for e in self.epsilons):
            raise InvalidValue("epsilons of the profile test must be in [0, 50], and at least one.")
        if self.control is not None and self.control.canaries > self.m:
            raise InvalidValue(f"the control has {self.control.canaries} canaries and the run {self.m}; take no more.")

    def primary_plan(self) -> AuditPlan:
        """The plan of the unconditional bound alone, with its ceilings and expectation; refused for m = 0."""
        split = AlphaSplit(primary=self.alpha_split.primary, declared_mechanism=0.0, examiner=0.0)
        return design(
            self.m,
            self.claimed_epsilon,
            self.delta,
            self.alpha,
            relation=self.relation,
            unit=self.unit,
            attack=ATTACK,
            guesses=self.guesses,
            alpha_split=split,
            coin_commitment=self.commitment,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value: the key ``in_run`` of ``audit_plan.json``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["relation"] = self.relation.value
        values["alpha_split"] = dataclasses.asdict(self.alpha_split)
        values["epsilons"] = list(self.epsilons)
        values["control"] = None if self.control is None else dataclasses.asdict(self.control)
        return {"observer": OBSERVER, **values}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> InRunPlan:
        """Read what :meth:`to_dict` gave; an unknown or missing key is refused."""
        data = dict(value)
        if data.pop("observer", None) != OBSERVER:
            raise InvalidEvidence(f"the in-run plan names another observer than {OBSERVER!r}; restore the file.")
        fields = {f.name for f in dataclasses.fields(cls)}
        if set(data) != fields:
            odd = sorted(set(data) ^ fields)
            raise InvalidEvidence(f"the in-run plan has unknown or missing keys {odd}; restore the file.")
        try:
            data["relation"] = Relation.parse(data["relation"])
            data["alpha_split"] = InRunAlpha(**data["alpha_split"])
            data["epsilons"] = tuple(float(e) for e in data["epsilons"])
            data["control"] = None if data["control"] is None else ControlDesign(**data["control"])
            return cls(**data)
        except (TypeError, AttributeError, InvalidValue) as error:
            raise InvalidEvidence(f"the in-run plan cannot be used ({error}); restore the file.") from None


def split_alpha(alpha: float, *, canaries: bool = True) -> tuple[AlphaSplit, InRunAlpha]:
    """Divide a run's false-alarm budget between the two observers, their tests and the examination.

    40 % each for the bounds on (ε, δ) that the final model and the noisy updates show, 8 % for the declared profile in
    the run, and 4 % each for the declared curve at the final model, the examination and the releases' energy: those
    rest on many canaries or releases and need little level. Without in-run canaries their part falls to the final
    model.
    """
    validate.open_unit(alpha=alpha)

    def part(share: float) -> float:
        return round(share * alpha, 15)

    if not canaries:
        split = AlphaSplit(primary=part(0.8), declared_mechanism=part(0.08), examiner=part(0.08))
        return split, InRunAlpha(primary=0.0, profile=0.0, energy=part(0.04))
    split = AlphaSplit(primary=part(0.4), declared_mechanism=part(0.04), examiner=part(0.04))
    return split, InRunAlpha(primary=part(0.4), profile=part(0.08), energy=part(0.04))


def guesses_in_run(m: int, claimed_epsilon: float, delta: float, levels: InRunAlpha) -> int:
    """Guesses on either side of an in-run audit, from m, claim, level and δ alone; 0 without canaries."""
    return choose_guesses(m, claimed_epsilon, delta, levels.primary)[0] if m else 0
