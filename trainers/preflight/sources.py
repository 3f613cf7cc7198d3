"""Where the preflight's records come from: a data set's form through its collator, or a batch's schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import DpauditError, InvalidValue, PrivacyRefusal
from dpaudit.trainers.preflight.company import Company, apart_of, company_of
from dpaudit.trainers.preflight.made import CannotMake, Maker, positions, ranges_to_try
from dpaudit.trainers.preflight.randomness import still_randomness
from dpaudit.trainers.preflight.schema import schema_company

_SHORT, _LONG = 8, 20
"""Lengths of made-up records; a data set of records that all have one length keeps its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class CollatedRecords:
    """Records and the collator that makes batches of them.

    Parameters
    ----------
    records : sequence
        At least one. Of the first two, the keys, types and lengths are read, and records of that form made up.
    collate : callable
        List of records to a batch.
    physical_batch_size : int
        Records that are collated together at most; with 1 no record ever meets another.
    made_up : bool, default=False
        The records are made up already, hold nobody's data, and are used as they are; at least two.
    """

    records: Sequence[Any]
    collate: Callable[[list[Any]], Any]
    physical_batch_size: int = 16
    made_up: bool = False

    def batch(self, rows: list[Any]) -> Any:
        """Collate with every random number held still, so that a random mask hides no coupling."""
        with still_randomness():
            return self.collate(rows)


Try = Callable[[Any], Tensor]
"""Losses of a batch."""


def company_for(
    source: Any,
    model: nn.Module,
    losses: Try,
    *,
    size: int,
    padding: str | None,
    private: bool,
    rng: torch.Generator,
) -> Company:
    """Generated records of a source, alone and in company, that the loss can be evaluated on.

    Raises
    ------
    InvalidValue
        If it can be evaluated on none; names the last failure and what to give instead.
    """
    failure: Exception | None = None
    if isinstance(source, CollatedRecords):
        if source.made_up or private:
            return _as_they_are(source, size)
        try:
            found, failure = _made_up(source, model, losses, size=size, rng=rng)
        except CannotMake as error:
            found, failure = None, error
        if found is not None:
            return found
        source = source.batch([source.records[0], source.records[min(1, len(source.records) - 1)]])
    for ranges in ranges_to_try(model):
        if ranges.once is not None:
            break  # a batch's schema tells no token of another
        company = schema_company(source, model, ranges, size=size, rng=rng, padding=padding, private=private)
        failure = _failure(company, losses)
        if failure is None or private:
            return company
    raise InvalidValue(
        f"no records could be made up for this loss ({_said(failure)}); give made-up records of your own, as"
        " CollatedRecords(records, collate, made_up=True) or train(..., preflight=records)."
    ) from failure


def _made_up(
    source: CollatedRecords, model: nn.Module, losses: Try, *, size: int, rng: torch.Generator
) -> tuple[Company | None, Exception | None]:
    """The first form of records that collator and loss take: lengths that vary as much as they can, wide ranges."""
    one, two = source.records[0], source.records[min(1, len(source.records) - 1)]
    failure: Exception | None = None
    for vary, most in (("all", _LONG), ("all", 0), ("tokens", _LONG), ("tokens", 0), ("none", 0)):
        for ranges in ranges_to_try(model):
            maker = Maker(one, two, ranges=ranges, vary=vary, generator=rng)
            if most == _LONG <= maker.length:
                continue  # the same lengths come next
            try:
                with torch.no_grad():
                    # A loss that cannot run at all fails here, before the many batches that follow.
                    losses(source.batch([maker.make()]))
                company = _collated(source, maker, min(positions(model), max(most, maker.length)), size)
            except (CannotMake, PrivacyRefusal):
                raise
            except Exception as error:
                failure = error
                continue
            failure = _failure(company, losses)
            if failure is None:
                return company, None
    return None, failure


def _collated(source: CollatedRecords, maker: Maker, longest: int, size: int) -> Company:
    short = max(1, min(_SHORT, longest // 2))
    lengths = [short, min(longest, max(2 * short, _LONG)), max(1, short // 2), short]
    wanted = [lengths[i % len(lengths)] for i in range(size)]
    records, others = [maker.make(n) for n in wanted], [maker.make(n) for n in wanted]
    if source.physical_batch_size == 1:
        return apart_of(records, others, source.batch)
    own = min(longest, maker.length)
    brief = [] if maker.one_length else [maker.make(n) for n in (own, own, 1, 2)]
    return company_of(records, others, source.batch, short=brief)


def _as_they_are(source: CollatedRecords, size: int) -> Company:
    records = [source.records[i] for i in range(min(len(source.records), 2 * size))]
    if len(records) < 2:
        raise InvalidValue(f"{len(records)} record cannot show a coupling; give at least 2.")
    half = min(size, max(2, len(records) // 2))
    others = (records[half:] + records[::-1])[:half]
    together = apart_of if source.physical_batch_size == 1 else company_of
    return together(records[:half], others, source.batch)


def _failure(company: Company, losses: Try) -> Exception | None:
    """What goes wrong when the loss is evaluated on ordinary batches, other than a refusal."""
    needed = [part.batch for part in company.whole[:1]] + [company.twins[1], company.alone[0]]
    for batch in needed:
        try:
            with torch.no_grad():
                losses(batch)
        except PrivacyRefusal:
            raise
        except Exception as error:
            return error
    return None


def _said(error: Exception | None) -> str:
    if error is None:
        return "no form fits"
    if isinstance(error, DpauditError):
        return str(error).rstrip(".")
    line = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    return f"{type(error).__name__}: {line[:160]}" if line else type(error).__name__
