"""Turn text records into canaries: whole, distinct once tokenised, scored on their tokens or on their label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpaudit.attacks.canaries.canary import CanarySet, from_rows
from dpaudit.attacks.scores.functions import FloatArray
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.validate import integer_at_least, name_some


def refuse_repeats(ids: Sequence[str], contents: Sequence[object], where: str) -> None:
    """Refuse records of equal content under different ids."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name, content in zip(ids, contents, strict=True):
        groups[content].append(name)
    same = [group for group in groups.values() if len(group) > 1]
    if same:
        raise InvalidEvidence(
            f"{where} holds {len(same)} records under more than one id (first: {name_some(same[0])}); deduplication "
            "would lose all but one, so keep one id each."
        )


def tokenize_records(
    tokenizer: Any,
    ids: Sequence[str],
    texts: Sequence[str],
    *,
    labels: Sequence[int] | None = None,
    max_length: int | None,
    name: str = "the file",
) -> CanarySet:
    """Whole records as token ids, scored on every token but the first, or on the label where labels are given.

    Parameters
    ----------
    ids, texts : sequences of str, length n
        Unique ids, and one text for each.
    labels : sequence of int, length n, optional
        Class numbers, for a classifier.
    max_length : int or None
        Tokens of a record in the training run.
    name : str
        Of the file, for messages.

    Raises
    ------
    InvalidEvidence
        A text occurs twice, or a record is longer than ``max_length`` and would be truncated, is too short to score, or
        equals another one once tokenised; each by id.
    """
    refuse_repeats(ids, texts, name)
    rows = [[int(t) for t in tokenizer(text, truncation=False)["input_ids"]] for text in texts]
    if max_length is not None:
        integer_at_least(1, max_length=max_length)
        long = [name for name, row in zip(ids, rows, strict=True) if len(row) > max_length]
        if long:
            raise InvalidEvidence(
                f"{len(long)} records are longer than max_length={max_length} tokens and would be truncated "
                f"({name_some(long)}); a truncated record was never trained on, so remove them or raise max_length."
            )
    causal = labels is None
    shortest = 2 if causal else 1
    short = [name for name, row in zip(ids, rows, strict=True) if len(row) < shortest]
    if short:
        raise InvalidEvidence(
            f"{len(short)} records have fewer than {shortest} tokens ({name_some(short)}) and nothing to score; "
            "remove them."
        )
    refuse_repeats(ids, [tuple(row) for row in rows], f"{name}, once tokenised,")
    scored = [range(1, len(row)) if causal else () for row in rows]
    return from_rows(texts, rows, scored, kind="records", params={}, labels=labels)


def class_numbers(
    ids: Sequence[str], labels: Sequence[str] | None, *, label2id: Mapping[str, int], classes: int
) -> list[int]:
    """Labels as a model's class numbers: by the names in its configuration, or numbers as they are.

    Raises
    ------
    InvalidEvidence
        There are no labels, or one names no class of the model; by id.
    """
    if labels is None:
        raise InvalidEvidence(
            "a classifier is attacked through its labels and the records have no column label; add it."
        )
    numbers = [label2id.get(label, int(label) if _is_number(label) else -1) for label in labels]
    if bad := [f"{i}: {label!r}" for i, label, n in zip(ids, labels, numbers, strict=True) if not 0 <= n < classes]:
        raise InvalidEvidence(
            f"{len(bad)} labels name no class of the model ({name_some(bad)}); give one of its {classes} names"
            f" ({name_some(list(label2id))}) or a number from 0 to {classes - 1}."
        )
    return numbers


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) < 10


def join(ids: Sequence[str], values: dict[str, float], where: str) -> FloatArray:
    """Values in the order of ids; every id must occur on both sides."""
    lost, unknown = [i for i in ids if i not in values], sorted(set(values) - set(ids))
    if lost or unknown:
        raise InvalidEvidence(
            f"{where} cannot be joined: {len(lost)} ids are missing from it ({name_some(lost) or 'none'}) and "
            f"{len(unknown)} are unknown ({name_some(unknown) or 'none'}); both files must hold the same ids."
        )
    return np.array([values[i] for i in ids])
