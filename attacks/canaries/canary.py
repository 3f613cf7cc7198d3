"""The canary value: whole records with the positions that are scored, and what makes a set valid.

A canary is a whole record: its token ids are used as they are, never packed, truncated or tokenised again. Its text
(the tokenizer's decoding) exists for the opaque id only.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.canaries.coins import as_coins
from dpaudit.privacy.commitment import canary_id, canonical_json, commitment, manifest, sha256_bytes
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import integer_at_least, one_of

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
IGNORED = -100  # label that Hugging Face losses skip


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary: its text, token ids, scored positions and kind."""

    text: str
    input_ids: tuple[int, ...]
    positions: tuple[int, ...]
    kind: str
    label: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CanarySet:
    """m canaries as right-padded arrays.

    Attributes
    ----------
    texts : tuple of m unique str
        Decoded records; they enter the opaque ids and nothing else.
    input_ids : int64 array (m, L)
        Token ids, padded with 0 on the right.
    attention_mask : bool array (m, L)
        True where a token stands; a prefix of every row.
    score_mask : bool array (m, L)
        True where the token's loss is scored; never position 0, which a causal model does not predict. All False for
        classification, where the loss of ``labels`` is scored.
    kind : str
        Name of the generator.
    params : mapping
        The generator's public parameters (plain JSON values, no seed, no content).
    labels : int64 array (m,), optional
        Class label of each canary, for classification.
    others : int64 array (m,), optional
        Label that a canary has where its coin is 0. Such a canary is in the data whatever its coin: the coin replaces
        one record by another, which is what replace_one is about. Without it a canary whose coin is 0 is left out.
    """

    texts: tuple[str, ...]
    input_ids: IntArray
    attention_mask: BoolArray
    score_mask: BoolArray
    kind: str
    params: Mapping[str, Any] = field(default_factory=dict)
    labels: IntArray | None = None
    others: IntArray | None = None

    def __post_init__(self) -> None:
        m = len(self.texts)
        if m < 1:
            raise InvalidValue("a canary set has 0 canaries and needs at least 1; raise m.")
        shape = self.input_ids.shape
        if len(shape) != 2 or shape[0] != m or self.attention_mask.shape != shape or self.score_mask.shape != shape:
            raise InvalidValue(
                f"input_ids {shape}, attention_mask {self.attention_mask.shape} and score_mask "
                f"{self.score_mask.shape} must all have shape (m={m}, L)."
            )
        repeated = [text for text, count in Counter(self.texts).items() if count > 1]
        if repeated:
            raise InvalidValue(
                f"{len(repeated)} canary texts occur more than once (first: {repeated[0]!r}) and all must be unique; "
                "draw again or lengthen the secret part."
            )
        if (self.attention_mask[:, 1:] & ~self.attention_mask[:, :-1]).any() or not self.attention_mask[:, 0].all():
            raise InvalidValue("attention_mask must be a non-empty prefix of every row: pad canaries on the right.")
        if (self.score_mask & ~self.attention_mask).any() or self.score_mask[:, 0].any():
            raise InvalidValue("score_mask marks padding or position 0, which no model predicts; score later tokens.")
        if self.labels is None and not self.score_mask.any(axis=1).all():
            raise InvalidValue(
                f"canary {int(np.argmin(self.score_mask.any(axis=1)))} has no scored position and no label; "
                "mark at least one token of its secret part."
            )
        if self.labels is not None and self.labels.shape != (m,):
            raise InvalidValue(f"labels have shape {self.labels.shape} and must have shape ({m},).")
        if self.others is not None:
            if self.labels is None or self.others.shape != (m,) or (self.others == self.labels).any():
                raise InvalidValue("others needs labels, and another label for each of them; give two for each canary.")
        for array in (self.input_ids, self.attention_mask, self.score_mask, self.labels, self.others):
            if array is not None:
                array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Canary:
        length = int(self.attention_mask[index].sum())
        return Canary(
            text=self.texts[index],
            input_ids=tuple(int(t) for t in self.input_ids[index, :length]),
            positions=tuple(int(p) for p in np.flatnonzero(self.score_mask[index])),
            kind=self.kind,
            label=None if self.labels is None else int(self.labels[index]),
        )

    @property
    def lengths(self) -> IntArray:
        """Number of tokens of each canary, shape (m,)."""
        return np.asarray(self.attention_mask.sum(axis=1), dtype=np.int64)

    @property
    def generator(self) -> dict[str, Any]:
        """How the canaries were made, without their contents: safe to publish."""
        return {"version": 1, "kind": self.kind, "m": len(self), "params": dict(self.params)}

    @property
    def generator_digest(self) -> str:
        """SHA-256 of :attr:`generator`, hexadecimal: safe to publish."""
        return sha256_bytes(canonical_json(self.generator))

    @property
    def digest(self) -> str:
        """SHA-256 of contents and generator, hexadecimal. Private: a short secret could be guessed from it."""
        hasher = hashlib.sha256(canonical_json(self.generator))
        for array in (self.lengths, self.input_ids, self.score_mask, self.labels, self.others):
            hasher.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return hasher.hexdigest()

    def take(self, rows: Sequence[int] | IntArray) -> CanarySet:
        """The canaries at these rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return CanarySet(
            texts=tuple(self.texts[i] for i in index),
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            score_mask=self.score_mask[index],
            kind=self.kind,
            params=self.params,
            labels=None if self.labels is None else self.labels[index],
            others=None if self.others is None else self.others[index],
        )

    def joined(self, other: CanarySet) -> CanarySet:
        """These canaries and others of the same generator, in one set."""
        sets = (self, other)
        return from_rows(
            [text for part in sets for text in part.texts],
            [part.input_ids[i, : int(n)].tolist() for part in sets for i, n in enumerate(part.lengths)],
            [np.flatnonzero(row).tolist() for part in sets for row in part.score_mask],
            kind=self.kind,
            params=self.params,
            labels=None if self.labels is None or other.labels is None else [*self.labels, *other.labels],
        )

    def present(self, coins: object) -> IntArray:
        """Positions of the canaries that stand in the data, ascending: those whose coin is 1, or all (``others``)."""
        flips = as_coins(coins, len(self))
        return np.flatnonzero(flips if self.others is None else np.ones(len(self)))


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[IntArray, BoolArray]:
    """Token ids (m, L) padded with 0 on the right, and where a token stands."""
    width = max((len(row) for row in rows), default=0)
    ids, attention = np.zeros((len(rows), width), dtype=np.int64), np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], attention[i, : len(row)] = row, True
    return ids, attention


def from_rows(
    texts: Sequence[str],
    rows: Sequence[Sequence[int]],
    scored: Sequence[Sequence[int]],
    *,
    kind: str,
    params: Mapping[str, Any],
    labels: Sequence[int] | None = None,
    others: Sequence[int] | None = None,
) -> CanarySet:
    """Build a set from ragged token ids and scored positions."""
    ids, attention = pad_rows(rows)
    score = np.zeros(ids.shape, dtype=bool)
    for i, positions in enumerate(scored):
        score[i, list(positions)] = True
    return CanarySet(
        texts=tuple(texts),
        input_ids=ids,
        attention_mask=attention,
        score_mask=score,
        kind=kind,
        params=params,
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
        others=None if others is None else np.asarray(others, dtype=np.int64),
    )


def refuse_truncation(lengths: IntArray | Sequence[int], max_length: int | None, names: Sequence[str]) -> None:
    """Refuse records longer than ``max_length``, by name: a truncated canary was never inserted."""
    if max_length is None:
        return
    long = np.flatnonzero(np.asarray(lengths) > max_length)
    if long.size:
        shown = ", ".join(str(names[i]) for i in long[:5]) + (", …" if long.size > 5 else "")
        raise InvalidValue(
            f"{long.size} canaries are longer than max_length={max_length} tokens and would be truncated ({shown}); "
            "shorten them or raise max_length."
        )


class Committed(NamedTuple):
    """Opaque ids in canary order, the secret manifest, and the public digest; from :func:`commit`."""

    ids: tuple[str, ...]
    manifest: dict[str, Any]
    commitment: str


def commit(canaries: CanarySet, coins: object, nonce: bytes, copies: int) -> Committed:
    """Bind canaries and coins before training.

    Parameters
    ----------
    canaries : CanarySet
        m canaries.
    coins : array (m,) of 0/1
        1 = inserted.
    nonce : bytes
        32 secret bytes, from ``draw_nonce``.
    copies : int
        How often an inserted canary stands in the data; k copies test the group-k claim.

    Returns
    -------
    Committed
        ``ids`` (HMAC of the texts), ``manifest`` (secret: it holds the coins), ``commitment`` (to publish).
    """
    integer_at_least(1, copies=copies)
    flips = as_coins(coins, len(canaries))
    ids = tuple(canary_id(nonce, text) for text in canaries.texts)
    listed = manifest(ids, [int(c) for c in flips], copies)
    return Committed(ids, listed, commitment(nonce, listed))


def inserted(canaries: CanarySet, coins: object, copies: int, *, supervise: str = "all") -> list[dict[str, Any]]:
    """Records to add to the private training set: the canaries that their coins put there, ``copies`` times each.

    A canary whose coin is 0 is left out, or has its other label where it has one.

    Parameters
    ----------
    canaries : CanarySet
    coins : array (m,) of 0/1
    copies : int
        At least 1.
    supervise : {"all", "scored"}
        For causal models, the tokens whose loss is trained: all, as for a real record, or only the scored ones
        (other labels are -100). Ignored for classification.

    Returns
    -------
    list of dict
        ``input_ids``, ``attention_mask`` (lists of int) and ``labels`` (list of int, or the class as an int).
    """
    integer_at_least(1, copies=copies)
    one_of(("all", "scored"), supervise=supervise)
    records, flips = [], as_coins(coins, len(canaries))
    for i in canaries.present(coins):
        length = int(canaries.attention_mask[i].sum())
        ids = canaries.input_ids[i, :length].tolist()
        labels: Any
        if canaries.labels is not None:
            labels = int(canaries.labels[i] if canaries.others is None or flips[i] else canaries.others[i])
        elif supervise == "all":
            labels = list(ids)
        else:
            labels = np.where(canaries.score_mask[i, :length], canaries.input_ids[i, :length], IGNORED).tolist()
        for _ in range(copies):
            records.append({"input_ids": list(ids), "attention_mask": [1] * length, "labels": labels})
    return records
