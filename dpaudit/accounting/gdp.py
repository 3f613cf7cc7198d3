"""``gdp``: Gaussian DP, exact for unsampled stages and certified over a range of δ otherwise.

Sampling has no useful global μ: in the far corner a sampled run behaves as if every step had been sampled. So a
certified μ* is stated for δ ≥ δ_min only: for δ in [δ_min, 1) the ledger's ε(δ) is at most that of the μ*-Gaussian.
"""

from __future__ import annotations

import math
from typing import final

from dpaudit.accounting.accountant import Accountant, Bounds, Question, charged, resting_on
from dpaudit.accounting.relations import Charges
from dpaudit.privacy.gaussian import gaussian_epsilon
from dpaudit.privacy.rounding import upper_text


@final
class GdpAccountant(Accountant[Charges]):
    """Upper bound on ε from a certified Gaussian-DP parameter μ."""

    name = "gdp"
    options = frozenset({"assume", "rtol"})

    @property
    def version(self) -> str:
        """That of ``prv``, whose curve a certified μ comes from."""
        from dpaudit.accounting.prv.accountant import NUMERICS

        return NUMERICS

    def prepare(self, question: Question) -> Charges:
        """The charges of the ledger."""
        return charged(question)

    def bounds(self, question: Question, prepared: Charges) -> Bounds:
        """ε at δ by the exact μ, or by a μ that is certified for this δ and all larger ones."""
        from dpaudit.accounting.mu import certified_mu, exact_mu

        exact = exact_mu(prepared)
        if exact is not None:
            value = math.inf if math.isinf(exact) else gaussian_epsilon(exact, question.delta)
            return Bounds(upper=value, notes=resting_on(prepared, f"exact Gaussian DP with mu={upper_text(exact, 6)}"))

        mu, _ = certified_mu(prepared, question.delta)
        value = math.inf if math.isinf(mu) else gaussian_epsilon(mu, question.delta)
        note = f"mu={upper_text(mu, 6)} certified for delta >= {question.delta:g} from the prv curve"
        return Bounds(upper=value, notes=resting_on(prepared, note))
