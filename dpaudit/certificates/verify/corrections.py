"""What corrections change for a reader: a policy must be met before and after them, and the gravest verdict stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dpaudit.certificates.amend import Amendment, corrected
from dpaudit.certificates.statement import validate_statement
from dpaudit.certificates.verify.accounting import recomputed_guarantees
from dpaudit.certificates.verify.guard import MALFORMED, reason
from dpaudit.privacy.verdict import VERDICTS, worse

if TYPE_CHECKING:
    from dpaudit.certificates.policy import Facts, Policy

_ACCOUNTED = ("claim", "ledger", "accounting")


def corrected_verdict(derived: str, body: dict[str, Any], amendments: Sequence[Amendment]) -> str:
    """The gravest of the derived verdict and of what corrections say the verdict is."""
    after = corrected(body, amendments)
    section = after.body["verdict"]
    name = section.get("name") if isinstance(section, dict) else section
    changed = any(path.removeprefix("predicate.").startswith("verdict") for path in after.changed)
    return worse(derived, name) if changed and name in VERDICTS else derived


def judge(
    policy: Policy, facts: Facts, statement: dict[str, Any], amendments: Sequence[Amendment]
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
        more += [text for text in _after(policy, facts, statement, after.body, after.changed) if text not in failures]
    except MALFORMED as error:
        more.append(f"after its corrections a rule cannot be applied to this certificate ({reason(error)}).")
    return (*failures, *more), accepts and not more


def _after(
    policy: Policy, facts: Facts, statement: dict[str, Any], body: dict[str, Any], changed: Sequence[str]
) -> list[str]:
    from dpaudit.certificates.policy import judge_policy

    validate_statement({**statement, "predicate": body})
    recomputed = facts.recomputed
    if any(path.removeprefix("predicate.").startswith(_ACCOUNTED) for path in changed):
        recomputed = recomputed_guarantees(body)
    failures, _ = judge_policy(policy, dataclasses.replace(facts, body=body, recomputed=recomputed))
    return [f"after its corrections: {failure}" for failure in failures]
