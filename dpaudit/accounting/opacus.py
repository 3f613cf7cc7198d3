"""dpaudit's certified ε as an accountant of Opacus, for ``PrivacyEngine(accountant="dpaudit")``."""

from __future__ import annotations

from typing import Any

from dpaudit.accounting.account import account
from dpaudit.accounting.events import from_opacus
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Relation

NAME = "dpaudit"


def register_with_opacus(*, relation: str | Relation) -> str:
    """Register an accountant with Opacus and return its name, ``dpaudit``.

    ``get_epsilon`` then returns the upper end of the certified interval of :func:`dpaudit.accounting.account`, and
    ``accountant.epsilon_interval(delta)`` both ends. Every entry of the history counts.

    Parameters
    ----------
    relation : Relation or str
        Neighbouring relation; Opacus' own accountants mean ``add_or_remove_one``.

    Returns
    -------
    str
        Name of the accountant, for ``PrivacyEngine(accountant=...)``.

    Raises
    ------
    InvalidValue
        When Opacus is missing, or older than its registry (1.5).

    Notes
    -----
    Opacus' accountants are told σ and the sample rate and nothing else: with ``poisson_sampling=False`` they, and this
    one, assume Poisson sampling all the same. Certify such a run from ``from_opacus(..., sampling="shuffle")``.

    Examples
    --------
    ::

        engine = PrivacyEngine(accountant=register_with_opacus(relation="add_or_remove_one"))
    """
    try:
        from opacus.accountants import IAccountant
        from opacus.accountants.registry import register_accountant
    except ImportError:
        raise InvalidValue("register_with_opacus needs Opacus 1.5 or newer; run: pip install 'opacus>=1.5'.") from None
    chosen = Relation.parse(relation)

    class CertifiedAccountant(IAccountant):  # type: ignore[misc]  # opacus is untyped
        """An accountant with Opacus's interface: it keeps the history of (σ, q, steps) and gives its certified ε."""

        def __init__(self) -> None:
            self.history: list[tuple[float, float, int]] = []

        def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
            """Add one step to the history."""
            if self.history and self.history[-1][:2] == (noise_multiplier, sample_rate):
                self.history[-1] = (noise_multiplier, sample_rate, self.history[-1][2] + 1)
            else:
                self.history.append((noise_multiplier, sample_rate, 1))

        def get_epsilon(self, delta: float, **options: Any) -> float:
            """Certified upper bound on ε at δ; options of other accountants have no meaning here and are refused."""
            if options:
                raise InvalidValue(f"{sorted(options)[0]}= is no option of the certified accountant; leave it out.")
            return self.epsilon_interval(delta)[1]

        def epsilon_interval(self, delta: float) -> tuple[float, float]:
            """The certified interval that ε at δ lies in."""
            if not self.history:
                return 0.0, 0.0
            (found,) = account(from_opacus(self, relation=chosen, unit="record"), delta=delta)
            assert found.epsilon_upper is not None
            return found.epsilon_lower or 0.0, found.epsilon_upper

        def __len__(self) -> int:
            return sum(steps for _, _, steps in self.history)

        @classmethod
        def mechanism(cls) -> str:
            """Name in Opacus' registry and in saved states."""
            return NAME

    register_accountant(NAME, CertifiedAccountant, force=True)
    return NAME
