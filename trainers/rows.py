"""Check that a batch has exactly one loss for each record: a record with two losses would be clipped twice."""

from __future__ import annotations

from torch import Tensor

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal


def one_loss_per_record(losses: Tensor, *, records: int) -> Tensor:
    """Give the losses back if there is exactly one for each record, and refuse them otherwise.

    Clipping bounds what one LOSS adds to the sum. It bounds what one record adds only where a record has one loss: of
    a record in k rows the sum takes k clipped gradients, and a row of several records leaves all but one unbounded.

    Parameters
    ----------
    losses : Tensor of shape (B,)
        One loss for each row of the collated batch.
    records : int
        Records (units of privacy) that were collated.

    Returns
    -------
    Tensor of shape (B,)
        ``losses``, unchanged, for use in place: ``clipper.backward(one_loss_per_record(losses, records=len(drawn)))``.

    Raises
    ------
    InvalidValue
        If the losses are not a vector.
    PrivacyRefusal
        If their number is not that of the records.

    Examples
    --------
    >>> import torch
    >>> one_loss_per_record(torch.tensor([0.5, 0.25]), records=2)
    tensor([0.5000, 0.2500])
    """
    if losses.ndim != 1:
        raise InvalidValue(
            f"loss_fn returned shape {tuple(losses.shape)} and must return (B,), one loss for each of the"
            f" {records} examples; take the mean over each example's own tokens and not over the batch."
        )
    if len(losses) != records:
        raise PrivacyRefusal(f"{_counted(len(losses), records)}: {_cause(len(losses), records)}.")
    return losses


def _counted(losses: int, records: int) -> str:
    return f"{losses} losses for {records} records, where each record must have exactly one row and one loss"


def _cause(losses: int, records: int) -> str:
    if losses < records:
        return (
            "the collator packs or flattens several records into a row, or drops some; give every record a row of its"
            " own, without packing"
        )
    return (
        "the collator repeats rows or cuts a record into overflow windows, each of which would be clipped by itself;"
        " truncate each record to its maximal length, or make every window a record and state that unit of privacy"
    )
