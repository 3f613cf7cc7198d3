"""An attack on a model: canaries of the secret file, or records of a table, in; scores out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.canaries.canary import CanarySet
from dpaudit.attacks.canaries.secret import is_secret, read_open
from dpaudit.attacks.records import class_numbers, join, tokenize_records
from dpaudit.attacks.scores.functions import loss_drop_scores, residual_scores
from dpaudit.attacks.scores.models import class_names, is_causal, load_model, load_tokenizer, longest_record, perturb
from dpaudit.attacks.scores.score_model import score_model
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import name_some
from dpaudit.runs.progress import quiet_transformers
from dpaudit.storage.records import check_out, read_ids, read_kept, read_text_records, read_values, write_scores
from dpaudit.storage.tables import format_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttackOptions:
    """What an attack compares with, and how it reads records.

    Attributes
    ----------
    base : path, optional
        Model before fine-tuning, for loss-drop, loss-residual and grad-norm.
    references : tuple of paths
        Models that were never trained on these records, for lira-offline and rmia-offline.
    reference_losses : path, optional
        Table id, loss of a reference model, instead of ``base``.
    population : path, optional
        Records outside the audit, for rmia-offline.
    masked_model : path, optional
        Masked language model that makes the neighbours, for neighbourhood.
    neighbours : int, default=25
        Neighbours for each record.
    expect : path, optional
        Table with the ids that must all be there, and no others.
    max_length : int, optional
        Record length of the training run, in tokens.
    k : float, default=0.2
        Share of tokens of min-k and min-k++.
    offline_a : float, default=0.3
        RMIA's a, in [0, 1].
    batch_size : int, default=64
        Records in one pass.
    device : str, optional
        Torch device; cuda where there is one.
    """

    base: Path | None = None
    references: tuple[Path, ...] = ()
    reference_losses: Path | None = None
    population: Path | None = None
    masked_model: Path | None = None
    neighbours: int = 25
    expect: Path | None = None
    max_length: int | None = None
    k: float = 0.2
    offline_a: float = 0.3
    batch_size: int = 64
    device: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttackScores:
    """Scores that one attack gave; higher = member.

    Attributes
    ----------
    attack : str
        Name of the attack.
    ids : tuple of str, length m
    scores : float64 array (m,)
    kind : str
        Kind of the canaries, such as ``new-token`` or ``records``.
    kept : tuple of str
        Columns of the table that were copied beside the scores for the audit.
    out : Path
        The file that holds them.
    """

    attack: str
    ids: tuple[str, ...]
    scores: NDArray[np.float64] = dataclasses.field(repr=False)
    kind: str
    kept: tuple[str, ...]
    out: Path

    @property
    def tied(self) -> int:
        """Scores that equal another one."""
        return len(self.ids) - len(set(self.scores.tolist()))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.attack/1``; it holds no single score."""
        values = self.scores
        return {
            "schema": "dpaudit.attack/1",
            "attack": self.attack,
            "m": len(self.ids),
            "kind": self.kind,
            "tied": self.tied,
            "score": {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())},
            "kept": list(self.kept),
            "out": str(self.out),
        }

    def __str__(self) -> str:
        values = self.scores
        return (
            f"{len(self.ids)} scores by {self.attack} (higher = member), {values.min():.4g} to {values.max():.4g}, "
            f"{self.tied} tied; written to {self.out}" + (f" with {', '.join(self.kept)}" if self.kept else "")
        )


def attack(
    model: str | Path,
    canaries: str | Path,
    *,
    out: str | Path,
    attack: str | None = None,
    options: AttackOptions | None = None,
) -> AttackScores:
    """Score canaries or records under a model; higher = member. Coins are never read.

    Parameters
    ----------
    model : path
        Folder of the model that was released.
    canaries : path
        The secret canary file, or a table id, text[, label] (CSV, JSONL, Parquet).
    out : path
        Where the scores go, ``.parquet`` or ``.csv``: id, score, attack, and the columns that an audit needs.
    attack : str, optional
        One attack: loss-drop where there is something to compare with, else loss. Choosing among attacks after looking
        at the coins is what audits must not do.
    options : AttackOptions, optional

    Returns
    -------
    AttackScores

    Raises
    ------
    InvalidValue, InvalidEvidence
        When options contradict each other, or a file or model cannot be used; nothing is written then.
    """
    quiet_transformers()
    chosen, target, source, file = options or AttackOptions(), Path(model), Path(canaries), Path(out)
    check_out(file)
    name = _name(attack, chosen)
    for folder in (target, *([chosen.base] if chosen.base else []), *chosen.references):
        is_causal(folder)  # a folder of another kind, or none, is refused before anything is loaded
    needed = chosen.population is not None or chosen.masked_model is not None or not holds_secret(source)
    tokenizer = load_tokenizer(target, needed=needed)
    limit = longest_record(target, tokenizer, chosen.max_length)
    found, ids = load_canaries(source, tokenizer, model=target, max_length=limit)
    if chosen.expect is not None:
        join(ids, dict.fromkeys(read_ids(chosen.expect), 0.0), str(chosen.expect))
    loaded = load_model(target, device=chosen.device)
    if chosen.reference_losses is not None:
        drop = join(ids, read_values(chosen.reference_losses, "loss"), str(chosen.reference_losses))
        own = -score_model(loaded, found, attack="loss", batch_size=chosen.batch_size)
        scores = loss_drop_scores(own, drop) if name == "loss-drop" else residual_scores(own, drop)
    else:
        scores = _against_models(loaded, found, name, chosen, tokenizer, model=target, limit=limit)
    kept = kept_columns(source, ids)
    write_scores(file, ids, scores, name, kept)
    return AttackScores(attack=name, ids=ids, scores=scores, kind=found.kind, kept=tuple(kept), out=file)


def _name(attack: str | None, options: AttackOptions) -> str:
    """The attack's name, once its options are known to fit it."""
    if options.base is not None and options.reference_losses is not None:
        raise InvalidValue("base and reference-losses both name what losses are compared with; give one.")
    compared = options.base is not None or options.reference_losses is not None
    name = attack or ("loss-drop" if compared else "loss")
    if options.reference_losses is not None and name not in ("loss-drop", "loss-residual"):
        raise InvalidValue(f"attack={name} does not use reference-losses; leave it out or take loss-drop.")
    if name == "neighbourhood" and options.masked_model is None:
        raise InvalidValue("attack=neighbourhood perturbs texts with a masked language model; give --masked-model.")
    return name


def _against_models(
    loaded: Any,
    canaries: CanarySet,
    name: str,
    options: AttackOptions,
    tokenizer: Any,
    *,
    model: Path,
    limit: int | None,
) -> NDArray[np.float64]:
    others: Any = None
    if options.population is not None:
        others, _ = load_canaries(options.population, tokenizer, model=model, max_length=limit)
        refuse_overlap(others, canaries, options.population.name)
    around: list[list[list[int]]] = []
    if name == "neighbourhood" and options.masked_model is not None:
        filled = perturb(options.masked_model, canaries.texts, n=options.neighbours, device=options.device)
        around = [tokenizer(row, truncation=limit is not None, max_length=limit)["input_ids"] for row in filled]
    return score_model(
        loaded,
        canaries,
        attack=name,
        base=None if options.base is None else load_model(options.base, device=options.device),
        references=[load_model(path, device=options.device) for path in options.references],
        population=others,
        neighbours=around,
        k=options.k,
        offline_a=options.offline_a,
        batch_size=options.batch_size,
    )


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
