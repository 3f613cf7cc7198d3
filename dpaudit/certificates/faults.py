"""What a certificate lacks, and where its parts contradict each other: checks of the statement by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.certificates.consistency import contradictions
from dpaudit.certificates.plain import plain_json, to_float
from dpaudit.certificates.statement import Audit, Predicate, Subject
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.storage.commitment import commitment, manifest

MECHANISM_NEEDS = ("algorithm", "clipping_norm", "normaliser", "noise_source")


def epsilon_upper(body: Predicate) -> float | None:
    """Smallest certified upper bound among the stored guarantees (each is a bound on its own); None without any."""
    return smallest_upper(body.accounting.guarantees)


def missing_fields(body: Predicate, subject: Sequence[Subject]) -> tuple[str, ...]:
    """Names of the fields that are needed to recompute the claim and are absent."""
    absent = [name for name in ("claim", "ledger") if getattr(body, name) is None]
    absent += [f"scope.{name}" for name in ("trust_model", "release_scope") if not getattr(body.scope, name)]
    absent += [f"mechanism.{name}" for name in MECHANISM_NEEDS if body.mechanism.get(name) in (None, "")]
    if body.ledger is not None and not body.ledger.head:
        absent.append("ledger.head")
    if epsilon_upper(body) is None:
        absent.append("accounting.guarantees (a certified upper bound)")
    if not subject:
        absent.append("subject (digests of the released files)")
    return tuple(absent)


def tested_group_epsilon(audit: Audit | None) -> float | None:
    """The group claim that k > 1 copies test: of the steps that ran, else as planned; infinity without either."""
    if audit is None or audit.copies == 1:
        return None
    tested = ((audit.result or {}).get("claim") or {}).get("tested_epsilon")
    if tested is None:
        tested = (audit.plan or {}).get("group_epsilon")
    return math.inf if tested is None else to_float(tested)


def audit_faults(audit: Audit) -> list[str]:
    """Sentences on an audit section whose commitment or guesses do not hold, without any further file."""
    needed = ("plan", "plan_digest", "commitment", "nonce")
    faults = [f"audit.{name} is missing, so the coins cannot be checked" for name in needed if not getattr(audit, name)]
    if not audit.canaries:
        faults.append("audit.canaries is missing, so the lower bound cannot be recomputed")
    if faults:
        return faults
    if open_commitment(audit) != audit.commitment:
        faults.append("the canaries' coins do not match the commitment made before training")
    return faults


def plan_commitment(plan: Mapping[str, Any]) -> str | None:
    """The coins' commitment that an audit plan carries; None when it carries none."""
    value = plan.get("coin_commitment")
    return value if isinstance(value, str) else None


def open_commitment(audit: Audit) -> str | None:
    """Commitment recomputed from nonce, ids, coins and copies; None when they cannot form one."""
    if audit.nonce is None:
        return None
    try:
        return commitment(bytes.fromhex(audit.nonce), manifest(audit.ids, audit.coins, audit.copies))
    except ValueError:
        return None


def mismatches(body: Predicate) -> list[str]:
    """Sentences on fields that state one fact and disagree: claim, ledger, accounting, plan, mechanism."""
    claim, ledger = body.claim, body.ledger
    found = contradictions(body)
    if claim is None:
        return found
    if ledger is not None:
        for name in ("relation", "unit", "max_records_per_unit"):
            claimed, recorded = plain_json(getattr(claim, name)), getattr(ledger, name)
            if claimed != recorded:
                found.append(f"the claim has {name}={claimed!r} and the ledger {recorded!r}")
    for guarantee in body.accounting.guarantees:
        for name in ("delta", "relation"):
            claimed, accounted = plain_json(getattr(claim, name)), getattr(guarantee, name)
            if claimed != accounted:
                found.append(f"the claim has {name}={claimed!r} and accountant {guarantee.accountant} {accounted!r}")
        if claim.max_records_per_unit != guarantee.group_size:
            found.append(
                f"the claim covers {claim.max_records_per_unit} records per unit and accountant"
                f" {guarantee.accountant} {guarantee.group_size}"
            )
    return found
