"""Canaries whose coin replaces their label: a pair of records each, which tests replace_one."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dpaudit import InvalidValue, Ledger, Stage, account
from dpaudit.attacks import flip_coins, label_substitution_canaries, read_secret, write_secret
from dpaudit.attacks.canaries.canary import CanarySet, from_rows, inserted
from dpaudit.attacks.canaries.secret import read_open
from dpaudit.attacks.scores.functions import loss_scores
from dpaudit.attacks.scores.losses import canary_losses
from dpaudit.attacks.scores.score_model import score_model
from dpaudit.auditing import Scores, audit, design
from dpaudit.certificates.curve import declared_curve
from dpaudit.trainers import GhostClipping
from tests.attacks.canaries.test_canaries import tokenizer as tokenizer


class Table(torch.nn.Module):
    """A classifier of one-token records: a row of two logits for each token, so that records do not meet."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(tokens, 2)
        torch.nn.init.zeros_(self.rows.weight)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        return SimpleNamespace(logits=self.rows(input_ids[:, 0]))


def one_token_each(m: int) -> CanarySet:
    truth = np.arange(m) % 2
    texts, rows = [f"record {i}" for i in range(m)], [[i] for i in range(m)]
    return from_rows(
        texts, rows, [()] * m, kind="label_substitution", params={}, labels=(1 - truth).tolist(), others=truth.tolist()
    )


def test_every_canary_is_in_the_data_with_the_label_of_its_coin(tokenizer: Any) -> None:
    truth = [0, 1, 2]
    made = label_substitution_canaries(tokenizer, ["ab", "cd", "ef"], truth, num_labels=3, rng=np.random.default_rng(0))
    assert made.labels is not None and made.others is not None
    assert made.others.tolist() == truth and not (made.labels == made.others).any()
    records = inserted(made, [1, 0, 1], 2)
    assert [r["labels"] for r in records] == [made.labels[0]] * 2 + [1] * 2 + [made.labels[2]] * 2
    assert made.present([0, 0, 0]).tolist() == [0, 1, 2]
    with pytest.raises(InvalidValue, match="another label for each"):
        dataclasses.replace(made, others=made.labels)


def test_the_secret_file_keeps_both_labels_and_an_attack_may_read_them(tmp_path: Path) -> None:
    made, path = one_token_each(4), tmp_path / "canaries.parquet"
    write_secret(path, made, [0, 1, 1, 0], os.urandom(32), 1)
    for found in (read_secret(path).canaries, read_open(path)[0]):
        assert found.others is not None and found.others.tolist() == [0, 1, 0, 1] and found.digest == made.digest


def test_the_loss_compares_the_labels() -> None:
    model, made = Table(2), one_token_each(2)
    with torch.no_grad():
        model.rows.weight.copy_(torch.tensor([[0.0, 3.0], [1.0, 1.5]]))
    # Cross-entropies of two labels differ by their logits: 0 - 3 for label 1 of the first, 1.5 - 1 for 0 of the other.
    assert canary_losses(model, made).tolist() == pytest.approx([-3.0, 0.5])
    with pytest.raises(InvalidValue, match=r"attack=grad-norm scores one label, .* use loss, loss-drop, loss-residual"):
        score_model(model, made, attack="grad-norm")


def released(made: CanarySet, coins: np.ndarray, sigma: float, rng: np.random.Generator) -> Table:
    """A model after one noisy step on every canary, clipped by the trainer's own clipper."""
    model, bound = Table(len(made)), 0.5
    labels = torch.tensor([row["labels"] for row in inserted(made, coins, 1)])
    with GhostClipping(model, max_grad_norm=bound) as clipper:
        logits = model(torch.arange(len(made))[:, None]).logits
        clipper.backward(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    with torch.no_grad():
        noise = torch.from_numpy(rng.normal(0, sigma * bound, (len(made), 2)))
        model.rows.weight -= (model.rows.weight.grad + noise).float()  # type: ignore[operator]
    return model


def test_replacing_a_label_moves_the_released_sum_by_twice_the_bound() -> None:
    """With two classes the gradients of the labels are opposite, so that the scores lie 2 / sigma deviations apart."""
    m, sigma, rng = 4000, 2.0, np.random.default_rng(0)
    made, coins = one_token_each(m), flip_coins(m, generator=rng)
    scores = loss_scores(canary_losses(released(made, coins, sigma, rng), made))
    apart = (scores[coins == 1].mean() - scores[coins == 0].mean()) / scores[coins == 1].std()
    assert abs(apart - 2 / sigma) < 5 * 2 / math.sqrt(m)


@pytest.mark.slow
def test_bounds_hold_for_replacing_and_refute_what_holds_for_adding() -> None:
    m, sigma, delta, runs, rng = 1000, 1.0, 1e-5, 100, np.random.default_rng(0)
    stage = Stage(sampling_probability=1.0, noise_multiplier=sigma, steps=1, sampling="none")
    ledgers = [Ledger(stages=(stage,), relation=name, unit="record") for name in ("replace_one", "add_or_remove_one")]
    curves = [declared_curve(ledger, delta, 1) for ledger in ledgers]
    truth = account(ledgers[0], delta=delta)[0].epsilon_lower
    assert truth is not None
    plan = design(m, truth, delta, relation="replace_one", unit="record")
    made, ids = one_token_each(m), [f"canary {i}" for i in range(m)]
    above, convicted = 0, [0, 0]
    for _ in range(runs):
        coins = flip_coins(m, generator=rng)
        scores = loss_scores(canary_losses(released(made, coins, sigma, rng), made))
        for i, curve in enumerate(curves):
            result = audit(Scores(ids, scores, coins), plan, curve=curve, secondary=False)
            convicted[i] += result.verdict == "violated"
        above += (result.epsilon_lower or 0.0) > truth
    # Binomial quantiles of 1 - 1e-4 at the promised rates of .05 and .045.
    assert above <= 15 and convicted[0] <= 14
    # The same scores refute the curve of adding or removing, which false alarms would do five times at most.
    assert convicted[1] >= 25
