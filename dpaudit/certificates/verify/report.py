"""What a verification found: named steps, each with one of four outcomes, and the exit code that follows."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from dpaudit.privacy.level import Level, Line, LineName, Standing
from dpaudit.privacy.text import printable
from dpaudit.privacy.verdict import Verdict

Outcome = Literal["recomputed and equal", "recomputed and different", "not recomputable", "recorded"]

EQUAL: Outcome = "recomputed and equal"
DIFFERENT: Outcome = "recomputed and different"
ABSENT: Outcome = "not recomputable"
RECORDED: Outcome = "recorded"

_NAME_WIDTH = 60
_MARKS = {Standing.SHOWN: "+", Standing.MISSING: "-", Standing.AGAINST: "X"}
UNSIGNED = "internally consistent; origin not proven"
UNFINISHED = "not finished within the limits of time and memory"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One thing that was checked.

    Attributes
    ----------
    name : str
        Stable name, such as "accounting.prv" or "audit.coins".
    outcome : str
        "recomputed and equal", "recomputed and different", "not recomputable", or "recorded": stated by someone, and
        never recomputed by anyone.
    detail : str
        What was compared, with the values; for "not recomputable", what would be needed.
    """

    name: str
    outcome: Outcome
    detail: str

    def to_dict(self) -> dict[str, str]:
        """Plain JSON value."""
        return {"name": self.name, "result": self.outcome, "detail": self.detail}


@dataclasses.dataclass(frozen=True, slots=True)
class ReportLine:
    """One of the four lines of evidence, as it follows from what was recomputed.

    Attributes
    ----------
    name : str
        "accounting", "implementation", "released_model" or "origin".
    standing : str
        "shown", "not shown" or "against the claim".
    text : str
    reasons : tuple of str
        Why it is not shown, or what it has against the claim.
    """

    name: str
    standing: str
    text: str
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, line: Line) -> ReportLine:
        """The line as a plain record."""
        return cls(str(line.name), str(line.standing), line.text, line.reasons)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {**dataclasses.asdict(self), "reasons": list(self.reasons)}


def judge(name: str, same: bool, equal: str, different: str) -> Step:
    """A step that is equal or different, with the words for each."""
    return Step(name, EQUAL, equal) if same else Step(name, DIFFERENT, different)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport:
    """The outcome of :func:`dpaudit.verify`.

    Attributes
    ----------
    stated_verdict : str
        What the certificate says.
    derived_verdict : str or None
        What follows from what was recomputed here. A stated ``consistent`` whose evidence does not lie beside the
        certificate is ``inconclusive`` here.
    power_lower : float or None
        Lower end of the 95 % interval of the power of the attack or of the in-run audit, whichever has more, recomputed
        from controls and scores.
    steps : tuple of Step
        In the order they were made.
    origin : str
        Who vouches for the certificate: a signer's key, or "internally consistent; origin not proven".
    policy_failures : tuple of str
        One sentence for each rule of the policy that is not met; None of them without a policy.
    policy_accepts : bool
        Whether a policy was given, is met, and names the derived verdict as acceptable.
    warnings : tuple of str
        Rules of the policy that are met by the owner's word alone.
    level : int
        How far what was recomputed reaches, 0 to 4; 0 where anything speaks against the claim.
    lines : tuple of ReportLine
        The four lines of evidence, as they follow from what was recomputed.
    about : str
        The claim in words, as the certificate states it.
    """

    stated_verdict: str
    steps: tuple[Step, ...]
    origin: str
    policy_failures: tuple[str, ...] = ()
    policy_accepts: bool = False
    derived_verdict: str | None = None
    power_lower: float | None = None
    warnings: tuple[str, ...] = ()
    level: int = 0
    lines: tuple[ReportLine, ...] = ()
    about: str = ""

    @property
    def headline(self) -> tuple[str, ...]:
        """What a reader needs who reads no further: outcome, claim, counts of the checks, files, and who vouches."""
        count = {outcome: [s for s in self.steps if s.outcome == outcome] for outcome in (EQUAL, DIFFERENT, ABSENT)}
        files = [step for step in self.steps if step.name.startswith("subject ")]
        same = sum(step.outcome == EQUAL for step in files)
        if wrong := count[DIFFERENT]:
            names = ", ".join(printable(step.name) for step in wrong[:3])
            first = (
                f"DO NOT RELY ON THIS CERTIFICATE: {len(wrong)} of its statements differ from its evidence ({names})."
            )
        else:
            level = self.level_reached
            first = f"{self.verdict.upper()}, level {level} of 4 ({Level(level).words})."
        return (
            first,
            f"Claim: {printable(self.about) or 'none'}.",
            f"Checks: {len(count[EQUAL])} derived again and equal, {len(wrong)} different, {len(count[ABSENT])} not"
            f" possible here. Files: {same} of {len(files)} are those that were certified.",
            f"Who says so: {printable(self.origin)}.",
        )

    @property
    def ok(self) -> bool:
        """Whether nothing that was recomputed differs."""
        return all(step.outcome != DIFFERENT for step in self.steps)

    @property
    def finished(self) -> bool:
        """Whether every check that the evidence allows was made within the limits of time and memory."""
        return not any(step.outcome == ABSENT and step.detail.startswith(UNFINISHED) for step in self.steps)

    @property
    def level_reached(self) -> int:
        """The level; 0 where anything differs, and below 3 where the checks were cut short."""
        return 0 if not self.ok else self.level if self.finished else min(self.level, Level.EXAMINED.value)

    @property
    def verdict(self) -> str:
        """The verdict that follows from what was recomputed; "invalid_evidence" when anything differs.

        Never ``consistent`` when the checks were cut short.
        """
        if not self.ok:
            return "invalid_evidence"
        derived = self.derived_verdict or self.stated_verdict
        return Verdict.INCONCLUSIVE if derived == Verdict.CONSISTENT and not self.finished else derived

    @property
    def exit_code(self) -> int:
        """3 when anything differs, 1 for an unmet policy, 0 where the policy accepts, else the verdict's code.

        A check that the limits cut short supports nothing, so that 0 becomes 2.
        """
        if not self.ok:
            return 3
        if self.policy_failures:
            return 1
        if self.policy_accepts and self.finished:
            return 0
        return Verdict(self.verdict).exit_code

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value, ``dpaudit.verify/1``."""
        return {
            "schema": "dpaudit.verify/1",
            "verdict": self.verdict,
            "headline": list(self.headline),
            "stated_verdict": self.stated_verdict,
            "derived_verdict": self.derived_verdict,
            "power_lower": self.power_lower,
            "ok": self.ok,
            "origin": self.origin,
            "level": self.level_reached,
            "lines": [line.to_dict() for line in self.lines],
            "policy_failures": list(self.policy_failures),
            "warnings": list(self.warnings),
            "steps": [step.to_dict() for step in self.steps],
        }

    def to_plain(self) -> dict[str, Any]:
        """All fields as plain JSON values, for :meth:`from_plain` in another process."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> VerificationReport:
        """The report whose :meth:`to_plain` this is."""
        steps = tuple(Step(**step) for step in value["steps"])
        lines = tuple(ReportLine(**{**line, "reasons": tuple(line["reasons"])}) for line in value["lines"])
        own = ("steps", "lines")
        rest: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k not in own}
        return cls(steps=steps, lines=lines, **rest)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self) -> str:
        """The report as lines for a terminal; whatever the certificate's maker wrote stays on its line."""
        mark = {EQUAL: "=", DIFFERENT: "X", ABSENT: "?", RECORDED: "."}
        width = min(_NAME_WIDTH, max((len(printable(step.name)) for step in self.steps), default=0))
        lines = [*self.headline, ""]
        lines += [
            f"{mark[step.outcome]} {printable(step.name).ljust(width)}  {step.outcome}: {printable(step.detail)}"
            for step in self.steps
        ]
        lines += [f"X policy: {printable(failure)}" for failure in self.policy_failures]
        lines += [f"! policy: {printable(warning)}" for warning in self.warnings]
        for line in self.lines:
            name, standing = LineName(line.name).title, Standing(line.standing)
            lines.append(f"{_MARKS[standing]} {name.ljust(16)} {standing}: {printable(line.text)}")
            lines += [f"    {printable(reason)}" for reason in line.reasons[:3]]
        lines.append(f"origin   {self.origin}")
        level = self.level_reached
        lines.append(f"level    {level} of 4, {Level(level).words}")
        stated = "" if self.verdict == self.stated_verdict else f" (the certificate states {self.stated_verdict})"
        lines.append(f"verdict  {self.verdict}{stated}")
        return "\n".join(lines)
