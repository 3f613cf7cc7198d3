"""Batches of one record alone and of the same record among others, between which its loss may not differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One batch of several records.

    Parameters
    ----------
    what : str
        What changed around its records: "number", "content", "length", "order" or "copies".
    batch : object
        As the loss function takes it.
    rows : tuple of (int, int)
        (position in the batch, number of the record that stands there), for the rows to compare.
    size : int
        Records collated.
    side : str or None
        Where this composition pads, for the report.
    may_fail : bool
        Whether the composition is left out where the model cannot run it, since it takes one length alone, or none so
        short; so is every composition with a side.
    """

    what: str
    batch: Any
    rows: tuple[tuple[int, int], ...]
    size: int
    side: str | None = None
    may_fail: bool = False

    @property
    def optional(self) -> bool:
        """Whether the composition is left out where the model cannot run it."""
        return self.may_fail or self.side is not None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Generated records, alone and together.

    Parameters
    ----------
    alone : tuple
        The batch of each record by itself, by its number.
    compositions : tuple of Composition
        Empty where records are never collated together.
    whole : tuple of Composition
        Micro-batches over records 0 … n−1, whose clipped sum is replayed.
    without : tuple of tuple
        For each of those records, micro-batches of the others.
    twins : tuple of two batches
        Of one shape and other content.
    collated : bool
        Whether the records went through a collator.
    """

    alone: tuple[Any, ...]
    compositions: tuple[Composition, ...]
    whole: tuple[Composition, ...]
    without: tuple[tuple[Any, ...], ...]
    twins: tuple[Any, Any]
    collated: bool

    def map(self, change: Callable[[Any], Any]) -> Company:
        """The same company with every batch changed, as for moving it to a device."""

        def changed(parts: Sequence[Composition]) -> tuple[Composition, ...]:
            return tuple(dataclasses.replace(part, batch=change(part.batch)) for part in parts)

        return dataclasses.replace(
            self,
            alone=tuple(map(change, self.alone)),
            compositions=changed(self.compositions),
            whole=changed(self.whole),
            without=tuple(tuple(map(change, parts)) for parts in self.without),
            twins=(change(self.twins[0]), change(self.twins[1])),
        )


def company_of(
    records: Sequence[Any],
    others: Sequence[Any],
    collate: Callable[[list[Any]], Any],
    *,
    short: Sequence[Any] = (),
) -> Company:
    """Collate ``records`` alone, together, in other company, turned round, and beside copies of themselves.

    Parameters
    ----------
    records : sequence
        At least two; their lengths should differ where the collator takes that.
    others : sequence
        As many, each of the length of its counterpart and of other content.
    short : sequence
        Further records, of lengths at which collators may behave otherwise (drop a record, say); they meet each other
        in pairs, and all together. Where one of them cannot be collated alone they are left out.
    """
    short = _collatable(short, collate)
    everyone = [*records, *others, *short]
    count = len(records)

    def together(what: str, members: Sequence[int], side: str | None = None) -> Composition:
        batch = collate([everyone[i] for i in members])
        return Composition(what=what, batch=batch, rows=tuple(enumerate(members)), size=len(members), side=side)

    first = list(range(count))
    whole = together("length", first)
    compositions = [
        whole,
        together("content", [0, *range(count + 1, 2 * count)]),
        together("number", [0, count]),
        together("order", first[::-1]),
        together("copies", [0, 0, *first[1:]]),
    ]
    met = list(range(2 * count, len(everyone)))
    for members in [met[at : at + 2] for at in range(0, len(met) - 1, 2)] + ([met] if len(met) > 2 else []):
        compositions.append(dataclasses.replace(together("length", members), may_fail=True))
    rest = [[i for i in first if i != left] for left in first]
    return Company(
        alone=tuple(collate([record]) for record in everyone),
        compositions=tuple(compositions),
        whole=(whole,),
        without=tuple((collate([everyone[i] for i in members]),) for members in rest),
        twins=(whole.batch, collate(list(others))),
        collated=True,
    )


def _collatable(records: Sequence[Any], collate: Callable[[list[Any]], Any]) -> list[Any]:
    """The records, or none where the collator cannot take one of them."""
    try:
        for record in records:
            collate([record])
    except Exception:
        return []
    return list(records)


def apart_of(records: Sequence[Any], others: Sequence[Any], collate: Callable[[list[Any]], Any]) -> Company:
    """Like :func:`company_of` where each record is collated by itself, so that nothing can couple through a batch."""
    alone = [collate([record]) for record in (*records, *others)]
    count = len(records)
    parts = [Composition(what="number", batch=alone[i], rows=((0, i),), size=1) for i in range(count)]
    return Company(
        alone=tuple(alone),
        compositions=(),
        whole=tuple(parts),
        without=tuple(tuple(alone[i] for i in range(count) if i != left) for left in range(count)),
        twins=(alone[0], alone[count]),
        collated=True,
    )
