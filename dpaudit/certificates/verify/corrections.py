"""What corrections change for a reader: a policy must be met before and after them, and the gravest verdict stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpaudit.certificates.amendments import Amendment, Corrected, corrected
from dpaudit.certificates.statement import Predicate, Statement
from dpaudit.certificates.verify.accounting import recomputed_guarantees
from dpaudit.certificates.verify.guard import MALFORMED, reason
from dpaudit.privacy.verdict import Verdict, worse

if TYPE_CHECKING:
    from dpaudit.certificates.policy import Facts, Policy

_ACCOUNTED = ("claim", "ledger", "accounting")


def corrected_verdict(derived: Verdict, body: Predicate, amendments: Sequence[Amendment]) -> Verdict:
    """The gravest of the derived verdict and of what corrections say the verdict is."""
    if not amendments:
        return derived
    after = corrected(body, amendments)
    section = after.plain.get("verdict")
    name = section.get("name") if isinstance(section, dict) else section
    changed = any(path.removeprefix("predicate.").startswith("verdict") for path in after.changed)
    return worse(derived, name) if changed and name in list(Verdict) else derived


def judge(
    policy: Policy, facts: Facts, statement: Statement, amendments: Sequence[Amendment]
) -> tuple[tuple[str, ...], bool]:
    """Failures of a policy, and whether it accepts; by the certificate as issued, and again as corrected."""
    from dpaudit.certificates.policy import judge_policy

    try:
        failures, accepts = judge_policy(policy, facts)
        after = corrected(facts.body, amendments)
    except MALFORMED as error:
        return (f"a rule cannot be applied to this certificate ({reason(error)}); a field has another form.",), False
    if not after.changed and not after.unknown:
        return failures, accepts
    more = [f"{text}; ask for a new certificate." for text in after.unknown]
    try:
        more += [text for text in _after(policy, facts, statement, after) if text not in failures]
    except MALFORMED as error:
        more.append(f"after its corrections a rule cannot be applied to this certificate ({reason(error)}).")
    return (*failures, *more), accepts and not more


def _after(policy: Policy, facts: Facts, statement: Statement, after: Corrected) -> list[str]:
    from dpaudit.certificates.policy import judge_policy

    body = Statement.from_plain({**statement.to_plain(), "predicate": after.plain}).predicate
    recomputed = facts.recomputed
    if any(path.removeprefix("predicate.").startswith(_ACCOUNTED) for path in after.changed):
        recomputed = recomputed_guarantees(body)
    failures, _ = judge_policy(policy, dataclasses.replace(facts, body=body, recomputed=recomputed))
    return [f"after its corrections: {failure}" for failure in failures]
