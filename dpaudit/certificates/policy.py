"""A reader's own rules for certificates: ``dpaudit verify --policy policy.toml`` as a gate for CI.

    max_epsilon = 4.0                  # of the claim, and of the recomputed bound
    max_delta = 1e-5
    max_delta_times_records = 0.5      # δ · N ≤ 0.5, N from the ledger's public_size
    relations = ["add_or_remove_one"]
    units = ["record", "user"]
    minimum_level = 3                  # how far what was recomputed reaches, 0 to 4
    minimum_power = 0.8                # of this attack, by its positive control
    verdicts = ["consistent"]          # these pass with exit code 0
    required_steps = ["ledger.chain", "audit.coins"]
    required_tests = ["noise_scale"]   # white-box tests that must have run
    allow_deviations = false
    allow_conditional = false          # of the examiner: faults under a condition, such as a seeded generator
    trusted_keys = ["signer.pem"]      # paths relative to the policy
    countersigners = ["auditor.pem"]   # of people other than the trainer; level 4 takes one of their signatures
    timestamp_roots = ["tsa.pem"]      # of the authorities that may date a plan or a certificate

Every key is optional. An unknown key is an error: if it were ignored, a misspelling would silently switch a rule off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpaudit.certificates.statement import Predicate
from dpaudit.certificates.verify.accounting import Recomputed, bounds
from dpaudit.certificates.verify.report import EQUAL, RECORDED, Step
from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.guarantee import smallest_upper
from dpaudit.privacy.level import Level
from dpaudit.privacy.rounding import exact_text, lower_text, upper_text
from dpaudit.privacy.stage import Relation
from dpaudit.privacy.tolerance import exceeds
from dpaudit.privacy.verdict import Verdict
from dpaudit.storage.readers import read_bytes, read_toml


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules of one reader; None or empty means that there is no such rule."""

    max_epsilon: float | None = None
    max_delta: float | None = None
    max_delta_times_records: float | None = None
    relations: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    minimum_level: int | None = None
    minimum_power: float | None = None
    verdicts: tuple[str, ...] = ()
    required_steps: tuple[str, ...] = ()
    required_tests: tuple[str, ...] = ()
    allow_deviations: bool = True
    allow_conditional: bool = True
    trusted_keys: tuple[str, ...] = ()
    countersigners: tuple[str, ...] = ()
    timestamp_roots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_epsilon", "max_delta", "max_delta_times_records", "minimum_power"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidValue(f"policy key {name}={value!r} must be a number; mend the policy.")
            validate.non_negative(**{name: value})
        if self.minimum_level is not None:
            validate.integer_at_least(0, minimum_level=self.minimum_level)
            if self.minimum_level > max(Level):
                raise InvalidValue(f"policy key minimum_level={self.minimum_level} must be in 0..{max(Level):d}.")
        for name in (
            "relations",
            "units",
            "verdicts",
            "required_steps",
            "required_tests",
            "trusted_keys",
            "countersigners",
            "timestamp_roots",
        ):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or any(not isinstance(item, str) for item in value):
                raise InvalidValue(f"policy key {name}={value!r} must be a list of strings; mend the policy.")
            object.__setattr__(self, name, tuple(value))
        for name in ("allow_deviations", "allow_conditional"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidValue(f"policy key {name}={getattr(self, name)!r} must be true or false.")
        for relation in self.relations:
            Relation.parse(relation)
        for verdict in self.verdicts:
            validate.one_of(list(Verdict), verdicts=verdict)


def read_policy(path: Path) -> Policy:
    """Read a policy; the files named by ``trusted_keys`` and ``countersigners`` are read here and held as PEM text."""
    value = read_toml(path)
    known = {field.name for field in dataclasses.fields(Policy)}
    if unknown := sorted(set(value) - known):
        raise InvalidValue(f"policy key {unknown[0]!r} is unknown; known keys are {', '.join(sorted(known))}.")
    policy = Policy(**value)
    keys = tuple(_read_key(path.parent / name) for name in policy.trusted_keys)
    roots = tuple(
        read_bytes(path.parent / name, limit=1 << 20).decode("utf-8", "replace") for name in policy.timestamp_roots
    )
    others = tuple(_read_key(path.parent / name) for name in policy.countersigners)
    return dataclasses.replace(policy, trusted_keys=keys, countersigners=others, timestamp_roots=roots)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a verification found of one certificate, as its policy reads it.

    Attributes
    ----------
    body : Predicate
        As issued, or as corrected.
    recomputed : dict
        Accountant to what its fresh run gave.
    steps : sequence of Step
    verdict : Verdict
        The verdict that follows from what was recomputed.
    power_lower : float or None
        Lower end of the 95 % interval of the attack's power, measured again from control and scores.
    level : int
        How far what was recomputed reaches.
    """

    body: Predicate
    recomputed: Recomputed
    steps: Sequence[Step]
    verdict: Verdict
    power_lower: float | None
    level: int = 0


def judge_policy(policy: Policy, facts: Facts) -> tuple[tuple[str, ...], bool]:
    """Sentences on every rule that is not met, and whether the verdict is one the policy accepts."""
    failures = (*_claim_failures(policy, facts.body, facts.recomputed), *_audit_failures(policy, facts))
    return failures, not failures and facts.verdict in policy.verdicts


def policy_warnings(policy: Policy) -> tuple[str, ...]:
    """Rules that the owner's word alone can meet, since nobody vouches for it."""
    if not policy.required_tests or policy.trusted_keys:
        return ()
    return (
        "required_tests is met by what the owner recorded, and nothing repeats white-box tests here; add trusted_keys"
        " of someone who saw them run.",
    )


def _claim_failures(policy: Policy, body: Predicate, recomputed: Recomputed) -> Iterator[str]:
    claim = body.claim
    if claim is None:
        yield "the certificate makes no claim; ask for one that states epsilon and delta."
        return
    upper = smallest_upper(bounds(recomputed))
    if policy.max_epsilon is not None:
        if claim.epsilon > policy.max_epsilon:
            yield (f"claimed epsilon={exact_text(claim.epsilon)} exceeds max_epsilon={exact_text(policy.max_epsilon)}.")
        if upper is None or exceeds(upper, policy.max_epsilon):
            shown = "not recomputable" if upper is None else upper_text(upper, 6)
            yield f"recomputed epsilon={shown} is not shown to be within max_epsilon={exact_text(policy.max_epsilon)}."
    if policy.max_delta is not None and claim.delta > policy.max_delta:
        yield f"delta={exact_text(claim.delta)} exceeds max_delta={exact_text(policy.max_delta)}."
    if policy.max_delta_times_records is not None:
        sizes: list[Any] = [] if body.ledger is None else [s.get("public_size") for s in body.ledger.stages]
        if not sizes or any(size is None for size in sizes):
            yield "max_delta_times_records needs public_size in every stage of the ledger, and one lacks it."
        elif claim.delta * max(sizes) > policy.max_delta_times_records:
            yield (
                f"delta x records = {upper_text(claim.delta * max(sizes), 3)} exceeds"
                f" max_delta_times_records={exact_text(policy.max_delta_times_records)}."
            )
    if policy.relations and claim.relation not in policy.relations:
        yield f"relation={str(claim.relation)!r} is not among {', '.join(policy.relations)}."
    if policy.units and claim.unit not in policy.units:
        yield f"unit={claim.unit!r} is not among {', '.join(policy.units)}."


def _audit_failures(policy: Policy, facts: Facts) -> Iterator[str]:
    body, least = facts.body, facts.power_lower
    if policy.minimum_level is not None and facts.level < policy.minimum_level:
        words = Level(facts.level).words
        yield f"level={facts.level} ({words}) is below minimum_level={policy.minimum_level}."
    if policy.minimum_power is not None and (least is None or least < policy.minimum_power):
        shown = "unknown" if least is None else lower_text(least, 3)
        yield (
            f"power={shown} of the attack (lower end of its 95 % interval, recomputed) is below"
            f" minimum_power={exact_text(policy.minimum_power)}."
        )
    met = {step.name for step in facts.steps if step.outcome == EQUAL or _checked(step)}
    for name in policy.required_steps:
        if name not in met:
            yield f"required step {name!r} was not recomputed and equal; supply its evidence."
    ran = {test.get("name") for test in (body.examination or {}).get("tests") or () if isinstance(test, dict)}
    for name in policy.required_tests:
        if name not in ran:
            yield f"required test {name!r} did not run; certify with --examine."
    if not policy.allow_deviations and body.deviations:
        yield f"the run deviates: {body.deviations[0]}"
    if not policy.allow_conditional:
        for finding in body.findings:
            if finding.get("condition"):
                yield f"finding {finding.get('name')}: {finding['condition']}."
    if policy.verdicts and facts.verdict not in policy.verdicts:
        yield f"verdict {facts.verdict!r} is not among {', '.join(policy.verdicts)}."


def _checked(step: Step) -> bool:
    """A recorded step that was checked all the same: a trusted signature, and the list of missing fields."""
    return step.outcome == RECORDED and (step.name == "fields" or step.name.endswith("signature"))


def _read_key(path: Path) -> str:
    try:
        return read_bytes(path, limit=10_000).decode("ascii")
    except UnicodeDecodeError:
        raise InvalidValue(f"trusted key {path.name} is not PEM text; give an Ed25519 public key.") from None
