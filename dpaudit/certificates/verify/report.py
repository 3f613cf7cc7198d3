"""What a verification found: named steps, each with one of three outcomes, and the exit code that follows."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from dpaudit.privacy.verdict import EXIT_CODES

Outcome = Literal["recomputed and equal", "recomputed and different", "not recomputable"]

EQUAL: Outcome = "recomputed and equal"
DIFFERENT: Outcome = "recomputed and different"
ABSENT: Outcome = "not recomputable"

UNSIGNED = "internally consistent; origin not proven"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing that was checked.

    Attributes
    ----------
    name : str
        Stable name, such as "accounting.prv" or "audit.coins".
    outcome : str
        "recomputed and equal", "recomputed and different" or "not recomputable".
    detail : str
        What was compared, with the values; for "not recomputable", what would be needed.
    """

    name: str
    outcome: Outcome
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Plain JSON value."""
        return {"name": self.name, "result": self.outcome, "detail": self.detail}


def judge(name: str, same: bool, equal: str, different: str) -> Step:
    """A step that is equal or different, with the words for each."""
    return Step(name, EQUAL, equal) if same else Step(name, DIFFERENT, different)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport:
    """The outcome of :func:`~dpaudit.verify_certificate`.

    Attributes
    ----------
    stated_verdict : str
        What the certificate says.
    steps : tuple of Step
        In the order they were made.
    origin : str
        Who vouches for the certificate: a signer's key, or "internally consistent; origin not proven".
    policy_failures : tuple of str
        One sentence for each rule of the policy that is not met; None of them without a policy.
    policy_accepts : bool
        Whether a policy was given, is met, and names the stated verdict as acceptable.
    """

    stated_verdict: str
    steps: tuple[Step, ...]
    origin: str
    policy_failures: tuple[str, ...] = ()
    policy_accepts: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing that was recomputed differs."""
        return all(step.outcome != DIFFERENT for step in self.steps)

    @property
    def verdict(self) -> str:
        """The stated verdict when everything re-derives, else "invalid_evidence"."""
        return self.stated_verdict if self.ok else "invalid_evidence"

    @property
    def exit_code(self) -> int:
        """3 when anything differs, 1 for an unmet policy, 0 where the policy accepts, else the verdict's code."""
        if not self.ok:
            return 3
        if self.policy_failures:
            return 1
        return 0 if self.policy_accepts else EXIT_CODES[self.stated_verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value, ``dpaudit.verify/1``."""
        return {
            "schema": "dpaudit.verify/1",
            "verdict": self.verdict,
            "stated_verdict": self.stated_verdict,
            "ok": self.ok,
            "origin": self.origin,
            "policy_failures": list(self.policy_failures),
            "steps": [step.to_dict() for step in self.steps],
        }

    def to_text(self) -> str:
        """The report as lines for a terminal."""
        mark = {EQUAL: "=", DIFFERENT: "X", ABSENT: "?"}
        width = max((len(step.name) for step in self.steps), default=0)
        lines = [f"{mark[s.outcome]} {s.name.ljust(width)}  {s.outcome}: {s.detail}" for s in self.steps]
        lines += [f"X policy: {failure}" for failure in self.policy_failures]
        lines.append(f"origin   {self.origin}")
        lines.append(
            f"verdict  {self.verdict}" + ("" if self.ok else f" (the certificate states {self.stated_verdict})")
        )
        return "\n".join(lines)
