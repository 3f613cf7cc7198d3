"""Losses, batches and model kinds of forward-only training: prompts, answers, options, encoders, LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpaudit import InvalidValue, UnsupportedModel
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.tasks.losses import classification_losses
from dpaudit.trainers.tasks.prompts import PROMPTS, logits_at_the_mask
from dpaudit.trainers.zeroth_order.stages import ZOPlan, ZOStage, dpzero, zoso
from dpaudit.trainers.zeroth_order.tasks import (
    answer_losses,
    fixed_length,
    option_losses,
)
from dpaudit.trainers.zeroth_order.weights import replay
from tests.trainers.zeroth_order.zo_helpers import gpt_losses, plan, run, seeded_noise, tiny_gpt, token_records


def tiny_bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def prompts(count: int) -> dict[str, Tensor]:
    rows = torch.stack(token_records(count, length=8)).clamp(min=5)
    rows[:, 3] = 4
    return {"input_ids": rows, "labels": torch.arange(count) % 2}


def test_prompt_loss_is_the_label_words_cross_entropy_at_the_mask() -> None:
    model, batch = tiny_bert(), prompts(3)
    found = classification_losses(logits_at_the_mask(model, batch, mask_token=4, words=[10, 20]), batch["labels"])
    logits = model(input_ids=batch["input_ids"]).logits[:, 3, [10, 20]]
    expected = -logits.log_softmax(-1)[torch.arange(3), batch["labels"]]
    assert torch.allclose(found, expected)
    batch["input_ids"][1, 3] = 6  # without a mask: an error would tell that such a record is there
    assert logits_at_the_mask(model, batch, mask_token=4, words=[10, 20]).isfinite().all()


def test_answer_loss_counts_answer_tokens_alone() -> None:
    model = tiny_gpt().eval()
    ids = torch.stack(token_records(3, length=8))
    labels = ids.clone()
    labels[:, :5] = -100
    labels[2] = -100  # no answer at all: 0, not 0/0
    found = answer_losses(model, {"input_ids": ids, "labels": labels})
    logs = model(input_ids=ids).logits.log_softmax(-1)
    for i in range(2):
        expected = -sum(logs[i, t - 1, ids[i, t]] for t in (5, 6, 7)) / 3
        assert found[i].item() == pytest.approx(float(expected), rel=1e-5)
    assert found[2].item() == 0.0


def test_option_loss_is_one_number_per_example_never_a_mean_over_the_batch() -> None:
    model = tiny_gpt().eval()
    ids = torch.stack(token_records(6, length=8))
    labels = ids.clone()
    labels[:, :5] = -100
    batch = {"input_ids": ids, "labels": labels, "correct": torch.tensor([0, 2])}
    found = option_losses(model, batch, options=3)
    scores = -answer_losses(model, {"input_ids": ids, "labels": labels}).view(2, 3)
    assert torch.allclose(found, -scores.log_softmax(-1)[[0, 1], [0, 2]])
    with pytest.raises(InvalidValue, match="multiple of options=4"):
        option_losses(model, batch, options=4)


def test_every_prompt_has_one_mask_and_a_word_per_class() -> None:
    assert all(text.count("<mask>") == 1 and len(set(words)) == len(words) for text, words in PROMPTS.values())


def test_batches_are_padded_to_one_length() -> None:
    def collate(rows: list[list[int]]) -> dict[str, Tensor]:
        ids = torch.tensor(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "class": ids[:, 0]}

    batch = fixed_length(collate, 5, pad=9)([[1, 2], [3, 4]])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9, 9], [3, 4, 9, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0]] * 2
    assert batch["labels"].tolist()[0] == [1, 2, -100, -100, -100]
    assert batch["class"].tolist() == [1, 3]
    with pytest.raises(InvalidValue, match="length=1"):
        fixed_length(collate, 1, pad=9)([[1, 2]])


def test_an_encoder_trains_on_prompts_and_replays() -> None:
    batch = prompts(40)
    records = [{key: value[i] for key, value in batch.items()} for i in range(40)]

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def losses(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        return classification_losses(logits_at_the_mask(model, rows, mask_token=4, words=[10, 20]), rows["labels"])

    model = tiny_bert()
    # BertForMaskedLM ties its decoder; the unused pooler is not there, so that every weight is reached.
    result, _ = run(
        model, records, zoso(plan(steps=3), learning_rate=0.1, scale=1e-3), collate=collate, loss_fn=losses,
        noise=seeded_noise(1),
    )  # fmt: skip
    again = replay(result.log, tiny_bert())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_lora_on_a_half_precision_base_moves_the_adapters_alone() -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
        model = peft.get_peft_model(tiny_gpt().bfloat16(), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return model

    model, base = adapted(), adapted()
    stages = dpzero(plan(steps=3, clipping_norm=10.0), learning_rate=0.1, scale=1e-2)
    result, _ = run(model, token_records(40), stages, loss_fn=gpt_losses, noise=seeded_noise(1))
    for (name, a), b in zip(model.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(a, b) is ("lora" not in name), name
    again = replay(result.log, adapted())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_an_empty_first_draw_does_not_skip_the_check_of_the_model() -> None:
    class NeverCalled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)[:, 0]

    stages = ZOPlan((ZOStage(plan=plan(steps=2), learning_rate=0.1, scale=0.1),))
    with pytest.raises(UnsupportedModel, match=r"'unused\.weight'"):
        run(NeverCalled(), [torch.ones(4)] * 40, stages, sampler=ScriptedSampler([[], [1, 2]]))
