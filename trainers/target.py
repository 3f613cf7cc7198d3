"""The noise multiplier of a plan: calibrated to its target, or checked against it."""

from __future__ import annotations

from typing import Protocol, TypeVar

from dpaudit.privacy import parts
from dpaudit.privacy.delta import warn_of_large_delta
from dpaudit.privacy.errors import DpauditError
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.protocols import Calibratable, Calibrate


class _Settled(Calibratable, Protocol):
    """A plan that says whether its noise multiplier σ is set."""

    @property
    def is_calibrated(self) -> bool: ...
    @property
    def public_size(self) -> int: ...


P = TypeVar("P", bound=_Settled)


def settled(plan: P, calibrate: Calibrate | None = None) -> P:
    """The plan with a noise multiplier σ: calibrated to the target ε where σ is missing, else checked against it.

    A δ that is not below 1/``public_size`` gives a warning.

    Raises
    ------
    PrivacyRefusal
        If a noise multiplier given beside a target misses it; see
        :func:`dpaudit.accounting.target.refuse_missed_target`.
    """
    if not plan.is_calibrated:
        plan = (parts.calibrate if calibrate is None else calibrate)(plan)
    check(plan)
    return plan


def check(plan: _Settled) -> None:
    """Refuse a target that the noise multiplier misses, and warn of a large δ, before the first step."""
    warn_of_large_delta(plan.delta, plan.public_size)
    if plan.target_epsilon is not None:
        parts.refuse_missed_target(plan.ledger(), delta=plan.delta, target_epsilon=plan.target_epsilon)


def spent(ledger: Ledger, delta: float) -> float | None:
    """Certified upper bound on the ε of a ledger; None where no steps are counted or the accountant refuses it."""
    if not ledger.steps:
        return None
    try:
        return parts.epsilon_upper(ledger.merged(), delta=delta)
    except DpauditError:  # the number is told beside training, which must not end because an accountant refuses
        return None
