"""The chunked language-model head gives what the whole logits give, and never holds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers import GhostClipping, causal_lm_losses, preflight
from dpaudit.trainers.clipping import Automatic, Flat, PerLayer
from dpaudit.trainers.ghost import head as head_module
from tests.trainers.ghost.ghost_oracle import compare, gradients, norms_of
from tests.trainers.ghost.test_families import FAMILIES, build

CAUSAL = ["gpt2", "gpt2-untied", "opt", "llama", "llama-tied", "qwen3", "gemma3", "mistral"]
IDS = torch.randint(3, 29, (5, 7), generator=torch.Generator().manual_seed(1))
IDS[:, 3] = IDS[:, 1]
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0
MASK[4, 1:] = 0  # an example without a counted token


@pytest.fixture(autouse=True)
def two_examples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_WORDS", 2 * 6 * 29 + 5)


def losses_of(model: nn.Module, ids: Tensor = IDS, *, chunked: bool = True) -> Any:
    return lambda rows: causal_lm_losses(model, ids[rows], MASK[rows], chunked_head=chunked)


def whole(model: nn.Module, rows: slice) -> Tensor:
    return losses_of(model, chunked=False)(rows)


@pytest.mark.parametrize("family", CAUSAL)
def test_losses_are_those_of_the_whole_logits(family: str) -> None:
    model = build(family, torch.float64).eval()
    expected = whole(model, slice(None)).detach()
    assert expected[4] == 0 and (expected[:4] > 0).all()
    with torch.no_grad():
        assert torch.allclose(losses_of(model)(slice(None)), expected, rtol=1e-12)
    with GhostClipping(model, 1.0) as clipper:
        found = losses_of(model)(slice(None))
        assert torch.allclose(found, expected, rtol=1e-12)
        clipper.backward(found)
    # without a clipper, and so for plain training, the gradient is autograd's
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(losses_of(model)(slice(None)).sum())
    mine = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(whole(model, slice(None)).sum())
    assert all(
        torch.allclose(a, p.grad)
        for a, p in zip(mine, [p for p in model.parameters() if p.grad is not None], strict=True)
    )


@pytest.mark.parametrize("rule", [Flat, PerLayer, Automatic])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("family", CAUSAL)
def test_clipped_sums_equal_the_loop(family: str, lean: bool, rule: Any) -> None:
    model = build(family, torch.float64)
    wrong, norm_wrong = compare(model, losses_of(model), 4, rule, lean=lean)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_clipped_sums_equal_the_loop_in_fp32(family: str) -> None:
    model = build(family, torch.float32)
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat)
    assert wrong <= 1e-5 and norm_wrong <= 1e-5


def test_losses_that_are_scaled_afterwards_carry_their_factor() -> None:
    model = build("gpt2", torch.float64)
    factors = torch.tensor([0.5, 3.0, -1.0, 2.0], dtype=torch.float64)
    wrong, norm_wrong = compare(model, lambda rows: losses_of(model)(rows) * factors[rows], 4, Flat)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


def test_a_norm_that_cancels_is_taken_from_the_gradient_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpaudit.trainers.ghost.book.CANCELLATION", 1e-9)
    for lean in (False, True):
        model = build("gpt2", torch.float64)
        wrong, norm_wrong = compare(model, losses_of(model), 4, Flat, lean=lean)
        assert wrong <= 1e-11 and norm_wrong <= 1e-11


@pytest.mark.parametrize("which", ["head", "body"])
def test_a_frozen_part_stays_without_gradient(which: str) -> None:
    model: Any = build("gpt2-untied", torch.float64)
    head = model.get_output_embeddings()
    for p in model.parameters():
        p.requires_grad_((p is head.weight) == (which == "head"))
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


def test_a_head_with_bias() -> None:
    model: Any = build("gpt2-untied", torch.float64)
    model.lm_head = nn.Linear(16, 29, dtype=torch.float64)
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


def test_the_sum_is_made_of_the_slopes_whose_norm_was_measured() -> None:
    """Where a probability rounds to one the slope is rounding alone, which another computation would change."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(8, 29, bias=False)
    gaps = torch.linspace(10, 22, 64)  # 1 - p from 1e-3 to 1e-8
    with torch.no_grad():
        head.weight.normal_(0.0, 0.1, generator=generator)
        head.weight[3, 0] += 1.0
    hidden = torch.randn(len(gaps), 5, 8, generator=generator)
    hidden[:, :, 0] = gaps[:, None]
    inputs = head_module.head_inputs(hidden, head, torch.full((len(gaps), 5), 3))
    for rows in inputs.chunks():
        measured = inputs.losses_and_slopes(rows)[1]
        assert torch.equal(measured, inputs.slopes(rows))


def test_a_row_that_is_not_finite_contributes_nothing() -> None:
    model = build("gpt2-untied", torch.float32)
    poisoned = IDS.clone()
    with torch.no_grad():
        model.get_input_embeddings().weight[2] = float("inf")  # type: ignore[operator,union-attr]
    poisoned[2, 0] = 2
    rows = [0, 1, 3]
    sums = []
    for chosen in (list(range(4)), rows):
        model.zero_grad(set_to_none=True)
        with GhostClipping(model, 0.1) as clipper:
            norms = clipper.backward(causal_lm_losses(model, poisoned[chosen], MASK[chosen], chunked_head=True))
        sums.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(norms) == 3
    assert all(torch.isfinite(a).all() and torch.allclose(a, b, atol=1e-7) for a, b in zip(*sums, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_example_moves_the_sum_by_at_most_c(dtype: torch.dtype) -> None:
    model = build("gpt2", torch.float32)
    bound = 1e-2

    def total(rows: list[int]) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        with (
            GhostClipping(model, bound) as clipper,
            torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32),
        ):
            clipper.backward(causal_lm_losses(model, IDS[rows], MASK[rows], chunked_head=True))
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for row in range(4):  # alone: its clipped gradient is all there is
        assert torch.stack([g.norm() for g in total([row])]).norm() <= bound * (1 + 1e-5)


def with_lora(family: str, targets: list[str]) -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, fan_in_fan_out=targets == ["c_attn"])
    model: nn.Module = peft.get_peft_model(build(family, torch.float64), config).double()
    return model


@pytest.mark.parametrize(("family", "targets"), [("gpt2", ["c_attn"]), ("llama", ["q_proj", "v_proj"])])
@pytest.mark.parametrize("lean", [False, True])
def test_lora_over_a_frozen_head(family: str, targets: list[str], lean: bool) -> None:
    model = with_lora(family, targets)
    with GhostClipping(model, 1.0, lean=lean) as clipper:  # the clipper is open before the model is first seen
        first = clipper.backward(losses_of(model)(slice(0, 4)))
        assert torch.allclose(clipper.backward(losses_of(model)(slice(0, 3))), first[:3])
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat, lean=lean)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11
    expected = norms_of(gradients(model, lambda rows: whole(model, rows), 4))
    assert torch.allclose(first, expected, rtol=1e-11)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("lean", [False, True])
def test_the_logits_of_the_batch_never_exist(lean: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=3000, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).train()
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    ids = torch.randint(0, 3000, (6, 12))
    monkeypatch.setattr(head_module, "CHUNK_WORDS", 11 * 3000)  # one example
    largest = {}
    for chunked in (False, True):
        with GhostClipping(model, 1.0, lean=lean) as clipper, Largest() as seen:
            clipper.backward(causal_lm_losses(model, ids, chunked_head=chunked))
        largest[chunked] = seen.numel
    assert largest[False] >= 6 * 11 * 3000 and largest[True] <= 12 * 3000


def test_the_preflight_passes_with_a_chunked_head() -> None:
    model = build("gpt2", torch.float32)
    schema = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS}
    report = preflight(model, schema, loss_fn=lambda m, b: causal_lm_losses(m, **b, chunked_head=True))
    assert report.sensitivity_over_bound <= 1 + 1e-4


def test_a_model_that_changes_its_logits_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"final_logit_softcapping.*chunked_head=False"):
        losses_of(build("gemma2", torch.float64))(slice(None))
    with pytest.raises(UnsupportedModel, match="one linear layer"):
        losses_of(build("bert-mlm", torch.float64))(slice(None))
    assert set(CAUSAL) < set(FAMILIES)


def test_every_norm_is_that_of_the_whole_gradient() -> None:
    model = build("llama-tied", torch.float64)
    expected = norms_of(gradients(model, lambda rows: whole(model, rows), 4))
    with GhostClipping(model, 1.0) as clipper:
        assert torch.allclose(clipper.backward(losses_of(model)(slice(0, 4))), expected, rtol=1e-11)
