"""Clipping rules: from per-example norms to per-example factors, every one with |c_i g_i| <= its bound.

- ``Flat``: c = min(1, C/n), exactly; 1 for n = 0 (Abadi et al. 1607.00133)
- ``PerLayer``: the same with its own bound C_l in every layer, Σ C_l² = C² (McMahan et al.
  1710.06963; He et al. 2212.01539)
- ``Automatic``: c = C/(n + γ), AUTO-S (Bu et al. 2206.07136)
- ``AdaptiveFlat``: flat, with C following a private quantile of the norms (Andrew et al. 1905.03871)

A non-finite norm gives the factor 0: an error would reveal the record.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import remaining_noise_multiplier


def _finite_or_zero(factors: Tensor, norms: Tensor) -> Tensor:
    return torch.where(norms.isfinite(), factors, torch.zeros_like(factors))


def _flat(norms: Tensor, bound: float) -> Tensor:
    # n <= C gives exactly 1, also for n = 0; otherwise C/n, divided once (a scalar numerator would be rounded twice).
    return _finite_or_zero(
        torch.where(norms <= bound, torch.ones_like(norms), torch.full_like(norms, bound) / norms), norms
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Flat:
    """One bound for the whole gradient: c = min(1, C/n).

    Parameters
    ----------
    clipping_norm : float
        C > 0; infinity switches clipping off (and with it any guarantee).

    Raises
    ------
    InvalidValue
        If C is not positive.
    """

    clipping_norm: float

    def __post_init__(self) -> None:
        validate.positive(clipping_norm=self.clipping_norm)

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of one example's contribution to the clipped sum."""
        return self.clipping_norm

    def factors(self, norms: Tensor) -> Tensor:
        """(B,) norms to (B,) factors.

        Parameters
        ----------
        norms : Tensor of shape (B,)
            Per-example norms, private.

        Returns
        -------
        Tensor of shape (B,)
            Factors c, with c·n at most C.

        >>> Flat(1.0).factors(torch.tensor([0.0, 0.5, 4.0, float("nan")]))
        tensor([1.0000, 1.0000, 0.2500, 0.0000])
        """
        return _flat(norms, self.clipping_norm)


@dataclasses.dataclass(frozen=True, slots=True)
class PerLayer:
    """A bound for every layer (one module's parameters): c_l = min(1, C_l/n_l).

    Unless bounds are given, all layers have the same, C over the root of their number.

    Parameters
    ----------
    clipping_norm : float
        C > 0, the bound of the whole contribution.
    bounds : tuple of float, optional
        C_l for every layer, in the order of ``GhostClipping.layers``, with Σ C_l² <= C².

    Raises
    ------
    InvalidValue
        If C or a bound is not positive, or Σ C_l² exceeds C²; from :meth:`factors`, if there are more or fewer
        bounds than layers.
    """

    clipping_norm: float
    bounds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        validate.positive(clipping_norm=self.clipping_norm)
        if self.bounds is not None:
            for bound in self.bounds:
                validate.positive(bounds=bound)
            total = math.sqrt(sum(bound**2 for bound in self.bounds))
            if total > self.clipping_norm * (1 + 1e-9):
                raise InvalidValue(
                    f"bounds with root sum of squares {total:.6g} must stay within clipping_norm={self.clipping_norm};"
                    " scale them down."
                )

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of one example's contribution to the clipped sum."""
        return self.clipping_norm

    def factors(self, norms: Tensor) -> Tensor:
        """(layers, B) norms to factors alike; an example with one non-finite layer contributes nothing anywhere.

        Parameters
        ----------
        norms : Tensor of shape (layers, B)
            Per-example norms of every layer, private.

        Returns
        -------
        Tensor of shape (layers, B)
            Factors c_l, with c_l·n_l at most C_l.

        Raises
        ------
        InvalidValue
            If there are more or fewer bounds than layers.
        """
        if self.bounds is not None and len(self.bounds) != len(norms):
            raise InvalidValue(
                f"bounds of length {len(self.bounds)} must have one bound for each of {len(norms)} layers."
            )
        each = [self.clipping_norm / math.sqrt(len(norms))] * len(norms) if self.bounds is None else self.bounds
        factors = torch.stack([_flat(n, bound) for n, bound in zip(norms, each, strict=True)])
        return factors * norms.isfinite().all(0)


@dataclasses.dataclass(frozen=True, slots=True)
class Automatic:
    """AUTO-S: c = C/(n + γ); every gradient is normalised, so C needs no tuning.

    Parameters
    ----------
    clipping_norm : float
        C > 0, the bound.
    stability : float, default=0.01
        γ > 0.

    Raises
    ------
    InvalidValue
        If C or γ is not finite and positive.
    """

    clipping_norm: float
    stability: float = 0.01

    def __post_init__(self) -> None:
        validate.positive(clipping_norm=self.clipping_norm, stability=self.stability)
        validate.finite(clipping_norm=self.clipping_norm, stability=self.stability)

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of one example's contribution to the clipped sum."""
        return self.clipping_norm

    def factors(self, norms: Tensor) -> Tensor:
        """(B,) norms to (B,) factors.

        Parameters
        ----------
        norms : Tensor of shape (B,)
            Per-example norms, private.

        Returns
        -------
        Tensor of shape (B,)
            Factors c, with c·n at most C.
        """
        return _finite_or_zero(self.clipping_norm / (norms + self.stability), norms)


@dataclasses.dataclass(frozen=True, slots=True)
class AdaptiveFlat:
    """Flat clipping whose bound follows the ``quantile`` of the norms (Andrew et al. 1905.03871).

    A step releases two things of one minibatch: the clipped sum, and the count of examples below C. The caller adds
    noise of standard deviation ``quantile_sigma`` (σ_b) to :meth:`count` and gives the result to :meth:`updated`; the
    pair is charged as one Gaussian release of noise multiplier (σ⁻² + (2 σ_b)⁻²)^(-1/2), σ being that of the sum.

    Parameters
    ----------
    clipping_norm : float
        C > 0, the bound now.
    quantile : float, default=0.5
        Share of examples that should stay unclipped, in (0, 1).
    learning_rate : float, default=0.2
        η of the geometric update C ← C exp(-η (share - quantile)).

    Raises
    ------
    InvalidValue
        If a value is out of its bounds; names it.
    """

    clipping_norm: float
    quantile: float = 0.5
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        validate.positive(clipping_norm=self.clipping_norm, learning_rate=self.learning_rate)
        validate.finite(clipping_norm=self.clipping_norm, learning_rate=self.learning_rate)
        validate.open_unit(quantile=self.quantile)

    @property
    def sensitivity(self) -> float:
        """Largest L2 norm of one example's contribution to the clipped sum."""
        return self.clipping_norm

    def factors(self, norms: Tensor) -> Tensor:
        """(B,) norms to (B,) factors.

        Parameters
        ----------
        norms : Tensor of shape (B,)
            Per-example norms, private.

        Returns
        -------
        Tensor of shape (B,)
            Factors c, with c·n at most C.
        """
        return _flat(norms, self.clipping_norm)

    def count(self, norms: Tensor) -> float:
        """Σ_i (1[n_i <= C] - 1/2), PRIVATE, of sensitivity 1/2; a norm that is not finite counts as above C.

        Parameters
        ----------
        norms : Tensor of shape (B,)
            Per-example norms, private.

        Returns
        -------
        float
            The centred count, to which the caller adds noise.
        """
        return float((norms <= self.clipping_norm).sum()) - norms.numel() / 2

    def updated(self, noisy_count: float, expected_batch_size: float) -> AdaptiveFlat:
        """The rule for the next step, from the NOISED count and the public expected batch size.

        Parameters
        ----------
        noisy_count : float
            What :meth:`count` gave, with its noise.
        expected_batch_size : float
            Public; never the realised batch size.

        Returns
        -------
        AdaptiveFlat
            With the next C.

        Raises
        ------
        InvalidValue
            If ``expected_batch_size`` is not positive.
        """
        validate.positive(expected_batch_size=expected_batch_size)
        share = noisy_count / expected_batch_size + 0.5
        bound = self.clipping_norm * math.exp(-self.learning_rate * (share - self.quantile))
        return dataclasses.replace(self, clipping_norm=bound)


def sum_noise_multiplier(noise_multiplier: float, quantile_sigma: float) -> float:
    """Noise multiplier left for the clipped sum when the count query takes its part of the budget.

    It is (σ⁻² - (2 σ_b)⁻²)^(-1/2), with σ for ``noise_multiplier`` and σ_b for ``quantile_sigma``: the two releases
    together cost what one of noise multiplier σ costs (Andrew et al. 1905.03871, Theorem 1).

    >>> round(sum_noise_multiplier(1.0, 10.0), 6)
    1.001252
    """
    validate.positive(noise_multiplier=noise_multiplier, quantile_sigma=quantile_sigma)
    if not 2 * quantile_sigma > noise_multiplier:
        raise InvalidValue(
            f"quantile_sigma={quantile_sigma} must be > noise_multiplier/2={noise_multiplier / 2}; the count alone"
            " would spend more than the step's budget."
        )
    return remaining_noise_multiplier(noise_multiplier, 2 * quantile_sigma)


Clipping = Flat | PerLayer | Automatic | AdaptiveFlat
