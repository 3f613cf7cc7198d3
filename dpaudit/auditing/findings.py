"""White-box test results as findings, with the power they give an audit."""

from __future__ import annotations

from dpaudit.auditing.at_level import NOT_REFUTED, AtLevel
from dpaudit.auditing.sequential import SequentialTest
from dpaudit.auditing.steps import StepBound, smallest_visible_fault
from dpaudit.privacy.finding import Finding
from dpaudit.privacy.rounding import lower_text, upper_text


def finding_from_step(bound: StepBound, alpha: float, *, name: str = "step_audit", power: float = 0.8) -> Finding:
    """What a step-level bound says at the examiner's level α.

    A refuted step is ``violated`` for the declared mechanism; a step that stands gives the audit the power of the noise
    test for the fault it names in ``excludes`` (only the ``noise`` estimator, whose power is known exactly).

    Parameters
    ----------
    bound : StepBound
        As :func:`step_noise_bound` returns it.
    alpha : float
        Level at which it refutes.
    name : str
        Machine name of the finding.
    power : float, default=0.8
        Power for which ``excludes`` names the smallest visible fault.

    Returns
    -------
    Finding
        A ``note`` where no value was declared.
    """
    if bound.p_value is None:
        return Finding(
            name=name,
            status="note",
            claim="declared mechanism",
            text=(
                f"{bound.releases} releases of the step show mu >= {lower_text(bound.mu_lower)}; no declared"
                " value was given."
            ),
        )
    test = AtLevel(bound.p_value, alpha)
    excludes, measured = "", None
    if not test.rejected and bound.estimator == "noise":
        factor = smallest_visible_fault(bound.releases, alpha, power)
        excludes, measured = f"noise smaller than declared by a factor of {upper_text(factor, 3)} or more", power
    return Finding(
        name=name,
        status=test.status,
        claim="declared mechanism",
        p_value=bound.p_value,
        power=measured,
        excludes=excludes,
        text=(
            f"{bound.releases} releases of the step {test.verb} its declared ratio of sensitivity to noise"
            f" (mu >= {lower_text(bound.mu_lower)}, {test.numbers})." + (f" {NOT_REFUTED}" if test.rejected else "")
        ),
        detail={"estimator": bound.estimator, "mu": bound.mu, "mu_lower": bound.mu_lower, "releases": bound.releases},
    )


def finding_from_sequence(test: SequentialTest, alpha: float, *, name: str = "sequential_test") -> Finding:
    """What an anytime-valid test says: it may refute (ε, 0) or the declared step, never (ε, δ).

    A refuted (ε, 0) is only a note, since the claim at δ > 0 allows it.

    Parameters
    ----------
    test : SequentialTest
        As :func:`sequential_noise_test` returns it.
    alpha : float
        Level at which it refutes.
    name : str
        Machine name of the finding.

    Returns
    -------
    Finding
        ``violated`` where the declared step is refuted, otherwise ``note``.
    """
    rejected = test.p_value <= alpha
    mechanism = test.refutes == "declared step mechanism"
    return Finding(
        name=name,
        status="violated" if rejected and mechanism else "note",
        claim="declared mechanism" if mechanism else "(epsilon, 0)",
        p_value=test.p_value,
        text=(
            f"The sequential test {'refutes' if rejected else 'does not refute'} {test.refutes}"
            + (f" after {test.stopped_at} observations" if test.stopped_at is not None else "")
            + f" (anytime-valid p={upper_text(test.p_value, 3)}, level {alpha:g})."
        ),
        detail={"stopped_at": test.stopped_at},
    )
