"""Evaluation for a while leaves every module in the mode that it had."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.tasks.metrics import perplexity
from tests.trainers.ghost.test_families import build


def test_modules_of_unlike_modes_get_their_own_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("stop")
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_a_perplexity_keeps_a_layer_that_is_frozen_in_evaluation() -> None:
    model = build("gpt2", torch.float32).train()
    frozen = model.transformer.h[0]
    frozen.eval()
    batch = {"input_ids": torch.tensor([[3, 4, 5]]), "labels": torch.tensor([[3, 4, 5]])}
    assert perplexity(model, [0], lambda rows: batch) > 1
    assert model.training and not frozen.training
