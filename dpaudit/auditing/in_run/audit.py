"""The in-run audit: what the noisy updates say about the claim and about the declared mechanism."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dpaudit.auditing.at_level import NOT_REFUTED, AtLevel
from dpaudit.auditing.audit import audit
from dpaudit.auditing.energy import EnergyTest, energy_test, finding_from_energy, smallest_visible_shortfall
from dpaudit.auditing.in_run.evidence import InRunEvidence
from dpaudit.auditing.in_run.plan import COORDINATES, OBSERVER, InRunPlan
from dpaudit.auditing.in_run.visible import expected_auc, smallest_visible_canary_shortfall
from dpaudit.auditing.independent import (
    CHOOSING,
    ProfileTest,
    independent_epsilon_lower,
    profile_test,
    profile_test_of_counts,
)
from dpaudit.auditing.liveness import LIVE_P_VALUE
from dpaudit.auditing.one_run import snj_p_value
from dpaudit.auditing.rates import rate_lower, rate_upper
from dpaudit.auditing.result import AuditResult, Bound
from dpaudit.auditing.roc import auc, rank_sum_p_value
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import lower_text, nearest_text, percent_upper
from dpaudit.privacy.stage import Stage

_TAIL = 0.025  # each end of a 95 % interval
WEAK = 0.5
"""Least share of the declared separation of the scores that a live observer has."""
MISSING = 0.1
"""Largest share of counted steps whose release an honest record may lack: a crash loses those since a checkpoint."""
SHARED = ("null_scores", "reversed_scores", "ceiling", "primary_bound", "coin_count", "canary_count")
"""Findings of :func:`dpaudit.auditing.audit` that an in-run audit can have, all under the prefix ``in_run_``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControlPower:
    """How often the audit convicted its simulated control.

    Attributes
    ----------
    fault : str
        What the control lacks, in words.
    repeats, convicted : int
        Independent repetitions, and those that a test of the plan convicts.
    power, lower, upper : float
        Share convicted, with its 95 % Clopper-Pearson interval; a verdict rests on ``lower``.
    """

    fault: str
    repeats: int
    convicted: int
    power: float
    lower: float
    upper: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InRunResult:
    """What an in-run audit found; made by :func:`in_run_audit`.

    Attributes
    ----------
    m, members : int
        Canaries, and those in the data.
    audit : AuditResult or None
        The unconditional one-run bound and everything :func:`dpaudit.auditing.audit` says of these scores; its verdict
        is that of the bound alone. None without canaries.
    rank_sum_p : float or None
        P-value of "the scores carry no trace of membership".
    alive : bool
        Whether it is at most 1e-6 and the area under the curve has at least half of the excess over 1/2 that the
        declared steps lead to: an observer that is dead, or missed most steps, supports nothing.
    expected_auc : float or None
        Area under the curve that the declared steps lead to, where only the noise moves a canary's coordinate.
    steps : int
        Releases in the energy record.
    profile : ProfileTest or None
        Test of the declared mechanism's privacy profile; conditional on independent canaries.
    conditional : Bound or None
        Lower bound on ε that holds if the canaries are independent.
    energy : EnergyTest or None
        Test of the releases' energy against the declared noise.
    control : ControlPower or None
        Power against the plan's named shortfall of noise.
    visible_by_energy, visible_by_canaries : float or None
        Smallest relative shortfall of noise in the whole run that would have been refuted with probability 0.95, with
        what records hid in this run at its upper confidence limit.
    hidden : bool
        Whether records hid more of the noise in this run than the control's fault lacks, from both witnesses. The
        control has no records, so that its power is then not the run's.
    findings : tuple of Finding
        What they say about the verdict.
    """

    m: int = 0
    members: int = 0
    audit: AuditResult | None = None
    rank_sum_p: float | None = None
    alive: bool = False
    expected_auc: float | None = None
    steps: int = 0
    profile: ProfileTest | None = None
    conditional: Bound | None = None
    energy: EnergyTest | None = None
    control: ControlPower | None = None
    visible_by_energy: float | None = None
    visible_by_canaries: float | None = None
    hidden: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def epsilon_lower(self) -> float | None:
        """Unconditional lower bound on ε with the plan's confidence."""
        return None if self.audit is None else self.audit.epsilon_lower

    @property
    def power_lower(self) -> float | None:
        """Lower end of the power's 95 % interval; None without a live observer and a control whose fault it sees."""
        return self.control.lower if self.control is not None and self.alive and not self.hidden else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        primary = None
        if self.audit is not None:
            whole = self.audit.to_dict()
            primary = {**whole["primary"], "ceiling": whole["ceiling"], "expected": whole["expected_epsilon_lower"]}
            primary |= {"tested_epsilon": self.audit.tested_epsilon, "claim_tested": self.audit.claim_tested}
        return {
            "observer": OBSERVER,
            "m": self.m,
            "members": self.members,
            "primary": primary,
            "auc": None if self.audit is None or self.audit.auc is None else dict(self.audit.auc),
            "rank_sum_p": self.rank_sum_p,
            "alive": self.alive,
            "expected_auc": self.expected_auc,
            "steps": self.steps,
            "profile": None if self.profile is None else dataclasses.asdict(self.profile),
            "conditional": None if self.conditional is None else self.conditional.to_dict(),
            "energy": None if self.energy is None else dataclasses.asdict(self.energy),
            "control": None if self.control is None else dataclasses.asdict(self.control),
            "power_lower": self.power_lower,
            "visible_by_energy": self.visible_by_energy,
            "visible_by_canaries": self.visible_by_canaries,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def in_run_audit(
    plan: InRunPlan,
    evidence: InRunEvidence,
    *,
    stages: Sequence[Stage],
    deltas: Sequence[float],
    coins: str = "verified",
    accounted_upper: float | None = None,
) -> InRunResult:
    """Audit a run by what its noisy updates show.

    Parameters
    ----------
    plan : InRunPlan
        Frozen before the first step.
    evidence : InRunEvidence
        Scores, coins, energy and control.
    stages : sequence of Stage
        The steps that the ledger counted.
    deltas : sequence of float
        Their certified δ(ε) at ε = each of the plan's ``epsilons``, for one record.
    coins : str
        ``verified`` when they open the plan's commitment, else ``asserted``.
    accounted_upper : float, optional
        Certified ε of the ledger; below the claim it is what the bound is tested against.

    Returns
    -------
    InRunResult
    """
    if len(evidence.coordinates) != plan.m:
        raise InvalidEvidence(
            f"the plan froze {plan.m} in-run canaries and {len(evidence.coordinates)} were scored; restore the file."
        )
    result = _by_energy(plan, evidence, sum(stage.steps for stage in stages))
    if not plan.m:
        return result
    primary = audit(
        evidence.scored(),
        plan.primary_plan(),
        coins=coins,
        accounted_upper=None if accounted_upper is None else min(accounted_upper, plan.claimed_epsilon),
        secondary=False,
    )
    found = _of_this_observer(primary)
    profile, conditional, by_canaries = None, None, None
    if plan.kind == COORDINATES:
        profile = profile_test(evidence.scores, evidence.coins, deltas, epsilons=plan.epsilons)
        conditional = _conditional(plan, evidence)
        by_canaries = smallest_visible_canary_shortfall(
            plan.m,
            stages,
            deltas,
            plan.epsilons,
            plan.alpha_split.profile,
            seen_in=(evidence.scores, evidence.coins),
        )
        found.append(_profile_finding(profile, plan, by_canaries))
    control = control_power(plan, evidence, deltas)
    hidden = False
    if control is not None and plan.control is not None:
        found.append(_control_finding(control))
        least = min(1.0 if v is None else v for v in (result.visible_by_energy, by_canaries))
        hidden = 1 - plan.control.noise_factor < least
        if hidden:
            found.append(_hidden_finding(control, least))
    p, area = rank_sum_p_value(evidence.scores, evidence.coins), auc(evidence.scores, evidence.coins)
    expected = expected_auc(stages) if plan.kind == COORDINATES else None
    strong = expected is None or area - 0.5 >= WEAK * (expected - 0.5)
    if p <= LIVE_P_VALUE and not strong:
        found.append(_weak_finding(area, expected))
    return dataclasses.replace(
        result,
        m=plan.m,
        members=int(evidence.coins.sum()),
        audit=primary,
        rank_sum_p=p,
        alive=p <= LIVE_P_VALUE and strong,
        expected_auc=expected,
        profile=profile,
        conditional=conditional,
        control=control,
        visible_by_canaries=by_canaries,
        hidden=hidden,
        findings=(*result.findings, *found),
    )


def _by_energy(plan: InRunPlan, evidence: InRunEvidence, counted: int) -> InRunResult:
    """What the releases' energy says, which needs no canary."""
    if evidence.energy is None:
        return InRunResult(findings=tuple(_steps_finding(0, counted)))
    energy, steps = energy_test(evidence.energy), len(evidence.energy.step_squares)
    visible = smallest_visible_shortfall(evidence.energy, plan.alpha_split.energy)
    found = finding_from_energy(energy, plan.alpha_split.energy, shortfall=visible)
    return InRunResult(
        steps=steps, energy=energy, visible_by_energy=visible, findings=(found, *_steps_finding(steps, counted))
    )


def control_power(plan: InRunPlan, evidence: InRunEvidence, deltas: Sequence[float]) -> ControlPower | None:
    """Share of the control's repetitions that a test of the plan convicts, with its interval; None without control.

    Raises
    ------
    InvalidEvidence
        When the repetitions are not those that the plan announced.
    """
    design = plan.control
    if design is None or not evidence.control:
        return None
    counted = design.canaries - -(-design.canaries // CHOOSING)
    sizes = {event.of_inside + event.of_outside for run in evidence.control for event in run.counts}
    if len(evidence.control) != design.repeats or sizes != {counted}:
        raise InvalidEvidence(
            f"the plan announced {design.repeats} controls with {counted} canaries to count and the evidence holds"
            f" {len(evidence.control)} with {sorted(sizes)}; restore the file."
        )
    convicted = 0
    for run in evidence.control:
        p = 1.0
        if plan.kind == COORDINATES:
            p = profile_test_of_counts(run.counts, deltas, epsilons=plan.epsilons).p_value
        seen = p <= plan.alpha_split.profile
        if not seen and design.canaries == plan.m and run.guesses == 2 * plan.guesses:
            bound = snj_p_value(plan.m, run.guesses, run.correct, plan.claimed_epsilon, plan.delta)
            seen = bound <= plan.alpha_split.primary
        convicted += seen
    n = design.repeats
    return ControlPower(
        fault=design.fault,
        repeats=n,
        convicted=convicted,
        power=convicted / n,
        lower=rate_lower(convicted, n, _TAIL),
        upper=rate_upper(convicted, n, _TAIL),
    )


def _conditional(plan: InRunPlan, evidence: InRunEvidence) -> Bound:
    lower = independent_epsilon_lower(evidence.scores, evidence.coins, plan.delta, plan.alpha)
    return Bound(
        estimator="independent_counts",
        kind="conditional",
        epsilon_lower=lower,
        confidence=1.0 - plan.alpha,
        assumption="the canaries' scores are independent, given a movement that all coordinates share",
    )


def _of_this_observer(result: AuditResult) -> list[Finding]:
    """The findings of the unconditional bound under names of their own.

    A ceiling below the claim is a note here: the other tests of the in-run audit do not depend on it.
    """
    kept = []
    for finding in result.findings:
        status = "note" if finding.name == "ceiling" else finding.status
        kept.append(dataclasses.replace(finding, name=f"in_run_{finding.name}", status=status))
    return kept


def _profile_finding(test: ProfileTest, plan: InRunPlan, visible: float) -> Finding:
    at = AtLevel(test.p_value, plan.alpha_split.profile)
    c = test.counts
    counts = (
        f"{c.inside} of {c.of_inside} {'included' if c.above else 'left-out'} canaries score"
        f" {'above' if c.above else 'below'} {c.cut:.3f} nats where it allows about {test.expected:.0f}"
    )
    return Finding(
        name="in_run_profile",
        status=at.status,
        claim="declared mechanism",
        p_value=test.p_value,
        excludes=""
        if at.rejected or visible >= 1
        else f"noise smaller than declared by {percent_upper(visible, 2)} or more",
        text=(
            f"The in-run canaries {at.verb} the declared mechanism's privacy profile ({at.numbers})"
            + (f": {counts}. {NOT_REFUTED}" if at.rejected else ".")
        ),
        detail=dataclasses.asdict(test),
    )


def _steps_finding(recorded: int, counted: int) -> list[Finding]:
    """What the number of recorded releases says beside the number of counted steps; nothing where they agree."""
    if recorded == counted:
        return []
    if recorded > counted:
        return [
            Finding(
                name="in_run_steps",
                status="accounting_mismatch",
                claim="ledger",
                deterministic=True,
                text=f"{recorded} releases were recorded and the ledger counts {counted} steps: some were not charged.",
            )
        ]
    few = counted - recorded > MISSING * counted
    return [
        Finding(
            name="in_run_steps",
            status="inconclusive" if few else "note",
            claim="audit",
            deterministic=True,
            text=(
                f"{recorded} of {counted} counted steps have a recorded release; the energy of the others is not known."
                + (" Too many are missing for the record to support anything." if few else "")
            ),
        )
    ]


def _weak_finding(area: float, expected: float | None) -> Finding:
    return Finding(
        name="in_run_weak_scores",
        status="inconclusive",
        claim="audit",
        text=(
            f"The in-run scores separate members with AUC {nearest_text(area)} where the declared steps lead to"
            f" {nearest_text(expected)}: the observer missed most releases, or its canaries were not drawn as declared."
        ),
    )


def _hidden_finding(control: ControlPower, least: float) -> Finding:
    return Finding(
        name="in_run_hidden",
        status="inconclusive",
        claim="audit",
        text=(
            f"The records moved releases and canaries so much that a shortfall of the noise below"
            f" {percent_upper(least, 2)} could have stayed unseen in this run. The control, which has no records, shows"
            f" power against {control.fault}, and that power is not the run's."
        ),
    )


def _control_finding(control: ControlPower) -> Finding:
    return Finding(
        name="in_run_control",
        status="note",
        claim="audit",
        excludes=control.fault,
        text=(
            f"In {control.convicted} of {control.repeats} simulated runs with {control.fault} the in-run audit"
            f" convicts: its power is at least {lower_text(control.lower, 2)} with 95 % confidence."
        ),
        detail=dataclasses.asdict(control),
    )
