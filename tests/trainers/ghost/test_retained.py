"""The lean mode keeps output gradients where the backward pass frees as much, and drops them elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.ghost.retained import Retained, retained_by
from dpaudit.trainers.ghost.uses import MatrixUse

Losses = Callable[[], Tensor]


def causal(**settings: Any) -> tuple[nn.Module, Losses]:
    torch.manual_seed(0)
    shape = {"n_layer": 3, "n_embd": 32, "n_head": 2, "vocab_size": 96, "n_positions": 32}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **still, **settings)).train()
    ids = torch.randint(0, 96, (4, 32))

    def losses() -> Tensor:
        logits = model(input_ids=ids).logits[:, :-1]
        each = nn.functional.cross_entropy(logits.reshape(-1, 96), ids[:, 1:].reshape(-1), reduction="none")
        return each.view(4, -1).mean(1)

    return model, losses


def classifier() -> tuple[nn.Module, Losses]:
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=3, hidden_size=32, num_attention_heads=2, intermediate_size=128, vocab_size=96,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).train()
    ids = torch.randint(0, 96, (4, 32))
    return model, lambda: nn.functional.cross_entropy(model(ids).logits, ids[:, 0] % 2, reduction="none")


class Rectified(nn.Module):
    """Linear layers whose activations save nothing but the next layer's input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.square().mean((1, 2))


def rectified() -> tuple[nn.Module, Losses]:
    torch.manual_seed(0)
    model, x = Rectified(), torch.randn(4, 32, 32)
    return model, lambda: model(x)


def checkpointed() -> tuple[nn.Module, Losses]:
    model, losses = causal()
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    return model, losses


@pytest.mark.parametrize(
    ("make", "drops"),
    [(causal, False), (classifier, False), (rectified, True), (checkpointed, True)],
)
def test_output_gradients_are_kept_where_the_pass_frees_as_much(make: Any, drops: bool) -> None:
    model, losses = make()
    with GhostClipping(model, 0.1, lean=True) as clipper:
        assert clipper._drops
        clipper.backward(losses())
        assert clipper._drops is drops


def test_offloaded_activations_are_not_brought_back_to_be_counted() -> None:
    model, losses = causal()
    with GhostClipping(model, 0.1, lean=True) as clipper:
        with torch.autograd.graph.save_on_cpu():
            each = losses()
        clipper.backward(each)
        assert clipper._drops


def test_checkpointed_layers_run_once_more_a_pass_and_no_more() -> None:
    model, losses = checkpointed()
    calls: list[int] = []
    model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))  # type: ignore[union-attr, operator]
    with GhostClipping(model, 0.1, lean=True) as clipper:
        for _ in range(2):
            calls.clear()
            clipper.backward(losses())
            assert len(calls) == 3  # the forward pass and each of two backward passes


@pytest.mark.parametrize("make", [causal, classifier, rectified, checkpointed])
def test_one_pass_and_two_give_the_same_bits(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for keeps in (False, True):
        monkeypatch.setattr(Retained, "frees_enough", keeps)
        model, losses = make()
        with GhostClipping(model, 0.1, lean=True) as clipper:
            norms = [clipper.backward(losses()) for _ in range(2)]
        found.append([*norms, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


class Live(TorchDispatchMode):
    """Bytes of the storages that operations inside made and that still live, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, which: int, size: int) -> None:
        self._known.discard(which)
        self.now -= size


@pytest.mark.parametrize("make", [causal, classifier])
def test_what_is_kept_costs_no_memory(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks: dict[bool, int] = {}
    for drops in (True, False):
        with monkeypatch.context() as patch:
            if drops:
                patch.setattr(Retained, "frees_enough", False)
            model, losses = make()
            with GhostClipping(model, 0.1, lean=True) as clipper:
                clipper.backward(losses())  # finds out
                model.zero_grad()
                with Live() as live:
                    clipper.backward(losses())
                assert clipper._drops is drops
        peaks[drops] = live.most
    assert peaks[False] <= 1.02 * peaks[True]


def test_dropping_takes_less_where_layers_save_their_inputs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round: what the rule refuses to keep would raise the peak."""
    peaks: dict[bool, int] = {}
    for keeps in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(Retained, "frees_enough", keeps)
            torch.manual_seed(0)
            model, x = Rectified(), torch.randn(64, 32, 32)
            with GhostClipping(model, 0.1, lean=True) as clipper:
                clipper.backward(model(x))
                model.zero_grad()
                with Live() as live:
                    clipper.backward(model(x))
        peaks[keeps] = live.most
    assert peaks[True] > 1.1 * peaks[False]


def test_a_shared_gradient_is_counted_once_and_a_reused_address_again() -> None:
    retained = Retained({})
    a, b = torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)
    for _ in range(2):
        retained.note(MatrixUse(a, b, False, torch.Size((4, 5))))
    assert retained.added == 4 * (24 + 30)
    (gone,) = (reference for reference in retained.counted.values() if reference.cdata == b.untyped_storage()._cdata)
    del b
    assert gone.expired()
    again = torch.zeros(2, 3, 5)
    retained.counted[again.untyped_storage().data_ptr()] = gone  # as if it had been given the same address
    retained.note(MatrixUse(a, again, False, torch.Size((4, 5))))
    assert retained.added == 4 * (24 + 60)


def test_the_graph_is_counted_without_the_models_own_tensors() -> None:
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    held = retained_by((layer(x).exp() * x).sum(1), layer)
    assert held is not None
    # x, which the product saves too, and exp's result, which both exp and the product save; the weight is the model's.
    assert sorted(held.graph.values()) == [4 * 32, 4 * 32]


def test_a_graph_with_a_changed_tensor_is_not_read() -> None:
    layer = nn.Linear(4, 4)
    y = layer(torch.randn(2, 4)).exp()
    losses = y.square().sum(1)
    y.detach().mul_(2)
    with torch.no_grad():
        y.mul_(2)
    assert retained_by(losses, layer) is None
