"""Preference pairs: losses by their definitions, one clipped gradient a pair, and a run on generated preferences."""

from __future__ import annotations

import math
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal, UnsupportedModel
from dpaudit.trainers import GhostClipping, OptimizerSettings, PrivacyPlan, train
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.tasks.preferences import (
    REFERENCE,
    PreferenceCollator,
    dpo_losses,
    preference_records,
    reward_accuracy,
    with_reference_logps,
)
from tests.trainers.ghost.ghost_oracle import clipped, error, norms_of
from tests.trainers.ghost.test_families import build

COLLATE = PreferenceCollator(pad=1)


def pairs(count: int = 5, seed: int = 3) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(3, 29, (length,), generator=draw).tolist()

    return [
        {"prompt_ids": ids(1 + i % 3), "chosen_ids": ids(2 + i % 4), "rejected_ids": ids(5 - i % 4)}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model() -> Any:
    return build("gpt2", torch.float64)


def by_hand(model: Any, record: dict[str, Any], answer: str) -> tuple[Tensor, int]:
    """Σ log p of an answer's tokens, each after what stands before it, one forward pass for each row alone."""
    whole = torch.tensor([[*record["prompt_ids"], *record[answer]]])
    logps = model(input_ids=whole).logits[0].log_softmax(-1)
    start = len(record["prompt_ids"])
    return sum(logps[t - 1, whole[0, t]] for t in range(start, whole.shape[1])), len(record[answer])  # type: ignore[return-value]


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
def test_losses_are_their_definitions(model: Any, loss_type: str) -> None:
    records = [{**r, "ref_chosen_logps": -3.0 - i, "ref_rejected_logps": -4.0} for i, r in enumerate(pairs())]
    found = dpo_losses(model, COLLATE(records), beta=0.3, loss_type=loss_type)
    for record, loss in zip(records, found, strict=True):
        (chosen, n), (rejected, m) = by_hand(model, record, "chosen_ids"), by_hand(model, record, "rejected_ids")
        if loss_type == "ipo":
            chosen, rejected = chosen / n, rejected / m
        margin = float(chosen - rejected) - (record["ref_chosen_logps"] - record["ref_rejected_logps"])
        expected = {
            "sigmoid": math.log1p(math.exp(-0.3 * margin)),
            "ipo": (margin - 1 / 0.6) ** 2,
            "hinge": max(0.0, 1 - 0.3 * margin),
        }[loss_type]
        assert float(loss) == pytest.approx(expected, rel=1e-5)  # references are stored in fp32


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_a_pair_is_clipped_as_one_autograd_call(family: str, loss_type: str, lean: bool) -> None:
    model: Any = build(family, torch.float64)
    records = with_reference_logps(model, pairs(), collate=COLLATE, loss_type=loss_type)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.02)
    rows = []
    for record in records:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(dpo_losses(model, COLLATE([record]), loss_type=loss_type).sum())
        rows.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad(set_to_none=True)
    norms = norms_of(rows)
    bound = float(norms.median())
    with GhostClipping(model, bound, group=2, lean=lean) as clipper:
        found = clipper.backward(dpo_losses(model, COLLATE(records), loss_type=loss_type))
        expected = clipped(clipper, rows)
    assert error(model, expected) <= 1e-11
    assert float(((found - norms) / norms).abs().max()) <= 1e-11


def test_the_reference_is_the_model_before_it_moves(model: Any) -> None:
    records = with_reference_logps(model, pairs(), collate=COLLATE, batch_size=2)
    losses = dpo_losses(model, COLLATE(records))
    assert losses.detach().numpy() == pytest.approx([math.log(2)] * 5, rel=1e-6)
    assert reward_accuracy(model, records, collate=COLLATE) == 0.5


def test_adapters_are_off_for_the_reference() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    base = build("gpt2", torch.float64)
    expected = with_reference_logps(base, pairs(), collate=COLLATE)
    adapted = peft.get_peft_model(base, config).double()
    assert with_reference_logps(adapted, pairs(), collate=COLLATE) == expected
    assert reward_accuracy(adapted, expected, collate=COLLATE) != 0.5  # random adapters move the answers


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"loss_type": "aot"}, PrivacyRefusal, "loss_type='aot' sorts the margins over the batch"),
        ({"loss_type": "bco_pair"}, PrivacyRefusal, "loss_type='bco_pair' subtracts a running mean"),
        ({"loss_type": "robust"}, InvalidValue, "loss_type='robust'"),
        ({"beta": 0.0}, InvalidValue, "beta=0"),
    ],
)
def test_losses_over_the_batch_are_refused(model: Any, options: dict[str, Any], kind: type, told: str) -> None:
    with pytest.raises(kind, match=told):
        dpo_losses(model, COLLATE(pairs()), **options)


def test_what_the_loss_needs_is_asked_for(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValue, match="no ref_chosen_logps and ref_rejected_logps; compute them once"):
        dpo_losses(model, COLLATE(pairs()))
    monkeypatch.setattr(model.config, "output_router_logits", True, raising=False)
    with pytest.raises(PrivacyRefusal, match="output_router_logits=True adds a load-balancing loss"):
        dpo_losses(model, COLLATE(pairs()))


class Letters:
    """A tokenizer of single letters."""

    eos_token_id = 0

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[3 + ord(c) % 26 for c in text] for text in texts]}


def test_texts_become_pairs_that_fit() -> None:
    rows = [{"prompt": "abcdef", "chosen": "gh", "rejected": "ijkl", "who": "ann"}, {"chosen": "a", "rejected": "b"}]
    first, second = preference_records(rows[:1], Letters(), max_length=8, keep=["who"]) + preference_records(
        rows[1:], Letters(), max_length=8
    )
    assert [len(first[k]) for k in ("prompt_ids", "chosen_ids", "rejected_ids")] == [3, 3, 5]
    assert first["chosen_ids"][-1] == 0 and first["who"] == "ann" and second["prompt_ids"] == [0]
    with pytest.raises(InvalidValue, match="pair 0 has 'None' in 'rejected', where a text must be"):
        preference_records([{"prompt": "a", "chosen": "b"}], Letters(), max_length=8)


def test_a_private_step_on_pairs_is_the_sum_of_their_clipped_gradients() -> None:
    model: Any = build("gpt2", torch.float32)
    records = with_reference_logps(model, pairs(16), collate=COLLATE)
    plan = PrivacyPlan(
        delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="preference", public_size=16,
        expected_batch_size=4, steps=1, clipping_norm=0.05, noise_multiplier=0.0,
    )  # fmt: skip
    rows = []
    for record in records[:3]:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(dpo_losses(model, COLLATE([record])).sum())
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad(set_to_none=True)
    expected = sum(g * min(1.0, 0.05 / float(g.norm())) for g in rows) / 4
    for micro in (1, 8):
        seen: list[Any] = []
        twin: Any = build("gpt2", torch.float32)
        result = train(
            twin, records, plan, collate=COLLATE, loss_fn=dpo_losses, journal=MemoryJournal(), rows_per_record=2,
            sampler=ScriptedSampler([[0, 1, 2]]), noise=NoNoise(), callback=seen.append, physical_batch_size=micro,
            optimizer=OptimizerSettings(algorithm="sgd", learning_rate=0.1),
        )  # fmt: skip
        assert result.preflight is not None  # on made-up pairs, through the collator
        found = torch.cat([t.flatten() for t in seen[0].released])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


class Stacked:
    """Rows as TRL stacks them, every chosen answer and then every rejected one, with the losses that fit them."""

    def __call__(self, records: Any) -> dict[str, Tensor]:
        batch = COLLATE(records)
        return {k: torch.cat([v[0::2], v[1::2]]) if len(v) == 2 * len(records) else v for k, v in batch.items()}

    def losses(self, model: Any, batch: Any) -> Tensor:
        count = len(batch["ref_chosen_logps"])
        order = torch.arange(2 * count).view(2, count).T.flatten()
        rows = {k: v[order] if len(v) == 2 * count else v for k, v in batch.items()}
        inputs = {k: v for k, v in rows.items() if k not in REFERENCE}
        logits = model(**{k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}).logits
        return dpo_losses(_Given(logits[order]), {**inputs, **{k: batch[k] for k in REFERENCE}})


class _Given:
    """Logits that were computed already, as a model."""

    config = None

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def __call__(self, **inputs: Any) -> Any:
        return types.SimpleNamespace(logits=self._logits)


def test_rows_that_stand_beside_another_pairs_are_refused_before_the_first_step() -> None:
    model: Any = build("gpt2", torch.float32)
    stacked = Stacked()
    records = with_reference_logps(model, pairs(8), collate=COLLATE)
    plan = PrivacyPlan(
        delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="preference", public_size=8,
        expected_batch_size=4, steps=1, clipping_norm=0.05, noise_multiplier=1.0,
    )  # fmt: skip
    expected = dpo_losses(model, COLLATE(records))
    torch.testing.assert_close(stacked.losses(model, stacked(records)), expected)  # each a function of its own pair
    journal = MemoryJournal()
    with pytest.raises((PrivacyRefusal, UnsupportedModel), match="clipped sum"):
        train(model, records, plan, collate=stacked, loss_fn=stacked.losses, journal=journal, rows_per_record=2)
    assert not journal.ledger_stages()


def test_pairs_of_one_person_are_clipped_as_one() -> None:
    model: Any = build("gpt2", torch.float32)
    records = with_reference_logps(model, pairs(8), collate=COLLATE)
    plan = PrivacyPlan(
        delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="person", public_size=4,
        expected_batch_size=2, steps=1, clipping_norm=0.05, noise_multiplier=0.0, sampling_unit="unit",
        records_per_unit=3, unit_reduction="sum",
    )  # fmt: skip
    grads = torch.autograd.grad(dpo_losses(model, COLLATE(records[:3])).sum(), list(model.parameters()))
    whole = torch.cat([g.flatten() for g in grads])
    seen: list[Any] = []
    train(
        model, records, plan, collate=COLLATE, loss_fn=dpo_losses, journal=MemoryJournal(), rows_per_record=2,
        units=["a", "a", "a", "b", "c", "d", "d", "d"], sampler=ScriptedSampler([[0]]), noise=NoNoise(),
        callback=seen.append, optimizer=OptimizerSettings(algorithm="sgd", learning_rate=0.1),
    )  # fmt: skip
    found = torch.cat([t.flatten() for t in seen[0].released])
    torch.testing.assert_close(found, whole * (0.05 / whole.norm()) / 2, rtol=1e-4, atol=1e-6)
