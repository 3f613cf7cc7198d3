"""Losses against naive loops over single, unpadded records."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dpaudit import InvalidValue
from dpaudit.attacks import canary_losses
from dpaudit.attacks.canaries.canary import from_rows
from dpaudit.attacks.scores.losses import sequence_losses, token_statistics

VOCABULARY = 37


@pytest.fixture(scope="module")
def causal() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    with torch.no_grad():
        model.transformer.wte.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def classifier() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def ragged(rng: np.random.Generator, m: int) -> list[list[int]]:
    return [rng.integers(VOCABULARY, size=n).tolist() for n in rng.integers(4, 13, size=m)]


def naive_log_probs(model: Any, row: list[int]) -> np.ndarray:
    """log p of tokens 1.. of one unpadded record over the whole vocabulary, shape (L - 1, V)."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1].double()
    return (logits - torch.logsumexp(logits, dim=-1, keepdim=True)).numpy()


def test_canary_losses_equal_the_unpadded_sum_over_scored_positions(causal: Any) -> None:
    rng = np.random.default_rng(0)
    rows = ragged(rng, 23)
    scored = [sorted(rng.choice(np.arange(1, len(row)), size=2, replace=False).tolist()) for row in rows]
    canaries = from_rows([str(i) for i in range(23)], rows, scored, kind="test", params={})
    causal.train()
    losses = canary_losses(causal, canaries, batch_size=5)
    assert causal.training and losses.dtype == np.float64 and losses.shape == (23,)
    for loss, row, places in zip(losses, rows, scored, strict=True):
        table = naive_log_probs(causal, row)
        assert loss == pytest.approx(-sum(table[p - 1, row[p]] for p in places), rel=1e-5)


def test_mean_reduction_and_ignored_first_token(causal: Any) -> None:
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = np.where(mask == 1, ids, -100)
    total = sequence_losses(causal, ids, mask, labels)
    mean = sequence_losses(causal, ids, mask, labels, reduction="mean")
    np.testing.assert_allclose(total, mean * [3, 2], rtol=1e-12)
    with pytest.raises(InvalidValue, match="differ from input_ids"):
        sequence_losses(causal, ids, mask, np.where(mask == 1, ids + 1, -100))
    with pytest.raises(InvalidValue, match="masked out"):
        sequence_losses(causal, ids, mask, ids)


def test_batch_size_and_padding_do_not_change_a_loss(causal: Any) -> None:
    rng = np.random.default_rng(1)
    rows = ragged(rng, 9)
    canaries = from_rows([str(i) for i in range(9)], rows, [range(1, len(r)) for r in rows], kind="test", params={})
    one, all_at_once = canary_losses(causal, canaries, batch_size=1), canary_losses(causal, canaries, batch_size=9)
    np.testing.assert_allclose(one, all_at_once, rtol=1e-5)


def test_token_statistics_equal_moments_over_the_vocabulary(causal: Any) -> None:
    rng = np.random.default_rng(2)
    rows = ragged(rng, 7)
    made = from_rows([str(i) for i in range(7)], rows, [range(1, len(r)) for r in rows], kind="test", params={})
    found = token_statistics(causal, made.input_ids, made.attention_mask, batch_size=3)
    for i, row in enumerate(rows):
        table = naive_log_probs(causal, row)
        probability = np.exp(table)
        mean = (probability * table).sum(1)
        deviation = np.sqrt((probability * table**2).sum(1) - mean**2)
        n = len(row) - 1
        np.testing.assert_allclose(found.log_probs[i, :n], table[np.arange(n), row[1:]], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.means[i, :n], mean, rtol=1e-5)
        np.testing.assert_allclose(found.deviations[i, :n], deviation, rtol=1e-4)
        assert np.isnan(found.log_probs[i, n:]).all() and np.isnan(found.deviations[i, n:]).all()


def test_classification_losses_are_the_label_cross_entropy(classifier: Any) -> None:
    rng = np.random.default_rng(3)
    rows, labels = ragged(rng, 11), rng.integers(3, size=11)
    made = from_rows([str(i) for i in range(11)], rows, [()] * 11, kind="label_flip", params={}, labels=labels.tolist())
    losses = canary_losses(classifier, made, batch_size=4)
    classifier.eval()
    for loss, row, label in zip(losses, rows, labels, strict=True):
        with torch.no_grad():
            logits = classifier(input_ids=torch.tensor([row])).logits[0].double()
        assert loss == pytest.approx(float(torch.logsumexp(logits, 0) - logits[label]), rel=1e-5)
    with pytest.raises(InvalidValue, match="labels reach 3"):
        sequence_losses(classifier, made.input_ids, made.attention_mask, np.full(11, 3))
    from transformers import BertForSequenceClassification

    config = copy.deepcopy(classifier.config)
    config.num_labels = 1
    with pytest.raises(InvalidValue, match="1 class"):
        sequence_losses(
            BertForSequenceClassification(config), made.input_ids, made.attention_mask, np.zeros(11, dtype=int)
        )


def test_wrong_kind_of_model_is_named(causal: Any, classifier: Any) -> None:
    ids, mask = np.ones((2, 4), dtype=np.int64), np.ones((2, 4))
    with pytest.raises(InvalidValue, match="causal language model"):
        sequence_losses(classifier, ids, mask, ids)
    with pytest.raises(InvalidValue, match="sequence classifier"):
        sequence_losses(causal, ids, mask, np.zeros(2, dtype=np.int64))


def test_bfloat16_models_are_scored_in_fp32(causal: Any) -> None:
    ids = np.arange(24).reshape(4, 6)
    half = copy.deepcopy(causal).bfloat16()
    exact = sequence_losses(causal, ids, np.ones_like(ids), ids)
    rounded = sequence_losses(half, ids, np.ones_like(ids), ids)
    assert next(half.parameters()).dtype == torch.bfloat16
    np.testing.assert_allclose(rounded, exact, rtol=0.05)
