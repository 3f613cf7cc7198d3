"""What follows from the in-run section of a certificate (an observer of every noisy update), by its fields alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.certificates.plain import plain_json, to_float
from dpaudit.certificates.statement import Predicate
from dpaudit.certificates.verdict import Observed
from dpaudit.privacy.finding import finding_status
from dpaudit.privacy.rounding import exact_text, lower_text, percent_lower, percent_upper, upper_text
from dpaudit.privacy.tolerance import exceeds
from dpaudit.privacy.verdict import ENOUGH_POWER, Verdict, enough_power

FILE = "in_run.json"
"""The evidence beside the certificate: coordinates, scores, energy and the counts of the controls."""
OBSERVER = "every noisy update"
FINAL = "the released model"


def planned_in_run(body: Predicate) -> Mapping[str, Any] | None:
    """The in-run audit that the audit plan commits to; None where it commits to none."""
    plan = None if body.audit is None else body.audit.plan
    planned = (plan or {}).get("in_run")
    return planned if isinstance(planned, Mapping) else None


def in_run_faults(body: Predicate) -> tuple[str, ...]:
    """Sentences on a section that does not fit the plan: an observer that was announced cannot be left out."""
    planned, section = planned_in_run(body), body.in_run
    if section is None:
        if planned is None:
            return ()
        return ("the audit plan commits to an in-run audit, and the certificate holds none: it was left out",)
    if planned is None:
        return ("the certificate holds an in-run audit that no audit plan commits to",)
    faults = []
    if planned.get("m") != section.result.get("m"):
        faults.append(f"the plan froze {planned.get('m')} in-run canaries and {section.result.get('m')} were audited")
    if planned.get("m") and (section.coins is None or section.nonce is None):
        faults.append("the coins of the in-run canaries are missing, so that nothing follows from their scores")
    if body.claim is not None:
        for name, claimed in (
            ("claimed_epsilon", body.claim.epsilon),
            *((name, plain_json(getattr(body.claim, name))) for name in ("delta", "relation", "unit")),
        ):
            if planned.get(name) != claimed:
                faults.append(f"the in-run plan has {name}={planned.get(name)!r:.40} and the claim {claimed!r}")
    return tuple(faults)


def observed_in_run(body: Predicate, epsilon_upper: float | None) -> Observed | None:
    """Standing of the in-run audit; None where there is none and none was announced.

    Parameters
    ----------
    body : Predicate
    epsilon_upper : float or None
        Smallest certified ε of the ledger, which the bound may not exceed either.
    """
    faults, section = in_run_faults(body), body.in_run
    if section is None:
        return Observed(invalid=faults) if faults else None
    result = section.result
    asking: dict[str, list[str]] = {}
    for row in result.get("findings") or ():
        asking.setdefault(finding_status(row), []).append(f"in the run: {row.get('text')}")
    invalid = (*faults, *asking.get(Verdict.INVALID_AUDIT, ()))
    against = list(asking.get(Verdict.VIOLATED, ()))
    primary = result.get("primary") or {}
    lower, claim = primary.get("epsilon_lower_at_verdict"), None if body.claim is None else body.claim.epsilon
    if not invalid and not against and lower is not None:
        limits = [limit for limit in (claim, epsilon_upper) if limit is not None and exceeds(to_float(lower), limit)]
        against += [
            f"in the run: the canaries show ε ≥ {lower_text(to_float(lower), beyond=limit)}, above {exact_text(limit)}"
            for limit in limits[:1]
        ]
    weak = (*asking.get(Verdict.INCONCLUSIVE, ()), *_weaknesses(body, result))
    return Observed(
        against=tuple(against),
        mismatch=tuple(asking.get(Verdict.ACCOUNTING_MISMATCH, ())),
        invalid=invalid,
        weak=weak,
        power=power_text(result),
    )


def _weaknesses(body: Predicate, result: Mapping[str, Any]) -> list[str]:
    planned = planned_in_run(body) or {}
    if not result.get("m"):
        reason = str(planned.get("reason") or "the plan has none")
        return [f"there are no in-run canaries ({reason}), and the energy of the releases alone is no audit"]
    if missing := _missing_releases(body, result):
        return [missing]
    if result.get("alive") is not True:
        return ["the in-run canaries' scores do not tell inserted from left-out ones as the recorded steps must"]
    control = result.get("control")
    if not isinstance(control, Mapping):
        return ["the power of the in-run audit is unknown, since its control was not made"]
    least = result.get("power_lower")
    if not enough_power(None if least is None else to_float(least)):
        shown = lower_text(0.0 if least is None else to_float(least), 2)
        return [
            f"the in-run audit was shown to notice {control.get('fault')} with probability {shown} at least, below the"
            f" {ENOUGH_POWER:g} that a verdict needs"
        ]
    return []


def _missing_releases(body: Predicate, result: Mapping[str, Any]) -> str:
    """Sentence on counted steps without a recorded release, where no unclean stop explains them."""
    recorded = result.get("steps")
    counted = 0 if body.ledger is None else sum(int(stage["steps"]) for stage in body.ledger.stages)
    stopped = any("stopped uncleanly" in text or "a crash lost" in text for text in body.deviations)
    if not isinstance(recorded, int) or recorded >= counted or stopped:
        return ""
    return (
        f"{counted - recorded} of {counted} counted steps have no recorded release, and no unclean stop explains it:"
        " what those steps released is not known"
    )


def power_text(result: Mapping[str, Any]) -> str:
    """The fault that an in-run audit would have convicted, and how surely; empty where no control measured it."""
    control, least = result.get("control"), result.get("power_lower")
    if not isinstance(control, Mapping) or least is None:
        return ""
    return f"{control.get('fault')} (in the run, probability {lower_text(to_float(least), 2)} or more)"


def visible_text(result: Mapping[str, Any]) -> str:
    """The smallest shortfalls of noise that an in-run audit would have shown with probability 0.95, as one phrase."""
    parts = []
    for name, by in (("visible_by_energy", "by the energy of the releases"), ("visible_by_canaries", "by canaries")):
        value = result.get(name)
        if value is not None and to_float(value) < 1:
            parts.append(f"{percent_upper(to_float(value))} {by}")
    return " or ".join(parts)


def in_run_text(body: Predicate) -> str:
    """What the in-run audit found, as one or two sentences; empty where there is none."""
    section = body.in_run
    if section is None:
        return ""
    result = section.result
    primary = result.get("primary") or {}
    sentences = []
    if primary.get("epsilon_lower") is not None:
        sure = primary.get("confidence")
        shown = "" if sure is None else f" ({percent_lower(sure)} sure)"
        sentences.append(
            f"Seen from every noisy update, {result.get('m'):,} in-run canaries show"
            f" ε ≥ {lower_text(to_float(primary['epsilon_lower']))}{shown}."
        )
    if visible := visible_text(result):
        sentences.append(f"A shortfall of the noise of {visible} would have been seen with probability 0.95.")
    energy = result.get("energy")
    if isinstance(energy, Mapping) and energy.get("p_value") is not None:
        sentences.append(f"Energy of the releases against the declared noise: p = {upper_text(energy['p_value'], 2)}.")
    return " ".join(sentences)
