"""An audit of score files: scores and coins in, lower bounds on ε, ceiling, power and verdict out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.rounding import exact_text

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan, Control
    from dpaudit.auditing.f_dp import TradeOff
    from dpaudit.auditing.result import AuditResult
    from dpaudit.privacy.canaries import Canaries
    from dpaudit.privacy.scores import Scores
    from dpaudit.storage.scores import ScoreFile


def audit(
    scores: str | Path,
    *,
    claimed_epsilon: float,
    delta: float,
    manifest: str | Path | None = None,
    commitment: str | None = None,
    plan: str | Path | None = None,
    coins: str = "fair",
    design: str | None = None,
    relation: str | None = None,
    unit: str | None = None,
    guesses: int | None = None,
    alpha: float = 0.05,
    attack: str | None = None,
    copies: int | None = None,
    group_claim: float | None = None,
    ledger: str | Path | None = None,
    accounted_upper: float | None = None,
    control: str | Path | None = None,
    fault: str = "unspecified",
) -> AuditResult:
    """Audit a claim from a file of scores: CSV or Parquet with id, member, score[, run][, copies][, pair].

    For arrays that are in memory already there is :func:`dpaudit.auditing.audit`, which this calls.

    Parameters
    ----------
    scores : path
        Higher score = member. A bare file means that the caller ASSERTS independent fair coins.
    claimed_epsilon, delta : float
        The claim, for one unit of privacy.
    manifest : path, optional
        Manifest or secret canary file: the coins, which are verified when they open the commitment.
    commitment : str, optional
        Digest that was published before training.
    plan : path, optional
        ``audit_plan.json`` frozen before training; fixes the design.
    coins : str, default="fair"
        "none" for any train/holdout split: AUC only, and at most ``inconclusive``.
    design : str, optional
        "one_run" (the default) or "many_runs" (one canary in each of many independent runs).
    relation : str, optional
        Neighbouring relation; required where neither a plan nor a ledger states one.
    unit : str, optional
        Unit of privacy of the claim; required where neither a plan nor a ledger states one.
    guesses : int, optional
        Guesses per side, instead of the rule; fix it before looking.
    alpha : float, default=0.05
        Total failure probability.
    attack : str, optional
        The pre-registered attack, where the file holds several.
    copies : int, optional
        Copies of each inserted canary; by default the file's column, or 1.
    group_claim : float, optional
        ε for groups of that many records.
    ledger : path, optional
        Ledger or run folder: accounted ε, group ε and the declared curve follow from it.
    accounted_upper : float, optional
        The accountant's certified ε; the bound is tested against it too.
    control : path, optional
        Scores of a positive control, with a column run for several.
    fault : str
        The control's planted fault, in words.

    Returns
    -------
    AuditResult

    Raises
    ------
    InvalidValue, InvalidEvidence
        When arguments contradict each other, or a file cannot be read or joined.

    Examples
    --------
    ::

        result = dpaudit.audit(
            "scores.csv", claimed_epsilon=4, delta=1e-5, relation="add_or_remove_one", unit="record"
        )
        result.verdict, result.epsilon_lower
    """
    from dpaudit.auditing import audit as audit_arrays
    from dpaudit.privacy import validate

    validate.positive(claimed_epsilon=claimed_epsilon)
    validate.finite(claimed_epsilon=claimed_epsilon)
    validate.open_unit(delta=delta, alpha=alpha)
    plan_path, control_path = _path(plan), _path(control)
    frozen = None if plan_path is None else _read_plan(plan_path, claimed_epsilon, delta)
    attack = attack or (frozen.attack if frozen and frozen.attack != "unspecified" else None)
    file, scored, opened = _read(Path(scores), attack, _path(manifest))
    k = _copies(copies, frozen, opened, file)
    curve = None
    if ledger is not None:
        accounted = _account_ledger(Path(ledger), relation or (frozen.relation.value if frozen else None), delta, k)
        relation, curve, unit = accounted.relation, accounted.curve, unit or accounted.unit
        accounted_upper = accounted.epsilon if accounted_upper is None else accounted_upper
        group_claim = accounted.group_epsilon if group_claim is None and k > 1 else group_claim
    relation = _relation(relation, frozen)
    kind = design or (frozen.kind if frozen else "one_run")
    _check_runs(file, kind)
    replaced = _replaced(frozen)
    scored = _trials(file, scored, relation, coins, Path(scores).name, replaced=replaced)
    if frozen is None:
        from dpaudit.auditing import design as design_audit

        frozen = design_audit(
            len(scored), claimed_epsilon, delta, alpha, k,
            relation=relation, unit=_stated("unit", unit), kind=kind,
            attack=attack or file.attack or "unspecified", guesses=guesses,
            group_claim=group_claim, coin_commitment=commitment or (opened.published if opened else None),
        )  # fmt: skip
    state = "none" if coins == "none" else _coin_state(opened, commitment, frozen.coin_commitment)
    return audit_arrays(
        scored,
        frozen,
        coins=state,
        accounted_upper=accounted_upper,
        group_claim=group_claim,
        curve=curve if state != "none" else None,
        control=None
        if control_path is None
        else _read_control(control_path, attack, fault, relation, file, plan_path, replaced),
    )


def audit_defaulting(
    scores: str | Path, *, relation: str | None, plan: Path | None, ledger: Path | None, **options: Any
) -> AuditResult:
    """Audit as :func:`audit` does, under ``add_or_remove_one`` where neither relation, plan nor ledger is given.

    The result's design says under ``defaulted`` whether the relation was filled in so.
    """
    defaulted = relation is None and plan is None and ledger is None
    filled = "add_or_remove_one" if defaulted else relation
    found = audit(scores, relation=filled, plan=plan, ledger=ledger, **options)
    return dataclasses.replace(found, design={**found.design, "defaulted": defaulted})


def _stated(name: str, value: str | None) -> str:
    """A privacy decision that somebody has to have made."""
    from dpaudit.privacy.errors import InvalidValue

    if value is None:
        raise InvalidValue(f"{name} is missing; give it, or a plan or ledger that states it.")
    return value


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _read(scores: Path, attack: str | None, manifest: Path | None) -> tuple[ScoreFile, Scores, Canaries | None]:
    """The score file, its scores with their coins, and the manifest that the coins come from, if any."""
    from dpaudit.storage.scores import join_coins, read_coins, read_scores

    file = read_scores(scores, attack=attack, needs_member=manifest is None)
    if manifest is None:
        return file, file.scored(), None
    opened = read_coins(manifest)
    return file, file.scored(join_coins(file, opened, manifest)), opened


def _relation(given: str | None, plan: AuditPlan | None) -> str:
    from dpaudit.privacy.errors import InvalidValue

    relation = _stated("relation", given or (plan.relation.value if plan else None))
    if plan is not None and plan.relation.value != relation:
        raise InvalidValue(f"relation={relation} is not the plan's {plan.relation.value}; leave --relation out.")
    return relation


def _replaced(plan: AuditPlan | None) -> bool:
    """Whether the plan's coins replaced canaries, which concerns replace_one alone."""
    from dpaudit.privacy.canaries import substituted
    from dpaudit.privacy.errors import InvalidEvidence

    replaced = plan is not None and substituted(plan.to_dict())
    if replaced and plan is not None and plan.relation != "replace_one":
        raise InvalidEvidence(
            f"the plan's coins replace one record by another and its relation is {plan.relation}, which says nothing of"
            " that; restore the plan that the run wrote."
        )
    return replaced


def _trials(file: ScoreFile, scored: Scores, relation: str, coins: str, name: str, *, replaced: bool) -> Scores:
    """Scores and coins of the trials: canaries, or pairs of them under replace_one.

    A canary whose label the coin replaced is such a pair by itself.
    """
    from dpaudit.auditing import pair_scores
    from dpaudit.privacy.errors import InvalidEvidence, InvalidValue

    if relation == "replace_one" and coins == "fair" and not replaced:
        if file.pairs is None:
            raise InvalidValue(
                "relation=replace_one needs a column pair (two canaries, a fair coin inserts exactly one): in/out coins"
                " test add_or_remove_one and zero_out only."
            )
        scored = pair_scores(file.pairs, scored)
    if len(scored) < 2:
        raise InvalidEvidence(f"{name} holds {len(scored)} canary; an audit needs at least 2.")
    return scored


def _copies(given: int | None, plan: AuditPlan | None, opened: Canaries | None, file: ScoreFile) -> int:
    """Copies of each inserted canary; what the option, plan, coins and score file say must agree.

    With the copies understated, a correct run would be convicted: k copies leak as a group of k records may.
    """
    from dpaudit.privacy import validate
    from dpaudit.privacy.errors import InvalidValue

    planned = None if plan is None else plan.copies
    stated: dict[str, int | None] = {"--copies": given, "the plan": planned, "column copies": file.copies}
    if opened is not None and (opened.commitment is not None or opened.copies > 1):
        stated["the manifest"] = opened.copies
    known = {name: k for name, k in stated.items() if k is not None}
    for k in known.values():
        validate.integer_at_least(1, copies=k)
    if len(set(known.values())) > 1:
        said = ", ".join(f"{name} says {k}" for name, k in known.items())
        raise InvalidValue(f"copies contradict each other ({said}); give the number that stood in the training data.")
    return next(iter(known.values()), 1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Accounted:
    """What the accountant says of a ledger: certified ε for one unit and for groups, and a curve it lies above."""

    epsilon: float
    group_epsilon: float
    relation: str
    unit: str
    curve: TradeOff


def _account_ledger(path: Path, relation: str | None, delta: float, copies: int) -> _Accounted:
    from dpaudit.accounting import account
    from dpaudit.certificates.curve import declared_curve
    from dpaudit.privacy.errors import InvalidValue
    from dpaudit.runs.ledger_file import read_ledger_file

    ledger, _ = read_ledger_file(path, None)
    if relation is not None and relation != ledger.relation.value:
        raise InvalidValue(f"relation={relation} is not the ledger's {ledger.relation.value}; leave --relation out.")

    def upper(at: float, size: int, rtol: float = 5e-3) -> float:
        found = account(ledger, delta=at, group_size=size, rtol=rtol)[0].epsilon_upper
        return math.inf if found is None else found

    group = upper(delta, copies)
    one = group if copies == 1 else upper(delta, 1)
    return _Accounted(one, group, ledger.relation.value, ledger.unit, declared_curve(ledger, delta, copies))


def _read_plan(path: Path, claimed_epsilon: float, delta: float) -> AuditPlan:
    from dpaudit.auditing import AuditPlan
    from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
    from dpaudit.storage.readers import read_json

    value = read_json(path)
    if not isinstance(value, dict):
        raise InvalidEvidence(f"{path.name} is not an audit plan; give the audit_plan.json of the run.")
    try:
        plan = AuditPlan.from_dict(value)
    except (TypeError, InvalidValue) as error:
        raise InvalidEvidence(f"{path.name} is not a valid audit plan ({error}).") from None
    if (plan.claimed_epsilon, plan.delta) != (claimed_epsilon, delta):
        raise InvalidValue(
            f"claimed-epsilon={exact_text(claimed_epsilon)} at delta={exact_text(delta)} is not the plan's"
            f" {exact_text(plan.claimed_epsilon)} at {exact_text(plan.delta)}; audit the claim that was planned."
        )
    return plan


def _coin_state(opened: Canaries | None, given: str | None, planned: str | None) -> str:
    """``verified`` when the manifest opens the published commitment, ``asserted`` when there is none to open."""
    from dpaudit.privacy.errors import InvalidEvidence

    published = given or planned or (opened.published if opened else None)
    if opened is None or published is None or opened.commitment is None:
        return "asserted"
    if opened.commitment != published.lower():
        raise InvalidEvidence(
            f"the coins hash to {opened.commitment[:12]}… and the commitment is {published[:12]}…: they are not the"
            " coins that were committed before training."
        )
    return "verified"


def _check_runs(file: ScoreFile, kind: str) -> None:
    from dpaudit.privacy.errors import InvalidValue

    if kind == "many_runs":
        if file.runs is None:
            raise InvalidValue("design=many_runs needs a column run that names the independent run of each canary.")
        if len(set(file.runs)) != len(file.runs):
            raise InvalidValue(
                f"column run names {len(set(file.runs))} runs for {len(file.runs)} canaries; many_runs needs one"
                " canary per run, since canaries of one run share its noise."
            )
    elif file.runs is not None and len(set(file.runs)) > 1:
        raise InvalidValue(
            f"column run names {len(set(file.runs))} runs and design is one_run; give --design many_runs, or one run."
        )


def _read_control(
    path: Path, attack: str | None, fault: str, relation: str, audited: ScoreFile, plan: Path | None, replaced: bool
) -> Control:
    from dpaudit.auditing import Control, pair_scores
    from dpaudit.privacy.errors import InvalidValue
    from dpaudit.storage.scores import read_scores

    _refuse_another_plan(path, plan)
    file = read_scores(path, attack=attack)
    if dict(zip(file.ids, file.scores, strict=True)) == dict(zip(audited.ids, audited.scores, strict=True)):
        raise InvalidValue(
            f"control {path.name} holds the audited scores themselves; give scores of the same attack on another run"
            " with a planted fault."
        )
    scored = file.scored()
    if relation == "replace_one" and not replaced:
        if file.pairs is None:
            raise InvalidValue(f"{path.name} needs a column pair, as the audited scores have.")
        scored = pair_scores(file.pairs, scored)
    runs = file.runs if relation != "replace_one" or replaced else None  # a pair has no run column of its own
    return Control(scores=scored, fault=fault, runs=runs)


def _refuse_another_plan(path: Path, plan: Path | None) -> None:
    """A control that names its audit plan is refused under another one; a bare file is the caller's word."""
    from dpaudit.privacy.errors import InvalidEvidence
    from dpaudit.storage.commitment import sha256_file
    from dpaudit.storage.tables import read_table

    named = set(read_table(path, columns=("id",), optional=("plan_sha256",)).get("plan_sha256", ()))
    if plan is not None and named and named != {sha256_file(plan)}:
        raise InvalidEvidence(
            f"control {path.name} belongs to another audit plan than {plan.name}; give the control of this run."
        )
