"""The energy record of a run's releases: sums of squares and products of its noisy sums, one pass over each release.

The numbers are functions of releases alone, so they may be published. :mod:`dpaudit.auditing` tests them against the
declared noise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue

PROBE = 2**22
"""Coordinates, at most, whose products are recorded: they need a copy of the step before (16 MiB)."""


@dataclasses.dataclass(frozen=True, slots=True)
class StepWitness:
    """Sums over one release r, the noisy SUM of a step divided by its declared noise deviation σC.

    Attributes
    ----------
    squares : tuple of float
        |r|² of each parameter block.
    probe_squares : float
        |r|² over the probe, the leading coordinates of every block.
    lagged : float
        Product with the release before over the probe; 0 where no release before is known.
    within : tuple of two floats
        Product of neighbouring blocks' leading coordinates, and of the probe's two halves.
    """

    squares: tuple[float, ...]
    probe_squares: float
    lagged: float
    within: tuple[float, float]


class ReleaseRecorder:
    """Records the energy of every release of a run.

    Parameters
    ----------
    sizes : mapping of str to int
        Coordinates of every trained parameter, in the order in which releases come.
    probe : int, default=4,194,304
        Coordinates whose products are recorded, spread over the parameters in proportion to their sizes.

    Raises
    ------
    InvalidValue
        If ``sizes`` is empty or ``probe`` below 1.

    Notes
    -----
    Beside a model in shards it is given to ``distributed_options``, which brings the shards' sums together.
    """

    def __init__(self, sizes: Mapping[str, int], *, probe: int = PROBE) -> None:
        validate.integer_at_least(1, probe=probe)
        if not sizes:
            raise InvalidValue("sizes is empty; name at least one trained parameter.")
        self.blocks = tuple(sizes)
        self.sizes = tuple(int(n) for n in sizes.values())
        share = min(1.0, probe / sum(self.sizes))
        self.probe = tuple(max(1, int(n * share)) for n in self.sizes)
        self._before: tuple[Tensor, float] | None = None
        self._block_squares = [0.0] * len(self.sizes)
        self._rows: list[tuple[float, float, float, float, float]] = []

    @torch.no_grad()
    def observe(self, released: Sequence[Tensor], deviation: float) -> StepWitness:
        """Record one release.

        Parameters
        ----------
        released : sequence of Tensor
            Noisy sums (or noisy means), one for each parameter, in order.
        deviation : float
            Declared standard deviation of the noise in every coordinate of ``released``: σC for a sum, σC/L for a mean.

        Returns
        -------
        StepWitness
            The numbers that were recorded of this release.

        Raises
        ------
        InvalidValue
            If the release does not have the recorder's parameters, or ``deviation`` is not above 0.
        """
        validate.positive(deviation=deviation)
        flat = [r.detach().reshape(-1) for r in released]
        if tuple(r.numel() for r in flat) != self.sizes:
            raise InvalidValue(f"a release of {len(flat)} tensors must have the {len(self.sizes)} recorded sizes.")
        # An fp32 sum over 1e8 squares would be off by more than the test can tell apart, so squares are summed in
        # float64.
        squares = [float(torch.linalg.vector_norm(r, dtype=torch.float64)) ** 2 / deviation**2 for r in flat]
        probe = torch.cat([r[:n].float() for r, n in zip(flat, self.probe, strict=True)])
        return self.record(squares, probe, deviation)

    @torch.no_grad()
    def record(self, squares: Sequence[float], probe: Tensor, deviation: float) -> StepWitness:
        """Record one release of which the sums are known, as where it came in shards.

        Parameters
        ----------
        squares : sequence of float
            Sum of squares of each parameter, over ``deviation`` squared.
        probe : Tensor
            fp32: the leading coordinates of every parameter, as many as ``probe`` says, one after another.
        deviation : float
            As in :meth:`observe`.

        Returns
        -------
        StepWitness
            The numbers that were recorded of this release.

        Raises
        ------
        InvalidValue
            If ``deviation`` is not above 0.
        """
        validate.positive(deviation=deviation)
        parts = torch.split(probe, list(self.probe))
        # fp32 products are off by a millionth of their deviation and cost a tenth of fp64 ones, so they suffice.
        lagged = 0.0
        if self._before is not None:
            before, scale = self._before
            lagged = float(probe @ before) / (deviation * scale)
        near = 0.0
        for left, right in itertools.pairwise(parts):
            n = min(len(left), len(right))
            near += float(left[:n] @ right[:n])
        half = len(probe) // 2
        folded = float(probe[:half] @ probe[half : 2 * half])
        near, folded = near / deviation**2, folded / deviation**2
        probed = float(torch.linalg.vector_norm(probe, dtype=torch.float64)) ** 2 / deviation**2
        self._before = probe, deviation
        step = StepWitness(tuple(squares), probed, lagged, (near, folded))
        self._block_squares = [a + b for a, b in zip(self._block_squares, squares, strict=True)]
        self._rows.append((sum(squares), step.probe_squares, lagged, near, folded))
        return step

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; the release before a resume is not kept, so its product is not recorded.

        Parameters
        ----------
        state : mapping
            As :meth:`state` returned it.

        Raises
        ------
        InvalidValue
            If the state is of other parameters.
        """
        if tuple(state["blocks"]) != self.blocks or tuple(state["sizes"]) != self.sizes:
            raise InvalidValue("the recorded releases are those of other parameters; resume with the same model.")
        columns = zip(state["step_squares"], state["probe_squares"], state["lagged"], state["within"], strict=True)
        self._rows = [(s, p, g, w[0], w[1]) for s, p, g, w in columns]
        self._block_squares = list(state["block_squares"])
        self._before = None

    def state(self) -> dict[str, Any]:
        """Plain JSON value of everything recorded so far, by the names of the fields of ``auditing.ReleaseEnergy``."""
        return {
            "blocks": list(self.blocks),
            "sizes": list(self.sizes),
            "step_squares": [row[0] for row in self._rows],
            "block_squares": list(self._block_squares),
            "probe": list(self.probe),
            "probe_squares": [row[1] for row in self._rows],
            "lagged": [row[2] for row in self._rows],
            "within": [[row[3], row[4]] for row in self._rows],
        }

    def __len__(self) -> int:
        return len(self._rows)
