"""Adversarial records for a loop with one loss per record: record numbers above the data set's size scale a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpaudit.attacks.examiner.adapter import FACTORS, Role


class LossFactors:
    """Record numbers beyond the data set, each one of its records with a factor on the loss.

    Parameters
    ----------
    size : int
        Number of ordinary records.
    record : int, default=0
        The record whose loss is scaled.

    Examples
    --------
    >>> factors = LossFactors(60)
    >>> factors.records([3, 60])
    [3, 0]
    >>> factors.scale(torch.tensor([0.5, 2.0]), [3, 60])
    tensor([5.0000e-01, 2.0000e+03])
    """

    def __init__(self, size: int, record: int = 0) -> None:
        self.size, self.record = size, record
        self.adversaries: dict[str, int] = {role: size + place for place, role in enumerate(Role)}
        """Numbers by role, as adapters take them."""

    def records(self, indices: Sequence[int]) -> list[int]:
        """The data set's record behind every number.

        Parameters
        ----------
        indices : tuple of int
            Record numbers of the minibatch, ordinary or adversarial; may be empty.

        Returns
        -------
        list of int
            Numbers of the ordinary records that stand for them.
        """
        return [int(i) if i < self.size else self.record for i in indices]

    def scale(self, losses: Tensor, indices: Sequence[int]) -> Tensor:
        """Losses, (B,), times their factors; a factor of 1 is not multiplied in, so that nothing changes there.

        Parameters
        ----------
        losses : Tensor of shape (B,)
            One for each record of the minibatch.
        indices : tuple of int
            Record numbers of the minibatch, ordinary or adversarial; may be empty.

        Returns
        -------
        Tensor of shape (B,)
            Losses times the factors of adversarial records.
        """
        roles = {number: FACTORS[role] for role, number in self.adversaries.items()}
        factor = torch.tensor([roles.get(int(i), 1.0) for i in indices], dtype=losses.dtype, device=losses.device)
        return torch.where(factor == 1, losses, losses * factor)
