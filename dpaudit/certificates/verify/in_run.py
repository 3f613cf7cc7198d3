"""Verification steps on the in-run audit: commitment, energy, bound, profile and power, from the evidence alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.certificates.curve import declared_deltas
from dpaudit.certificates.in_run import FILE, in_run_faults, planned_in_run
from dpaudit.certificates.plain import plain_json
from dpaudit.certificates.statement import InRun, Predicate
from dpaudit.certificates.verify.compare import first_difference, judge_differences, written_here
from dpaudit.certificates.verify.guard import Attempt, attempt
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Step
from dpaudit.certificates.verify.words import same_text
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.finding import NOTE, finding_status
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.verdict import Verdict
from dpaudit.storage.commitment import commitment, sha256_bytes
from dpaudit.storage.readers import beside, parse_json, read_bytes

if TYPE_CHECKING:
    from dpaudit.auditing.in_run.evidence import InRunEvidence
    from dpaudit.auditing.in_run.plan import InRunPlan

FACTS = ("m", "members", "primary", "rank_sum_p", "alive", "energy", "control", "power_lower")
"""What decides and no version can find another value of; the rest another version may compute better."""
MAX_BYTES = 2**25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecomputedInRun:
    """The in-run audit made again, and the steps that say how.

    Attributes
    ----------
    result : mapping or None
        In plain JSON, from scores, coins, energy and controls; None where they are not here or cannot be read.
    steps : tuple of Step
    """

    result: dict[str, Any] | None
    steps: tuple[Step, ...]

    @property
    def complete(self) -> bool:
        """Whether everything that decides was made again."""
        return self.result is not None


def recompute_in_run(folder: Path, body: Predicate) -> RecomputedInRun | None:
    """Make the in-run audit of a certificate again; None where it has none and its plan announces none.

    Parameters
    ----------
    folder : Path
        Where ``in_run.json`` lies.
    body : Predicate
    """
    section, planned = body.in_run, planned_in_run(body)
    if section is None and planned is None:
        if beside(folder, FILE) is None:
            return None
        detail = f"{FILE} lies beside the certificate, which does not bind it"
        return RecomputedInRun(result=None, steps=(Step("in_run.evidence", DIFFERENT, detail),))
    faults = in_run_faults(body)
    steps = [judge_differences("in_run.plan", faults, (), "the audit plan, frozen before training, announces it")]
    if section is None or planned is None:
        return RecomputedInRun(result=None, steps=tuple(steps))
    read = attempt("in_run.evidence", lambda: _read(folder, section, planned))
    if read.value is None:
        return RecomputedInRun(result=None, steps=(*steps, _failed(read, "in_run.evidence")))
    step, evidence = read.value
    steps.append(step)
    if evidence is None:
        absent = Step("in_run.result", ABSENT, f"{FILE} is not here, so it cannot be made again and supports nothing")
        return RecomputedInRun(result=None, steps=(*steps, absent))
    plan, seen = evidence
    opened = attempt("in_run.coins", lambda: _coins_step(section, plan, seen))
    steps.append(opened.value or _failed(opened, "in_run.coins"))
    made = attempt("in_run.result", lambda: _again(body, section, plan, seen))
    if made.value is None:
        return RecomputedInRun(result=None, steps=(*steps, _failed(made, "in_run.result")))
    found = attempt("in_run.result", lambda: result_steps(body, section.result, made.value or {}))
    steps += found.value or [_failed(found, "in_run.result")]
    return RecomputedInRun(result=made.value, steps=tuple(steps))


def as_recomputed(stated: Mapping[str, Any], again: RecomputedInRun | None) -> dict[str, Any]:
    """An in-run result as far as it was made again; what is stated counts only against the claim."""
    if again is not None and again.result is not None:
        return again.result
    against = [row for row in stated.get("findings") or () if finding_status(row) not in (NOTE, Verdict.CONSISTENT)]
    return {
        "m": stated.get("m"),
        "primary": stated.get("primary"),
        "alive": False,
        "control": None,
        "power_lower": None,
        "findings": against,
    }


def _failed(tried: Attempt[Any], name: str) -> Step:
    return tried.failed or Step(name, ABSENT, "it was not read")


def _read(
    folder: Path, section: InRun, planned: Mapping[str, Any]
) -> tuple[Step, tuple[InRunPlan, InRunEvidence] | None]:
    from dpaudit.auditing.in_run.arrays import bits_of
    from dpaudit.auditing.in_run.evidence import InRunEvidence
    from dpaudit.auditing.in_run.plan import InRunPlan

    name = "in_run.evidence"
    plan = InRunPlan.from_dict(planned)
    path = beside(folder, FILE)
    if path is None:
        return Step(name, ABSENT, f"{FILE} does not stand beside the certificate"), None
    data = read_bytes(path, limit=MAX_BYTES)
    if sha256_bytes(data) != section.evidence_digest:
        return Step(name, DIFFERENT, f"{FILE} is not the certified evidence"), None
    value = parse_json(data, name=FILE)
    if not isinstance(value, dict):
        raise InvalidEvidence(f"{FILE} is not a JSON object")
    coins = bits_of(section.coins or "", plan.m)
    evidence = InRunEvidence.from_dict(value, coins)
    return Step(name, EQUAL, f"SHA-256 {section.evidence_digest[:12]}…"), (plan, evidence)


def _opens(section: InRun, plan: InRunPlan, evidence: InRunEvidence) -> bool:
    if section.nonce is None or plan.commitment is None:
        return False
    return commitment(bytes.fromhex(section.nonce), evidence.manifest(plan.dimension)) == plan.commitment


def _coins_step(section: InRun, plan: InRunPlan, evidence: InRunEvidence) -> Step:
    name = "in_run.coins"
    if not plan.m:
        return Step(name, EQUAL, "this run has no in-run canaries, as planned")
    if _opens(section, plan, evidence):
        return Step(name, EQUAL, f"SHA-256(nonce ‖ coordinates and coins) is {str(plan.commitment)[:12]}…")
    return Step(name, DIFFERENT, "nonce, coordinates and coins do not open the plan's commitment: coins were changed")


def _again(body: Predicate, section: InRun, plan: InRunPlan, evidence: InRunEvidence) -> dict[str, Any]:
    from dpaudit.auditing.in_run.audit import in_run_audit

    if body.ledger is None:
        raise InvalidEvidence("the certificate has no ledger, whose steps the in-run audit tests")
    ledger = body.ledger.to_ledger()
    result = in_run_audit(
        plan,
        evidence,
        stages=ledger.stages,
        deltas=declared_deltas(ledger, plan.epsilons),
        coins="verified" if not plan.m or _opens(section, plan, evidence) else "asserted",
        # Whether the stated bound follows from the ledger is judged by the steps on accounting, so it is taken as
        # stated.
        accounted_upper=smallest_upper(body.accounting.guarantees),
    )
    fresh: dict[str, Any] = plain_json(result.to_dict())
    return fresh


def result_steps(body: Predicate, stated: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[Step]:
    """The stated result against the one made again: every number, and every finding."""
    own = written_here(body)
    hard: list[str] = []
    soft: list[str] = []
    for name in dict.fromkeys((*FACTS, *fresh, *stated)):
        if name == "findings":
            continue
        if difference := first_difference(stated.get(name), fresh.get(name), name):
            (hard if own or name in FACTS else soft).append(difference)
    told = "every number follows from scores, coins, energy and controls"
    return [judge_differences("in_run.result", hard, soft, told), _findings_step(stated, fresh, own)]


def _findings_step(stated: Mapping[str, Any], fresh: Mapping[str, Any], own: bool) -> Step:
    """Findings by name: none is left out or added, each has the status that follows."""
    said = {str(row.get("name")): row for row in stated.get("findings") or ()}
    made = {row["name"]: row for row in fresh["findings"]}
    hard: list[str] = []
    soft: list[str] = []
    if len(said) != len(stated.get("findings") or ()):
        hard.append("a finding stands more than once")
    for name in dict.fromkeys((*made, *said)):
        if name not in said:
            weighs = own or made[name]["status"] != NOTE
            (hard if weighs else soft).append(f"finding {name} ({made[name]['status']}) follows and is not stated")
        elif name not in made:
            hard.append(f"finding {name[:60]} is stated and does not follow")
        elif finding_status(said[name]) != made[name]["status"]:
            hard.append(f"finding {name} is {made[name]['status']} by the evidence")
        elif not same_text(said[name].get("text"), made[name]["text"]):
            (hard if own else soft).append(f"the text of finding {name} is not the one that follows")
    return judge_differences("in_run.findings", hard, soft, f"{len(made)} follow from the evidence")
