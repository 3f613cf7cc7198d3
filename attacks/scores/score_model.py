"""One attack on one model: from a model and its canaries to scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dpaudit.attacks.canaries.canary import IGNORED, CanarySet, pad_rows
from dpaudit.attacks.scores.functions import (
    FloatArray,
    gradient_norm_scores,
    logit_confidence,
    loss_drop_scores,
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    neighbourhood_scores,
    residual_scores,
    zlib_scores,
)
from dpaudit.attacks.scores.losses import canary_losses, sequence_losses, token_statistics
from dpaudit.attacks.scores.shadow import ShadowSignals, lira_offline_scores, rmia_scores
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import one_of


@dataclass(frozen=True, slots=True)
class Needs:
    """What an attack needs beside the target model and the canaries."""

    base: bool = False
    references: int = 0
    population: bool = False
    causal: bool = False
    neighbours: bool = False


ATTACKS: dict[str, Needs] = {
    "loss": Needs(),
    "loss-drop": Needs(base=True),
    "loss-residual": Needs(base=True),
    "neighbourhood": Needs(causal=True, neighbours=True),
    "zlib": Needs(),
    "min-k": Needs(causal=True),
    "min-k++": Needs(causal=True),
    "grad-norm": Needs(),
    "lira-offline": Needs(references=2),
    "rmia-offline": Needs(references=1, population=True),
}


def score_model(
    model: Any,
    canaries: CanarySet,
    *,
    attack: str,
    base: Any = None,
    references: Sequence[Any] = (),
    population: CanarySet | None = None,
    neighbours: Sequence[Sequence[Sequence[int]]] = (),
    k: float = 0.2,
    offline_a: float = 0.3,
    batch_size: int = 64,
) -> FloatArray:
    """Scores (m,) of canaries or records under a model; higher = member.

    Parameters
    ----------
    model : PreTrainedModel
        The audited model.
    canaries : CanarySet
    attack : str
        A key of ``ATTACKS``.
    base : PreTrainedModel, optional
        The model before fine-tuning: required by ``loss-drop`` and
        ``loss-residual``, used by ``grad-norm``.
    references : sequence of PreTrainedModel
        Models never trained on these records, for ``lira-offline`` and ``rmia-offline``.
    population : CanarySet, optional
        Records outside the audit, for ``rmia-offline``.
    neighbours : m sequences of n token-id sequences
        Tokenised perturbations of each record, for ``neighbourhood``; see ``neighbour_texts``.
    k, offline_a, batch_size
        Share of tokens of Min-K%; RMIA's ``a``; records per forward pass.
    """
    one_of(ATTACKS, attack=attack)
    needs = ATTACKS[attack]
    if needs.base and base is None:
        raise InvalidValue(f"attack={attack} compares with the model before fine-tuning; give base.")
    if len(references) < needs.references:
        raise InvalidValue(
            f"attack={attack} needs at least {needs.references} reference models never trained on these records and "
            f"{len(references)} were given."
        )
    if needs.population and population is None:
        raise InvalidValue(f"attack={attack} compares with records outside the audit; give a population.")
    if needs.neighbours and not neighbours:
        raise InvalidValue(f"attack={attack} compares with perturbed records; give neighbours.")
    if needs.causal and canaries.labels is not None:
        raise InvalidValue(f"attack={attack} scores tokens and needs a causal language model; use loss or loss-drop.")

    def losses(of: Any, records: CanarySet, *, mean: bool = False) -> FloatArray:
        values = canary_losses(of, records, batch_size=batch_size)
        return values / np.maximum(records.score_mask.sum(axis=1), 1) if mean else values

    if attack == "loss":
        scores = loss_scores(losses(model, canaries))
    elif attack == "loss-drop":
        scores = loss_drop_scores(losses(model, canaries), losses(base, canaries))
    elif attack == "loss-residual":
        scores = residual_scores(losses(model, canaries), losses(base, canaries))
    elif attack == "neighbourhood":
        scores = neighbourhood_scores(
            losses(model, canaries, mean=True), neighbour_losses(model, neighbours, batch_size=batch_size)
        )
    elif attack == "zlib":
        scores = zlib_scores(losses(model, canaries), canaries.texts)
    elif attack == "grad-norm":
        own = gradient_norms(model, canaries)
        scores = gradient_norm_scores(own, None if base is None else gradient_norms(base, canaries))
    elif attack == "lira-offline":
        # A mean loss per token keeps the logit away from saturation for long records.
        signals = np.stack([logit_confidence(losses(r, canaries, mean=True)) for r in references])
        shadows = ShadowSignals(signals, np.zeros(signals.shape, dtype=bool))
        scores = lira_offline_scores(logit_confidence(losses(model, canaries, mean=True)), shadows)
    elif attack == "rmia-offline":
        assert population is not None
        pair = [[-losses(of, records, mean=True) for of in (model, *references)] for records in (canaries, population)]
        scores = rmia_scores(pair[0][0], pair[0][1:], pair[1][0], pair[1][1:], offline_a=offline_a)
    else:
        found = token_statistics(
            model, canaries.input_ids, canaries.attention_mask, score_mask=canaries.score_mask, batch_size=batch_size
        )
        plus = attack == "min-k++"
        scores = (
            min_k_plus_plus_scores(found.log_probs, found.means, found.deviations, k=k)
            if plus
            else min_k_scores(found.log_probs, k=k)
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise InvalidEvidence(f"attack={attack} gave {len(bad)} scores that are not finite (first: canary {bad[0]}).")
    return scores


def neighbour_losses(model: Any, neighbours: Sequence[Sequence[Sequence[int]]], *, batch_size: int = 64) -> FloatArray:
    """Mean token loss of n neighbours of m records, (m, n); the mean, since lengths may differ."""
    widths = {len(row) for row in neighbours}
    flat = [row for group in neighbours for row in group]
    if len(widths) != 1 or not flat or min(len(row) for row in flat) < 2:
        raise InvalidValue(f"neighbours must hold the same number for each record and >= 2 tokens each; got {widths}.")
    ids, mask = pad_rows(flat)
    means = sequence_losses(model, ids, mask, np.where(mask, ids, IGNORED), reduction="mean", batch_size=batch_size)
    return means.reshape(len(neighbours), widths.pop())


def gradient_norms(model: Any, canaries: CanarySet) -> FloatArray:
    """Norm of each record's loss gradient over the trainable parameters, (m,); one backward pass per record."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidValue("the model has no trainable parameter, so no gradient norm; set requires_grad.")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    device = parameters[0].device
    norms = np.empty(len(canaries))
    try:
        with torch.enable_grad():
            for i in range(len(canaries)):
                length = int(canaries.attention_mask[i].sum())
                ids = torch.from_numpy(canaries.input_ids[i : i + 1, :length].copy()).to(device)
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
                if canaries.labels is None:
                    scored = np.where(canaries.score_mask[i, 1:length], canaries.input_ids[i, 1:length], IGNORED)
                    logits, label = logits[0, :-1], torch.from_numpy(scored).to(device)
                else:
                    label = torch.tensor([int(canaries.labels[i])], device=device)
                loss = torch.nn.functional.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum")
                grads = torch.autograd.grad(loss, parameters, allow_unused=True)
                norms[i] = float(sum(g.double().pow(2).sum() for g in grads if g is not None)) ** 0.5
    finally:
        for module, mode in modes.items():
            module.training = mode
    return norms
