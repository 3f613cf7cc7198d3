"""Preference pairs: a prompt with a chosen and a rejected answer is one record of two rows, clipped as one.

The losses are those of direct preference optimisation (Rafailov et al., 2305.18290), IPO (Azar et al., 2310.12036) and
the hinge of SLiC (Zhao et al., 2305.10425). Rows are interleaved (chosen, rejected, chosen, rejected, ...), so that
``GhostClipping(group=2)`` finds the two rows of a pair beside each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit.privacy import validate
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers.ghost.head import IGNORED
from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.tasks.losses import next_token_losses
from dpaudit.trainers.tasks.padding import shifted_targets, starting_left

PAIR = 2
"""Rows of one preference pair."""
LOSSES = ("sigmoid", "ipo", "hinge")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""Columns of the reference model's log-probabilities, by the names that TRL gives them."""
_COUPLED = {
    "aot": "sorts the margins over the batch",
    "aot_unpaired": "sorts the margins over the batch",
    "aot_pair": "sorts the margins over the batch",
    "bco_pair": "subtracts a running mean of the batch's rewards",
    "kto": "subtracts an estimate over the batch",
    "kto_pair": "subtracts an estimate over the batch",
}


def answer_logps(model: nn.Module, batch: Mapping[str, Any], *, mean: bool = False) -> Tensor:
    """(2B,) log-probabilities of the rows' labelled tokens, or their means over each row's own tokens.

    Parameters
    ----------
    batch : mapping
        ``input_ids``, ``attention_mask`` and ``labels`` (2B, T), -100 on prompts and padding.
    """
    inputs = {k: v for k, v in batch.items() if k not in REFERENCE}
    losses = next_token_losses(model, inputs)
    if mean:
        return -losses
    moved = starting_left(inputs)
    counted = (shifted_targets(moved["labels"], moved.get("attention_mask")) != IGNORED).sum(1)
    return -losses * counted


def dpo_losses(model: nn.Module, batch: Mapping[str, Any], *, beta: float = 0.1, loss_type: str = "sigmoid") -> Tensor:
    """(B,) losses of preference pairs, each a function of its own pair.

    Parameters
    ----------
    model : nn.Module
        A causal language model.
    batch : mapping
        Interleaved rows as :class:`PreferenceCollator` makes them, and the reference model's log-probabilities of both
        answers, ``ref_chosen_logps`` and ``ref_rejected_logps`` (B,), computed beforehand.
    beta : float
        β > 0, strength of the pull to the reference.
    loss_type : str
        "sigmoid" (DPO), "ipo" or "hinge".

    Raises
    ------
    PrivacyRefusal
        For a loss that joins pairs (they are named), or a model whose router adds a loss over the batch.
    """
    validate.positive(beta=beta)
    if loss_type in _COUPLED:
        raise PrivacyRefusal(
            f"loss_type={loss_type!r} {_COUPLED[loss_type]}, so that one pair moves the loss of another; use one of"
            f" {', '.join(LOSSES)}."
        )
    validate.one_of(LOSSES, loss_type=loss_type)
    _refuse_router(model)
    if any(name not in batch for name in REFERENCE):
        raise InvalidValue(
            f"the batch has no {REFERENCE[0]} and {REFERENCE[1]}; compute them once, by with_reference_logps, before"
            " the weights move."
        )
    logps = answer_logps(model, batch, mean=loss_type == "ipo")
    if len(logps) != PAIR * len(batch[REFERENCE[0]]):
        raise InvalidValue(
            f"{len(logps)} rows stand against {len(batch[REFERENCE[0]])} pairs; give the rows interleaved, a chosen and"
            " a rejected answer for each pair."
        )
    reference = batch[REFERENCE[0]] - batch[REFERENCE[1]]
    margin: Tensor = logps[0::PAIR] - logps[1::PAIR] - reference.to(logps.dtype)
    if loss_type == "ipo":
        return (margin - 1 / (2 * beta)).square()
    if loss_type == "hinge":
        return F.relu(1 - beta * margin)
    return -F.logsigmoid(beta * margin)


class PreferenceCollator:
    """Pads tokenised pairs to interleaved rows: chosen, rejected, chosen, rejected, ...

    Parameters
    ----------
    pad : int
        Token id of the padding.
    """

    def __init__(self, pad: int = 0) -> None:
        self.pad = pad

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """(2B, T) rows, and the references (B,) where the records have them."""
        rows = []
        for record in records:
            prompt = list(record["prompt_ids"])
            rows += [(prompt, list(record["chosen_ids"])), (prompt, list(record["rejected_ids"]))]
        width = max([1, *(len(prompt) + len(answer) for prompt, answer in rows)])
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
        for at, (prompt, answer) in enumerate(rows):
            whole = torch.tensor([*prompt, *answer], dtype=torch.long)
            ids[at, : len(whole)], mask[at, : len(whole)] = whole, 1
            labels[at, len(prompt) : len(whole)] = whole[len(prompt) :]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if records and all(name in record for record in records for name in REFERENCE):
            batch |= {name: torch.tensor([float(record[name]) for record in records]) for name in REFERENCE}
        return batch


def preference_records(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, max_length: int, keep: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Token ids of rows with the texts ``prompt``, ``chosen`` and ``rejected``, an end-of-text token after each answer.

    Where a pair is longer than ``max_length``, its prompt loses its beginning and then an answer its end: a function of
    the pair alone. Without a prompt, or with an empty one, the answer follows an end-of-text token.

    Parameters
    ----------
    keep : names
        Columns that stay, such as the unit of privacy.
    """
    validate.integer_at_least(3, max_length=max_length)
    end = tokenizer.eos_token_id
    found = []
    for place, row in enumerate(rows):
        for name in ("chosen", "rejected"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise InvalidValue(
                    f"pair {place} has {str(row.get(name))[:40]!r} in {name!r}, where a text must be; conversations"
                    " need their template applied first."
                )
        texts = [str(row.get("prompt") or ""), row["chosen"], row["rejected"]]
        prompt, *answers = (list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
        answers = [[*answer, end][: max_length - 1] for answer in answers]
        room = max_length - max(map(len, answers))
        prompt = (prompt or [end])[-room:]
        found.append(
            {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}
            | {name: row[name] for name in keep}
        )
    return found


def with_reference_logps(
    model: nn.Module,
    records: Sequence[Mapping[str, Any]],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    loss_type: str = "sigmoid",
    batch_size: int = 8,
) -> list[dict[str, Any]]:
    """The records with the model's own log-probabilities of both answers: the reference, before its weights move.

    Adapters of PEFT are switched off, and so is dropout. Pairs are evaluated in batches; nothing of one enters another.
    """
    off = model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()  # type: ignore[operator]
    with off:
        found = _pair_logps(model, records, collate=collate, loss_type=loss_type, batch_size=batch_size)
    return [{**record, **dict(zip(REFERENCE, pair, strict=True))} for record, pair in zip(records, found, strict=True)]


def reward_accuracy(
    model: nn.Module,
    records: Sequence[Mapping[str, Any]],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    loss_type: str = "sigmoid",
    batch_size: int = 8,
) -> float:
    """Share of PUBLIC pairs of which the chosen answer gained more over the reference than the other; ties count half.

    Parameters
    ----------
    records : sequence of mapping
        With the reference's log-probabilities, as ``with_reference_logps`` returns them.
    """
    right = 0.0
    found = _pair_logps(model, records, collate=collate, loss_type=loss_type, batch_size=batch_size)
    for before, now in zip(records, found, strict=True):
        chosen, rejected = (after - before[name] for after, name in zip(now, REFERENCE, strict=True))
        right += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
    return right / max(1, len(found))


@torch.no_grad()
def _pair_logps(
    model: nn.Module,
    records: Sequence[Mapping[str, Any]],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    loss_type: str,
    batch_size: int,
) -> list[tuple[float, float]]:
    """Log-probabilities of the chosen and the rejected answer of each pair, in evaluation mode."""
    validate.integer_at_least(1, batch_size=batch_size)
    device = next(model.parameters()).device
    found: list[float] = []
    with evaluating(model):
        for at in range(0, len(records), batch_size):
            part = [records[i] for i in range(at, min(at + batch_size, len(records)))]
            batch = {k: v.to(device) for k, v in collate(part).items() if k not in REFERENCE}
            found += answer_logps(model, batch, mean=loss_type == "ipo").double().tolist()
    return list(zip(found[0::PAIR], found[1::PAIR], strict=True))


def _refuse_router(model: nn.Module) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "output_router_logits", False):
        raise PrivacyRefusal(
            "output_router_logits=True adds a load-balancing loss over the whole batch, which joins pairs; set"
            " model.config.output_router_logits=False."
        )
