"""``dpaudit audit``: scores in; lower bounds on ε, ceiling, power and verdict out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.common import delta_option, emit, json_option, table
from dpaudit.privacy.rounding import ABSENT, exact_text, lower_text, nearest_text, percent_lower, upper_text
from dpaudit.privacy.text import printable

if TYPE_CHECKING:
    from dpaudit.auditing import AuditPlan, AuditResult, Control, TradeOff
    from dpaudit.storage.scores import Coins, ScoreFile

FILE = click.Path(path_type=Path)
"""δ at which the ledger's profile is taken for the declared curve; more points would add a little power."""

RELATIONS = click.Choice(["add_or_remove_one", "replace_one", "zero_out"])


@click.command("audit")
@click.argument("scores", type=FILE)
@click.option("--claimed-epsilon", type=float, required=True, help="The claimed ε, for one unit of privacy.")
@delta_option
@click.option("--manifest", type=FILE, help="Manifest or secret canary file: the coins, and what they commit to.")
@click.option("--commitment", help="Digest published before training, which the manifest must open.")
@click.option("--plan", "plan_path", type=FILE, help="audit_plan.json frozen before training; fixes the design.")
@click.option(
    "--coins", type=click.Choice(["fair", "none"]), default="fair", show_default=True, help="none: any split."
)
@click.option("--design", "kind", type=click.Choice(["one_run", "many_runs"]), help="Default: one_run.")
@click.option("--relation", type=RELATIONS, help="Default: add_or_remove_one, echoed as defaulted.")
@click.option("--unit", default="record", show_default=True, help="Unit of privacy of the claim.")
@click.option("--guesses", type=int, help="Guesses per side, instead of the rule; fix it before looking.")
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Total failure probability.")
@click.option("--attack", help="The pre-registered attack, where the file holds several.")
@click.option("--copies", type=int, help="Copies of each inserted canary; default: column copies, or 1.")
@click.option("--group-claim", type=float, help="ε for groups of that many records (dpaudit account --group-size).")
@click.option("--ledger", "ledger_path", type=FILE, help="Ledger or run folder: accounted ε, group ε, declared curve.")
@click.option("--accounted-upper", type=float, help="The accountant's certified ε; the bound is tested against it too.")
@click.option("--control", type=FILE, help="Scores of a positive control, column run for several.")
@click.option("--fault", default="unspecified", help="The control's planted fault, in words.")
@json_option
def command(scores: Path, as_json: bool, **options: Any) -> None:
    """Audit a claim from SCORES: CSV or Parquet with id,member,score[,run][,copies][,pair]; higher score = member.

    A bare file means that you assert independent fair coins; --manifest makes them verified when they open the
    commitment; --coins none (any train/holdout split) gives AUC and TPR only. Real records that fair coins held out
    before training are audited the same way. replace_one needs a column pair: two canaries, exactly one inserted.

    Exit code: 0 consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid evidence, 64 bad usage.

    \b
    Example:
      dpaudit audit scores.csv --claimed-epsilon 4 --delta 1e-5
      dpaudit audit scores.parquet --claimed-epsilon 4 --delta 1e-5 --manifest canaries.json --control leaky.csv --json
      dpaudit audit scores.csv --claimed-epsilon 4 --delta 1e-5 --ledger runs/first
    """
    result, payload = run_audit(scores, **options)
    emit(payload, as_json, to_text(result))
    raise SystemExit(result.exit_code)


def run_audit(
    scores: Path,
    *,
    claimed_epsilon: float,
    delta: float,
    manifest: Path | None,
    commitment: str | None,
    plan_path: Path | None,
    coins: str,
    kind: str | None,
    relation: str | None,
    unit: str,
    guesses: int | None,
    alpha: float,
    attack: str | None,
    copies: int | None,
    group_claim: float | None,
    ledger_path: Path | None,
    accounted_upper: float | None,
    control: Path | None,
    fault: str,
) -> tuple[AuditResult, dict[str, Any]]:
    """Read the files, audit, and return the result with its JSON payload."""
    from dpaudit.auditing import audit, design, pair_scores
    from dpaudit.privacy import validate
    from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
    from dpaudit.storage.scores import join_coins, read_coins, read_scores

    validate.positive(claimed_epsilon=claimed_epsilon)
    validate.finite(claimed_epsilon=claimed_epsilon)
    validate.open_unit(delta=delta, alpha=alpha)
    plan = None if plan_path is None else _read_plan(plan_path, claimed_epsilon, delta)
    attack = attack or (plan.attack if plan and plan.attack != "unspecified" else None)
    file = read_scores(scores, attack=attack, needs_member=manifest is None)
    opened = None if manifest is None else read_coins(manifest)
    if opened is None or manifest is None:
        member = file.member
        assert member is not None  # read_scores requires the column
    else:
        member = join_coins(file, opened, manifest)
    defaulted = relation is None and plan is None and ledger_path is None
    k = _copies(copies, plan, opened, file)
    curve = None
    if ledger_path is not None:
        accounted = _account_ledger(ledger_path, relation or (plan.relation.value if plan else None), delta, k)
        relation, curve = accounted.relation, accounted.curve
        accounted_upper = accounted.epsilon if accounted_upper is None else accounted_upper
        group_claim = accounted.group_epsilon if group_claim is None and k > 1 else group_claim
    relation = relation or (plan.relation.value if plan else "add_or_remove_one")
    if plan is not None and plan.relation.value != relation:
        raise InvalidValue(f"relation={relation} is not the plan's {plan.relation.value}; leave --relation out.")
    kind = kind or (plan.kind if plan else "one_run")
    _check_runs(file, kind)
    ids, values = file.ids, file.scores
    if relation == "replace_one" and coins == "fair":
        if file.pairs is None:
            raise InvalidValue(
                "relation=replace_one needs a column pair (two canaries, a fair coin inserts exactly one): in/out coins"
                " test add_or_remove_one and zero_out only."
            )
        ids, values, member = pair_scores(file.pairs, ids, values, member)
    if len(ids) < 2:
        raise InvalidEvidence(f"{scores.name} holds {len(ids)} canary; an audit needs at least 2.")
    if plan is None:
        plan = design(
            len(ids),
            claimed_epsilon,
            delta,
            alpha,
            k,
            relation=relation,
            unit=unit,
            kind=kind,
            attack=attack or file.attack or "unspecified",
            guesses=guesses,
            group_claim=group_claim,
            coin_commitment=commitment or (opened.published if opened else None),
        )
    state = "none" if coins == "none" else _coin_state(opened, commitment, plan.coin_commitment)
    result = audit(
        ids,
        values,
        member,
        plan,
        coins=state,
        accounted_upper=accounted_upper,
        group_claim=group_claim,
        curve=curve if state != "none" else None,
        control=None if control is None else _read_control(control, attack, fault, relation, file, plan_path),
    )
    payload = result.to_dict()
    payload["design"]["defaulted"] = defaulted
    return result, payload


def _copies(given: int | None, plan: AuditPlan | None, opened: Coins | None, file: ScoreFile) -> int:
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
    curve: TradeOff


def _account_ledger(path: Path, relation: str | None, delta: float, copies: int) -> _Accounted:
    from dpaudit.accounting import account
    from dpaudit.certificates.curve import declared_curve
    from dpaudit.cli.account import read_ledger_file
    from dpaudit.privacy.errors import InvalidValue

    ledger, _ = read_ledger_file(path, None)
    if relation is not None and relation != ledger.relation.value:
        raise InvalidValue(f"relation={relation} is not the ledger's {ledger.relation.value}; leave --relation out.")

    def upper(at: float, size: int, rtol: float = 5e-3) -> float:
        found = account(ledger, delta=at, group_size=size, rtol=rtol)[0].epsilon_upper
        return math.inf if found is None else found

    group = upper(delta, copies)
    one = group if copies == 1 else upper(delta, 1)
    return _Accounted(one, group, ledger.relation.value, declared_curve(ledger, delta, copies))


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


def _coin_state(opened: Coins | None, given: str | None, planned: str | None) -> str:
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
    path: Path, attack: str | None, fault: str, relation: str, audited: ScoreFile, plan: Path | None
) -> Control:
    from dpaudit.auditing import Control, pair_scores
    from dpaudit.privacy.errors import InvalidValue
    from dpaudit.storage.scores import read_scores

    _refuse_another_plan(path, plan)
    file = read_scores(path, attack=attack)
    assert file.member is not None
    if dict(zip(file.ids, file.scores, strict=True)) == dict(zip(audited.ids, audited.scores, strict=True)):
        raise InvalidValue(
            f"control {path.name} holds the audited scores themselves; give scores of the same attack on another run"
            " with a planted fault."
        )
    ids, values, member = file.ids, file.scores, file.member
    if relation == "replace_one":
        if file.pairs is None:
            raise InvalidValue(f"{path.name} needs a column pair, as the audited scores have.")
        ids, values, member = pair_scores(file.pairs, ids, values, member)
    runs = file.runs if relation != "replace_one" else None  # a pair has no run column of its own
    return Control(ids=ids, scores=values, member=member, fault=fault, runs=runs)


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


def to_text(result: AuditResult) -> str:
    """The result for people: verdict, the numbers in two columns, then every finding in words."""

    rows = [
        (
            "tested claim",
            f"{upper_text(result.tested_epsilon)} at delta {exact_text(result.delta)} ({result.claim_tested})",
        ),
        (
            f"epsilon >= ({percent_lower(result.confidence)})",
            f"{lower_text(result.epsilon_lower)}  [{result.estimator}]",
        ),
        (
            f"epsilon >= ({percent_lower(result.confidence_at_verdict)}, verdict)",
            lower_text(result.epsilon_lower_at_verdict),
        ),
        ("right guesses", ABSENT if result.guesses is None else f"{result.correct} of {result.guesses}"),
        ("ceiling (perfect attack)", lower_text(result.ceiling)),
        ("expected if exactly as claimed", nearest_text(result.expected_epsilon_lower)),
        ("power of this attack", f"{lower_text(result.power)}, at least {lower_text(result.power_lower)} (95%)"),
        ("power if attack were optimal", lower_text(result.power_if_attack_were_optimal)),
        ("coins", str(result.design["coins"])),
    ]
    if result.auc is not None:
        low, high = result.auc["interval"]
        rows.append(("AUC", f"{nearest_text(result.auc['value'], 3)} ({lower_text(low, 3)} to {upper_text(high, 3)})"))
    for bound in result.secondary:
        rows.append((f"{bound.kind}: {bound.estimator}", f"{lower_text(bound.epsilon_lower)}  (no verdict)"))
    parts = [f"verdict: {result.verdict}", table(rows), *(f"- {printable(f.text)}" for f in result.findings)]
    parts.append(printable(result.summary))
    return "\n".join(parts)
