"""One attack on one model: from a model and its canaries to scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from dpaudit.attacks.scores.needs import ATTACKS
from dpaudit.attacks.scores.shadow import ShadowSignals, lira_offline_scores, rmia_scores
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.validate import one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What an attack may look at: the audited model and its canaries, and what else the caller gave."""

    model: Any
    canaries: CanarySet
    base: Any
    references: Sequence[Any]
    population: CanarySet | None
    neighbours: Sequence[Sequence[Sequence[int]]]
    k: float
    offline_a: float
    batch_size: int

    def losses(self, of: Any, records: CanarySet | None = None, *, mean: bool = False) -> FloatArray:
        """Loss of each record under a model, (m,): the sum over its scored tokens, or their mean."""
        records = self.canaries if records is None else records
        values = canary_losses(of, records, batch_size=self.batch_size)
        return values / np.maximum(records.score_mask.sum(axis=1), 1) if mean else values

    def tokens(self) -> Any:
        """Log-probabilities of each record's tokens under the audited model, with their means and deviations."""
        own = self.canaries
        return token_statistics(
            self.model, own.input_ids, own.attention_mask, score_mask=own.score_mask, batch_size=self.batch_size
        )


def _neighbourhood(given: Scored) -> FloatArray:
    beside = neighbour_losses(given.model, given.neighbours, batch_size=given.batch_size)
    return neighbourhood_scores(given.losses(given.model, mean=True), beside)


def _min_k(given: Scored) -> FloatArray:
    return min_k_scores(given.tokens().log_probs, k=given.k)


def _min_k_plus_plus(given: Scored) -> FloatArray:
    found = given.tokens()
    return min_k_plus_plus_scores(found.log_probs, found.means, found.deviations, k=given.k)


def _gradient_norm(given: Scored) -> FloatArray:
    before = None if given.base is None else gradient_norms(given.base, given.canaries)
    return gradient_norm_scores(gradient_norms(given.model, given.canaries), before)


def _lira_offline(given: Scored) -> FloatArray:
    # The probability of a long record is nearly 0, where its logit says little, so the mean loss per token is taken.
    signals = np.stack([logit_confidence(given.losses(r, mean=True)) for r in given.references])
    shadows = ShadowSignals(signals, np.zeros(signals.shape, dtype=bool))
    return lira_offline_scores(logit_confidence(given.losses(given.model, mean=True)), shadows)


def _rmia_offline(given: Scored) -> FloatArray:
    models = (given.model, *given.references)
    pair = [[-given.losses(of, records, mean=True) for of in models] for records in (given.canaries, given.population)]
    return rmia_scores(pair[0][0], pair[0][1:], pair[1][0], pair[1][1:], offline_a=given.offline_a)


SCORES: dict[str, Callable[[Scored], FloatArray]] = {
    "loss": lambda given: loss_scores(given.losses(given.model)),
    "loss-drop": lambda given: loss_drop_scores(given.losses(given.model), given.losses(given.base)),
    "loss-residual": lambda given: residual_scores(given.losses(given.model), given.losses(given.base)),
    "neighbourhood": _neighbourhood,
    "zlib": lambda given: zlib_scores(given.losses(given.model), given.canaries.texts),
    "min-k": _min_k,
    "min-k++": _min_k_plus_plus,
    "grad-norm": _gradient_norm,
    "lira-offline": _lira_offline,
    "rmia-offline": _rmia_offline,
}
"""Function of every attack: scores (m,), higher = member, of what it may look at."""


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
        Name of an attack: ``loss``, ``loss-drop``, ``loss-residual``, ``zlib``, ``min-k``, ``min-k++``, ``grad-norm``,
        ``neighbourhood``, ``lira-offline`` or ``rmia-offline``.
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

    Returns
    -------
    array (m,)
        Scores in the order of the canaries; higher = member.

    Raises
    ------
    InvalidValue
        If the attack is unknown, or what it needs is missing.
    InvalidEvidence
        If a score is not finite.
    """
    one_of(ATTACKS, attack=attack)
    given = Scored(
        model=model,
        canaries=canaries,
        base=base,
        references=references,
        population=population,
        neighbours=neighbours,
        k=k,
        offline_a=offline_a,
        batch_size=batch_size,
    )
    _refuse_missing(attack, given)
    scores = SCORES[attack](given)
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise InvalidEvidence(f"attack={attack} gave {len(bad)} scores that are not finite (first: canary {bad[0]}).")
    return scores


def _refuse_missing(name: str, given: Scored) -> None:
    needs = ATTACKS[name]
    if needs.base and given.base is None:
        raise InvalidValue(f"attack={name} compares with the model before fine-tuning; give base.")
    if len(given.references) < needs.references:
        raise InvalidValue(
            f"attack={name} needs at least {needs.references} reference models never trained on these records and "
            f"{len(given.references)} were given."
        )
    if needs.population and given.population is None:
        raise InvalidValue(f"attack={name} compares with records outside the audit; give a population.")
    if needs.neighbours and not given.neighbours:
        raise InvalidValue(f"attack={name} compares with perturbed records; give neighbours.")
    if given.canaries.others is not None and not needs.paired:
        usable = ", ".join(name for name, other in ATTACKS.items() if other.paired)
        raise InvalidValue(
            f"attack={name} scores one label, and a coin chose between two for each canary; use {usable}."
        )
    if needs.causal and given.canaries.labels is not None:
        raise InvalidValue(f"attack={name} scores tokens and needs a causal language model; use loss or loss-drop.")


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
