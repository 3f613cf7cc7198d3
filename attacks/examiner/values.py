"""What an examination says: findings with their witnesses, the tests that ran, and those that could not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.privacy import validate
from dpaudit.privacy.rounding import upper_text

STATUSES = ("violated", "accounting_mismatch", "note")
"""``violated``: the step function breaks its plan; ``accounting_mismatch``: the bookkeeping does; ``note``: a
departure from the plan that costs no privacy."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExamFinding:
    """One departure of a training step from its plan.

    Attributes
    ----------
    name : str
        Cause in the examiner's vocabulary, such as ``noise_scale``; see :data:`CAUSES`.
    status : str
        One of :data:`STATUSES`.
    claim : str
        "step function", "declared mechanism" or "ledger".
    text : str
        Plain words: what was measured, and what it means.
    deterministic : bool
        True for a witness that needs no statistics.
    p_value : float or None
        Upper bound on the probability of such evidence for a correct step, corrected for this test's comparisons.
    power, excludes
        Unused for a finding; what a clean test excludes stands in :class:`ExamTest`.
    detail : mapping
        The witness: the two data sets (as record numbers), the measured number, the bound. PRIVATE when the records
        are a user's: only ``name`` may leave ``private/``.
    """

    name: str
    status: str
    claim: str
    text: str
    deterministic: bool = False
    p_value: float | None = None
    power: float | None = None
    excludes: str = ""
    detail: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        validate.one_of(STATUSES, status=self.status)
        validate.one_of(CAUSES, name=self.name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with the keys of an audit's finding."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["detail"] = dict(self.detail)
        return values

    def public(self) -> dict[str, Any]:
        """What may leave ``private/``: the name of the cause and its standing text, no number of the witness."""
        return {"name": self.name, "status": self.status, "claim": self.claim, "text": CAUSES[self.name]}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExamTest:
    """One test that ran.

    Attributes
    ----------
    name, group : str
        Test and its group: replay, noise, sampler, ledger or step_audit.
    evidence : str
        How much was observed.
    alpha : float
        Probability of a false alarm of this test on a correct step, at most; 0 for deterministic ones.
    excludes : str
        Fault that a clean result excludes with probability ``power``.
    power : float or None
        At least this, for the fault named in ``excludes``.
    """

    name: str
    group: str
    evidence: str
    alpha: float = 0.0
    excludes: str = ""
    power: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The result of :func:`dpaudit.attacks.examine`.

    Attributes
    ----------
    findings : tuple of ExamFinding
        Root causes first; empty when nothing was found, which proves nothing beyond ``tests``.
    tests : tuple of ExamTest
        What ran, with its evidence and false-alarm probability.
    untested : tuple of str
        What could not be tested, and why. Never to be read as passed.
    alpha : float
        Probability, at most, that a correct step function gets any statistical finding.
    epsilon_lower : float or None
        ε that the step-level audit's lower bound on μ composes to, by the accountant handed in.
    seconds : float
        Time taken.
    """

    findings: tuple[ExamFinding, ...]
    tests: tuple[ExamTest, ...]
    untested: tuple[str, ...]
    alpha: float
    epsilon_lower: float | None = None
    mu_lower: float | None = None
    seconds: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Causes found, root causes first, each once."""
        return tuple(dict.fromkeys(finding.name for finding in self.findings))

    @property
    def violated(self) -> bool:
        """Whether any finding is more than a note."""
        return any(finding.status != "note" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "violated": self.violated,
            "findings": [finding.to_dict() for finding in self.findings],
            "tests": [test.to_dict() for test in self.tests],
            "untested": list(self.untested),
            "alpha": self.alpha,
            "mu_lower": self.mu_lower,
            "epsilon_lower": self.epsilon_lower,
            "seconds": self.seconds,
        }


CAUSES: dict[str, str] = {
    # replay
    "step_failed": "The training step raised an error on records that it must accept.",
    "ledger_directions": "A step releases more numbers than the plan's directions.",
    "carried_over": "A step's release still holds records of an earlier step.",
    "empty_batch": "An empty minibatch is not released like any other step.",
    "non_finite": "A record with a non-finite loss or gradient reaches the release; its contribution must be zero.",
    "normaliser_realised_batch": "The sum is divided by the realised batch size, which one record changes.",
    "normaliser_data_size": "The divisor of the sum follows the number of records, which differs between neighbours.",
    "clipped_after_averaging": "The clip acts on several records at once and not on each record's own gradient.",
    "unclipped_parameter": "The gradient of a parameter escapes the clip and grows with the record's loss.",
    "unclipped": "A record's contribution is not clipped: it grows with the record's loss.",
    "norm_underestimated": "The clip bounds a norm that is smaller than the contribution's true norm.",
    "coupled_examples": "A record's contribution depends on the other records in its batch.",
    "sensitivity": "One record moves the released sum by more than the clipping norm.",
    "private_output": "A published value depends on the records and carries no noise.",
    # noise
    "noise_missing": "The release carries no noise.",
    "noise_missing_on_steps": "Some steps are released with too little noise or none.",
    "noise_missing_on_parameter": "Some parameters are released without noise.",
    "noise_scale_parameter": "Some parameters are released with less noise than the plan says.",
    "noise_repeated": "The same noise is added at more than one step, so that differences of releases carry none.",
    "noise_correlated_coordinates": "Coordinates share their noise, so that some combinations carry none.",
    "noise_correlated_steps": "The noise of one step depends on the noise of another.",
    "noise_public_seed": "The noise is a function of public seeds, so that anyone can subtract it.",
    "noise_depends_on_batch": "The noise's scale changes with the records in the batch.",
    "noise_scale": "The noise is smaller than the plan says.",
    "noise_not_gaussian": "The noise does not follow the declared distribution.",
    "noise_scale_high": "The noise is larger than the plan says, which costs utility and no privacy.",
    # sampler
    "sampling_rate": "Records take part more or less often than the plan's q.",
    "sampling_repeats_in_batch": "A record stands more than once in one minibatch.",
    "sampling_unequal": "Some records take part more often than others.",
    "sampling_without_replacement": "Consecutive minibatches avoid each other's records, as shuffled epochs do.",
    "sampling_repeated_batches": "Minibatches come back: two releases of one minibatch are one with less noise.",
    "sampling_batch_size": "The spread of the batch sizes is not that of the declared sampling.",
    "sampling_public_seed": "The minibatches are a function of public seeds.",
    # ledger
    "claimed_epsilon": "The certified accountant finds a larger ε than the claim.",
    "claimed_delta": "The claimed δ is not smaller than 1/N.",
    "ledger_steps": "The ledger counts fewer steps than were released.",
    "ledger_stage": "The ledger's stage differs from the plan that it should record.",
    "ledger_resume": "Steps after a resume do not add to those before it.",
    "ledger_chain": "The ledger's chain of digests is broken.",
    # step-level audit
    "step_audit": "A record's presence in a step shows more clearly than the plan's noise allows.",
    # plan fidelity without privacy cost
    "update_missing": "The release does not reach the weights.",
    "update_direction": "The weights move along other directions than those that were evaluated.",
    "proximal_missing": "The proximal pull towards the stage's anchor is not applied.",
    "scale_schedule": "The perturbation scale differs from the plan's schedule.",
}
"""Every cause the examiner names, with its standing text; order is the order of reporting, root causes first."""


def found(
    name: str,
    words: str,
    p_value: float | None = None,
    /,
    *,
    status: str = "violated",
    claim: str = "step function",
    deterministic: bool | None = None,
    **witness: Any,
) -> ExamFinding:
    """A finding whose text is the cause's standing text, what was measured, and the chance of that."""
    chance = "" if p_value is None else f" (p ≤ {upper_text(p_value, 2)} for a correct step)"
    return ExamFinding(
        name=name,
        status=status,
        claim=claim,
        text=f"{CAUSES[name]} Measured: {words}{chance}.",
        deterministic=p_value is None if deterministic is None else deterministic,
        p_value=p_value,
        detail=witness,
    )


_ORDER = {name: rank for rank, name in enumerate(CAUSES)}


def by_root_cause(findings: list[ExamFinding]) -> tuple[ExamFinding, ...]:
    """Violations before notes, causes in the order of :data:`CAUSES`, the first witness of each cause alone."""
    first: dict[str, ExamFinding] = {}
    for finding in findings:
        first.setdefault(finding.name, finding)
    return tuple(sorted(first.values(), key=lambda f: (f.status == "note", _ORDER[f.name])))
