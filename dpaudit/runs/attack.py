"""What an attack is given: canaries of the secret file, or records of a table, as a model of their kind scores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpaudit.attacks.canaries.canary import CanarySet
from dpaudit.attacks.canaries.secret import is_secret, read_open
from dpaudit.attacks.records import class_numbers, tokenize_records
from dpaudit.attacks.scores.models import class_names, is_causal
from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.privacy.validate import name_some
from dpaudit.storage.records import read_kept, read_text_records
from dpaudit.storage.tables import format_of


def holds_secret(path: Path) -> bool:
    """Whether this is a secret canary file, whose token ids need no tokenizer."""
    return format_of(path) == "parquet" and is_secret(path)


def load_canaries(
    path: Path, tokenizer: Any, *, model: Path, max_length: int | None
) -> tuple[CanarySet, tuple[str, ...]]:
    """Canaries and ids from the secret file (columns of coins unread), or from a table of texts.

    Parameters
    ----------
    model : path
        Folder of the model that will score them: causal or a classifier, whose configuration names the classes.
    """
    causal = is_causal(model)
    if holds_secret(path):
        return _secret(path, causal, max_length)
    records = read_text_records(path)
    labels = None
    if not causal:
        label2id, classes = class_names(model)
        labels = class_numbers(records.ids, records.labels, label2id=label2id, classes=classes)
    found = tokenize_records(
        tokenizer, records.ids, records.texts, labels=labels, max_length=max_length, name=path.name
    )
    return found, records.ids


def refuse_overlap(population: CanarySet, canaries: CanarySet, name: str) -> None:
    """Refuse a population that holds records of the audit: it has to show what records outside it look like."""
    shared = set(population.texts) & set(canaries.texts)
    if shared:
        raise InvalidEvidence(
            f"population {name} holds {len(shared)} of the records that are attacked; give records outside the audit."
        )


def kept_columns(path: Path, ids: tuple[str, ...]) -> dict[str, list[Any]]:
    """Columns that the audit needs beside the scores (member, run, copies, pair), read once the scores are made.

    Of a secret canary file nothing is kept: scores are published, and its coins open the commitment last.
    """
    return {} if holds_secret(path) else read_kept(path, ids)


def _secret(path: Path, causal: bool, max_length: int | None) -> tuple[CanarySet, tuple[str, ...]]:
    canaries, ids = read_open(path)
    if causal != (canaries.labels is None):
        raise InvalidEvidence(
            f"{path} holds {canaries.kind} canaries, which a {'causal' if causal else 'classification'} model "
            "cannot be scored on; give the model that was trained with them."
        )
    long = [name for name, n in zip(ids, canaries.lengths, strict=True) if max_length and n > max_length]
    if long:
        raise InvalidEvidence(
            f"{len(long)} canaries are longer than max_length={max_length} tokens ({name_some(long)}); this is "
            "not the model that was trained with them, or they were truncated."
        )
    return canaries, ids
