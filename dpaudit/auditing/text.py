"""An audit or an exposure report in words and columns, as the command line prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpaudit.auditing.exposure import mean_exposure_without_leakage
from dpaudit.auditing.exposure_checks import LEVEL, REVERSED_WORDS
from dpaudit.privacy.rounding import ABSENT, exact_text, lower_text, nearest_text, percent_lower, upper_text
from dpaudit.privacy.text import printable, table

if TYPE_CHECKING:
    from dpaudit.auditing.exposure_report import ExposureReport
    from dpaudit.auditing.result import AuditResult


def audit_text(result: AuditResult) -> str:
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


def _counted(number: int, one: str, many: str) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else many}"


def exposure_text(report: ExposureReport) -> str:
    """The report for people: one line per canary, then the tests."""
    rows = [("id", "copies", "rank", "exposure", "extrapolated", "p-value")]
    for i, name in enumerate(report.ids):
        far = ABSENT if report.extrapolated is None else nearest_text(report.extrapolated[i], 3)
        rows.append(
            (
                name,
                str(report.copies[i]),
                str(report.ranks[i]),
                nearest_text(report.exposures[i], 3),
                far,
                upper_text(report.p_values[i], 3),
            )
        )
    lines = [table(rows), *([REVERSED_WORDS] if report.looks_reversed else [])]
    for group in report.by_copies:
        lines.append(
            f"{_counted(group['canaries'], 'canary', 'canaries')} with {_counted(group['copies'], 'copy', 'copies')}"
            f" ({'one record' if group['copies'] == 1 else group['claim']}): mean exposure"
            f" {nearest_text(group['mean_exposure'], 3)} bits, rank-sum p={upper_text(group['p_value'], 3)}"
            + ("" if group["exact"] else " (normal approximation)")
            + (f", p={upper_text(p, 3)} under the claim" if (p := group["p_value_under_claim"]) is not None else "")
        )
    lines.append(
        f"all canaries: rank-sum p={upper_text(report.combined_p_value, 3)} against {report.references} references"
    )
    if not report.fit.used:
        lines.append(f"no extrapolation: {report.fit.reason}")
    chance, below = LEVEL * len(report.ids), int((report.p_values <= LEVEL).sum())
    lines.append(
        f"single p-values are not corrected: {below} of {len(report.ids)} are at most {LEVEL:g}, and about"
        f" {nearest_text(chance, 2)} would be by chance"
    )
    mean = nearest_text(mean_exposure_without_leakage(report.references))
    lines.append(f"Without leakage the mean exposure is {mean} bits. Exposure is no bound on ε.")
    return "\n".join(lines)
