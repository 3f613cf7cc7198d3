"""Results of an examination: findings with their witnesses, the tests that ran, and those that could not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from dpaudit.attacks.examiner.causes import CAUSES, RANK, TABLE
from dpaudit.privacy import validate
from dpaudit.privacy.finding import FindingFields
from dpaudit.privacy.rounding import upper_text

STATUSES = ("violated", "accounting_mismatch", "conditional", "note")
"""``violated``: the step function breaks its plan; ``accounting_mismatch``: the bookkeeping does; ``conditional``: the
guarantee fails under a condition that the step alone does not decide, which convicts nobody by itself; ``note``: a
departure from the plan that costs no privacy."""

CONVICTING = ("violated", "accounting_mismatch")
"""Statuses that convict."""

PARTS = ("replay", "noise", "sampler")
"""Groups of tests that an examination in full has run to their end."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExamFinding(FindingFields):
    """One departure of a training step from its plan: the fields of an audit's finding, and what it explains.

    Attributes
    ----------
    name : str
        Cause in the examiner's vocabulary, such as ``noise_scale``; see ``dpaudit.attacks.examiner.causes.TABLE``.
    status : str
        One of ``STATUSES``.
    claim : str
        "step function", "declared mechanism" or "ledger".
    p_value : float or None
        Upper bound on the probability of such evidence for a correct step, corrected for this test's comparisons.
    power, excludes
        Unused for a finding; what a clean test excludes stands in :class:`ExamTest`.
    detail : mapping
        The witness: the two data sets (as record numbers), the measured number, the bound. PRIVATE when the records
        are a user's: only ``name`` may leave ``private/``.
    repeated : tuple of str
        Names that were found too and that this cause explains.
    """

    repeated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate.one_of(STATUSES, status=self.status)
        validate.one_of(CAUSES, name=self.name)

    def public(self) -> dict[str, Any]:
        """What may leave ``private/``: the name of the cause and its standing text, no number of the witness.

        A conditional finding stands there as a note with its ``condition``.
        """
        conditional = self.status == "conditional"
        status = "note" if conditional else self.status
        value: dict[str, Any] = {"name": self.name, "status": status, "claim": self.claim, "text": CAUSES[self.name]}
        if conditional:
            value["condition"] = TABLE[self.name].condition
        if self.repeated:
            value["repeated"] = list(self.repeated)
        return value


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
    size : float or None
        The size of that fault as a number, in ``unit``.
    unit : str
        "sigma" (share of the planned noise), "C" (contribution over the clipping norm), "q" (sampling probability over
        the plan's), or empty.
    """

    name: str
    group: str
    evidence: str
    alpha: float = 0.0
    excludes: str = ""
    power: float | None = None
    size: float | None = None
    unit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """Fault sizes that an examination would have named with probability 0.99 or more; None where nothing was tested.

    Attributes
    ----------
    noise : float or None
        Noise below this share of the plan's σ. None: the noise test did not run.
    contribution : float or None
        A contribution above this many C, on the records replayed. None: nothing was replayed without noise.
    sampling : float or None
        A sampling probability above this multiple of the plan's q. None: the sampler was not observed.
    """

    noise: float | None = None
    contribution: float | None = None
    sampling: float | None = None

    @classmethod
    def by(cls, tests: Sequence[ExamTest]) -> Excluded:
        """What the tests of one step exclude: the smallest fault of each kind that any of them would name."""
        sizes: dict[str, list[float]] = {"sigma": [], "C": [], "q": []}
        for test in tests:
            if test.size is not None:
                sizes[test.unit].append(test.size)
        return cls(
            noise=max(sizes["sigma"], default=None), contribution=min(sizes["C"], default=None),
            sampling=min(sizes["q"], default=None),
        )  # fmt: skip

    def worst(self, other: Excluded) -> Excluded:
        """The larger fault sizes of two examinations: several stages exclude what the weakest of them excludes."""
        return Excluded(
            noise=_both(min, self.noise, other.noise),
            contribution=_both(max, self.contribution, other.contribution),
            sampling=_both(max, self.sampling, other.sampling),
        )


def _both(choose: Callable[[float, float], float], first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else choose(first, second)


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
    excluded : Excluded
        Fault sizes, in σ, C and q, that the tests exclude.
    partial : tuple of str
        Those of "replay", "noise" and "sampler" that were cut off, lacked a method of the adapter, or did not fit.
    epsilon_lower : float or None
        ε that the step-level audit's lower bound on μ composes to, by the accountant handed in.
    seconds : float
        Time taken.
    """

    findings: tuple[ExamFinding, ...]
    tests: tuple[ExamTest, ...]
    untested: tuple[str, ...]
    alpha: float
    excluded: Excluded = Excluded()
    partial: tuple[str, ...] = PARTS
    epsilon_lower: float | None = None
    mu_lower: float | None = None
    seconds: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Causes found, root causes first, each once."""
        return tuple(dict.fromkeys(finding.name for finding in self.findings))

    @property
    def violated(self) -> bool:
        """Whether any finding convicts: a note and a conditional finding do not."""
        return any(finding.status in CONVICTING for finding in self.findings)

    @property
    def noise_tested(self) -> bool:
        """Whether the tests of the noise's scale ran."""
        return self.excluded.noise is not None

    @property
    def in_full(self) -> bool:
        """Whether replays, noise and sampler were all tested to the end: no finding then excludes what is listed."""
        known = (self.excluded.noise, self.excluded.contribution, self.excluded.sampling)
        return not self.partial and None not in known

    def __str__(self) -> str:
        from dpaudit.attacks.examiner.text import examination_text

        return examination_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {
            "violated": self.violated,
            "findings": [finding.to_dict() for finding in self.findings],
            "tests": [test.to_dict() for test in self.tests],
            "untested": list(self.untested),
            "alpha": self.alpha,
            "excluded": dataclasses.asdict(self.excluded),
            "noise_tested": self.noise_tested,
            "in_full": self.in_full,
            "partial": list(self.partial),
            "mu_lower": self.mu_lower,
            "epsilon_lower": self.epsilon_lower,
            "seconds": self.seconds,
        }


def found(
    name: str,
    words: str,
    p_value: float | None = None,
    /,
    *,
    status: str = "",
    claim: str = "step function",
    deterministic: bool | None = None,
    **witness: Any,
) -> ExamFinding:
    """A finding whose text is the cause's standing text, what was measured, and the chance of that."""
    chance = "" if p_value is None else f" (p ≤ {upper_text(p_value, 2)} for a correct step)"
    return ExamFinding(
        name=name,
        status=status or ("conditional" if TABLE[name].condition else "violated"),
        claim=claim,
        text=f"{CAUSES[name]} Measured: {words}{chance}.",
        deterministic=p_value is None if deterministic is None else deterministic,
        p_value=p_value,
        detail=witness,
    )


def by_root_cause(findings: Sequence[ExamFinding]) -> tuple[ExamFinding, ...]:
    """Causes in the order of :data:`TABLE`, those that convict first, the first witness of each cause alone.

    A name that another cause found explains is listed under that one and not beside it.
    """
    first: dict[str, ExamFinding] = {}
    for finding in findings:
        first.setdefault(finding.name, finding)
    grade = {"conditional": 1, "note": 2}
    ordered = sorted(first.values(), key=lambda f: (grade.get(f.status, 0), RANK[f.name]))
    roots: list[ExamFinding] = []
    for finding in ordered:
        for place, root in enumerate(roots):
            if root.status in CONVICTING and finding.name in TABLE[root.name].explains:
                roots[place] = dataclasses.replace(root, repeated=(*root.repeated, finding.name, *finding.repeated))
                break
        else:
            roots.append(finding)
    return tuple(roots)
