"""The audit's result, as a frozen value in the form of ``dpaudit audit --json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dpaudit.privacy.finding import Finding
from dpaudit.privacy.verdict import Verdict

AUDIT_SCHEMA = "dpaudit.audit/1"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One estimator's lower bound on ε at the claim's δ.

    Attributes
    ----------
    estimator : str
        Its name.
    kind : str
        ``unconditional`` (holds for every mechanism), ``conditional`` (assumes the mechanism named in ``assumption``),
        ``credible`` (a posterior statement), ``approximate`` or ``heuristic`` (assumptions of the design not met).
    epsilon_lower : float or None
        Lower bound at ``confidence``.
    assumption : str
        What it rests on.
    """

    estimator: str
    kind: str
    epsilon_lower: float | None
    confidence: float
    assumption: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value; only the primary estimator ever carries a verdict."""
        return {**dataclasses.asdict(self), "verdict": None, "corrected": False}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found. Built by :func:`dpaudit.auditing.audit`.

    Attributes
    ----------
    verdict : Verdict
        ``violated``, ``accounting_mismatch``, ``invalid_audit``, ``inconclusive`` or ``consistent``.
    summary : str
        One paragraph in plain words.
    claim_tested : str
        Which claim the bound was compared with.
    claimed_epsilon, delta, accounted_upper, tested_epsilon
        The claim, the accountant's certified upper bound if given, and the ε the bound was compared with.
    estimator : str
        The primary estimator.
    epsilon_lower, epsilon_lower_at_verdict : float or None
        Its bound at ``confidence`` and at the verdict's stricter level; None for an invalid audit or without coins.
    p_value : float or None
        Of the tested claim, by the primary estimator.
    guesses, correct : int or None
        Guesses made and right.
    ceiling, ceiling_at_verdict : float or None
        What a perfect attack could have shown at ``confidence``, and at the verdict's stricter level.
    expected_epsilon_lower : float or None
        Mean bound at ``confidence`` of the optimal attack on a Gaussian mechanism exactly as claimed.
    power, power_lower : float or None
        Power of this attack, from a positive control or from white-box findings (``power_source``), and the lower end
        of its 95 % interval, which is what the verdict rests on.
    """

    verdict: Verdict
    summary: str
    claim_tested: str
    claimed_epsilon: float
    delta: float
    accounted_upper: float | None
    tested_epsilon: float | None
    estimator: str
    epsilon_lower: float | None
    epsilon_lower_at_verdict: float | None
    confidence: float
    confidence_at_verdict: float
    p_value: float | None
    guesses: int | None
    correct: int | None
    ceiling: float | None
    ceiling_at_verdict: float | None
    expected_epsilon_lower: float | None
    power: float | None
    power_lower: float | None
    power_source: str | None
    power_if_attack_were_optimal: float | None
    design: Mapping[str, Any]
    secondary: tuple[Bound, ...]
    auc: Mapping[str, Any] | None
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 consistent, 1 violated or accounting_mismatch, 2 inconclusive, 3 invalid_audit."""
        return self.verdict.exit_code

    def __str__(self) -> str:
        from dpaudit.auditing.text import audit_text

        return audit_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.audit/1``."""
        return {
            "schema": AUDIT_SCHEMA,
            "verdict": str(self.verdict),
            "summary": self.summary,
            "claim": {
                "tested": self.claim_tested,
                "epsilon": self.claimed_epsilon,
                "delta": self.delta,
                "accounted_upper": self.accounted_upper,
                "tested_epsilon": self.tested_epsilon,
            },
            "primary": {
                "estimator": self.estimator,
                "kind": "unconditional",
                "epsilon_lower": self.epsilon_lower,
                "confidence": self.confidence,
                "epsilon_lower_at_verdict": self.epsilon_lower_at_verdict,
                "confidence_at_verdict": self.confidence_at_verdict,
                "p_value": self.p_value,
                "guesses": self.guesses,
                "correct": self.correct,
            },
            "ceiling": self.ceiling,
            "ceiling_at_verdict": self.ceiling_at_verdict,
            "expected_epsilon_lower": self.expected_epsilon_lower,
            "power": self.power,
            "power_lower": self.power_lower,
            "power_source": self.power_source,
            "power_if_attack_were_optimal": self.power_if_attack_were_optimal,
            "design": dict(self.design),
            "secondary": [bound.to_dict() for bound in self.secondary],
            "auc": None if self.auc is None else dict(self.auc),
            "findings": [finding.to_dict() for finding in self.findings],
        }
