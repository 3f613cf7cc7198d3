"""An examination in words, as the command line prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpaudit.privacy.rounding import lower_text, upper_text
from dpaudit.privacy.text import printable

if TYPE_CHECKING:
    from dpaudit.attacks.examiner.values import Findings


def examination_text(found: Findings) -> str:
    """The findings with their conditions, then every test with its evidence, what was not tested, and the bound."""
    lines = ["verdict: VIOLATED" if found.violated else "nothing found (no proof of privacy; see what was excluded)"]
    for finding in found.findings:
        lines.append(f"- {finding.name} [{finding.status}] {finding.text}")
        if condition := finding.public().get("condition"):
            lines.append(f"    does not convict by itself: {condition}")
        if finding.repeated:
            lines.append(f"    found with it, and explained by it: {', '.join(finding.repeated)}")
    if found.findings:
        lines.append("dpaudit examine --explain NAME says what a name means and how to mend it")
    lines.append("tests:")
    for test in found.tests:
        lines.append(f"  {test.name}: {test.evidence}; excludes {test.excludes or 'nothing further'}")
    lines += [f"  not tested: {reason}" for reason in found.untested]
    if not found.in_full:
        lines.append("the examination is not one in full: replays, noise and sampler must all be tested to the end")
    lines.append(
        f"false alarms of all tests together: at most {upper_text(found.alpha, 2)}; took {found.seconds:.0f} s"
    )
    if found.epsilon_lower is not None:
        lines.append(
            f"step audit: μ ≥ {lower_text(found.mu_lower, 3)} per step, which composes to"
            f" ε ≥ {lower_text(found.epsilon_lower, 3)}"
        )
    return "\n".join(map(printable, lines))
