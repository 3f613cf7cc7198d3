"""A record's loss and gradient are the same alone and beside longer records, padded on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import causal_lm_losses, sequence_classification_losses
from dpaudit.trainers.huggingface.losses import per_example_losses
from dpaudit.trainers.tasks.losses import classification_losses, token_losses
from dpaudit.trainers.tasks.padding import decoder_labels, refuse_stretched, shifted_targets, starting_left
from dpaudit.trainers.tasks.prompts import logits_at_the_mask
from dpaudit.trainers.zeroth_order.tasks import answer_losses, option_losses
from tests.trainers.ghost.test_families import build

Losses = Callable[[nn.Module, dict[str, Tensor]], Tensor]
PAD = 1  # RoBERTa's padding id, which it looks for
RECORDS = [[5, 6, 7], [9, 4, 8, 12, 3, 20, 11], [13]]


def batch_of(records: list[list[int]], side: str, *, kind: str = "tokens") -> dict[str, Tensor]:
    width = max(map(len, records))

    def padded(row: list[int], fill: int) -> list[int]:
        pads = [fill] * (width - len(row))
        return pads + row if side == "left" else row + pads

    batch = {
        "input_ids": torch.tensor([padded(row, PAD) for row in records]),
        "attention_mask": torch.tensor([padded([1] * len(row), 0) for row in records]),
    }
    if kind == "classes":
        batch["labels"] = torch.tensor([len(row) % 2 for row in records])
    elif kind == "position_ids":
        batch["position_ids"] = torch.tensor([padded(list(range(len(row))), 0) for row in records])
    if kind != "classes":
        batch["labels"] = torch.tensor([padded(row, -100) for row in records])
    return batch


def gradients(model: nn.Module, loss: Tensor) -> Tensor:
    chosen = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, chosen, retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros(p.numel()).to(p) if g is None else g.flatten() for p, g in zip(chosen, found)])


def assert_alone_and_together_agree(model: nn.Module, losses: Losses, side: str, kind: str = "tokens") -> None:
    together = losses(model, batch_of(RECORDS, side, kind=kind))
    for row, record in enumerate(RECORDS):
        alone = losses(model, batch_of([record], side, kind=kind))
        assert float(together[row]) == pytest.approx(float(alone[0]), rel=1e-9, abs=1e-12)
        own = gradients(model, alone[0])
        assert float((gradients(model, together[row]) - own).norm()) <= 1e-7 * float(
            own.norm() + 1e-3
        )  # Gemma norms in fp32


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "gemma3", "mistral"])
def test_causal_losses_do_not_see_padding(family: str, side: str) -> None:
    model = build(family, torch.float64).eval()
    assert_alone_and_together_agree(model, lambda m, b: causal_lm_losses(m, **b), side)
    assert_alone_and_together_agree(model, per_example_losses, side)
    assert_alone_and_together_agree(model, answer_losses, side)
    assert_alone_and_together_agree(model, per_example_losses, side, kind="position_ids")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_chunked_head_does_not_see_padding(family: str, side: str) -> None:
    model = build(family, torch.float64).eval()

    def chunked(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        return per_example_losses(m, b, chunked_head=True)

    assert_alone_and_together_agree(model, chunked, side)
    assert_alone_and_together_agree(model, chunked, side, kind="position_ids")
    batch = batch_of(RECORDS, side)
    assert torch.allclose(chunked(model, batch), per_example_losses(model, batch))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert"])
def test_classification_does_not_see_padding(family: str, side: str) -> None:
    model = build(family, torch.float64).eval()
    assert_alone_and_together_agree(model, sequence_classification_losses, side, kind="classes")
    assert_alone_and_together_agree(model, per_example_losses, side, kind="classes")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["bert-mlm", "roberta-mlm", "t5"])
def test_token_losses_of_encoders_and_decoders_do_not_see_padding(family: str, side: str) -> None:
    model = build(family, torch.float64).eval()
    assert_alone_and_together_agree(model, per_example_losses, side)

    def labels_on_padding(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        return per_example_losses(m, b | {"labels": b["labels"].masked_fill(b["labels"] == -100, 2)})

    if family != "t5":
        assert_alone_and_together_agree(model, labels_on_padding, side)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_and_options_do_not_see_padding(side: str) -> None:
    mask_token = 8

    def prompt(m: nn.Module, b: dict[str, Tensor]) -> Tensor:
        ids = b["input_ids"].clone()
        for row in range(len(ids)):
            ids[row, int(b["attention_mask"][row].nonzero()[0])] = mask_token
        ids = ids.masked_fill(b["attention_mask"] == 0, mask_token)  # a mask token among the padding is no prompt
        logits = logits_at_the_mask(m, b | {"input_ids": ids}, mask_token=mask_token, words=[2, 9])
        return classification_losses(logits, b["labels"])

    records = [[5, 6, 7], [9, 4, 20, 12, 3, 2, 11], [13]]
    model = build("bert-mlm", torch.float64).eval()
    both = prompt(model, batch_of(records, side, kind="classes"))
    for row, record in enumerate(records):
        alone = prompt(model, batch_of([record], side, kind="classes"))
        assert float(both[row]) == pytest.approx(float(alone[0]), rel=1e-9)

    causal = build("gpt2", torch.float64).eval()
    pairs = [RECORDS[0], RECORDS[1], RECORDS[0], [13, 4]]
    batch = batch_of(pairs, side) | {"correct": torch.tensor([1, 0])}
    found = option_losses(causal, batch, options=2)
    alone = option_losses(causal, batch_of(pairs[2:], side) | {"correct": torch.tensor([0])}, options=2)
    assert float(found[1]) == pytest.approx(float(alone[0]), rel=1e-9)


def test_a_target_counts_where_it_and_its_predictor_are_attended() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 1]])
    ids = torch.arange(15).view(3, 5)
    expected = [[-100, -100, 3, 4], [6, 7, -100, -100], [-100, -100, 13, 14]]
    assert shifted_targets(ids, mask).tolist() == expected
    assert shifted_targets(ids, None).tolist() == ids[:, 1:].tolist()
    with pytest.raises(InvalidValue, match=r"attention_mask of shape \(3, 1, 5, 5\)"):
        shifted_targets(ids, mask[:, None, None].expand(3, 1, 5, 5))


def test_decoder_labels_move_to_the_right_whole() -> None:
    labels = torch.tensor([[-100, -100, 3, -100, 4], [5, 6, 7, -100, -100], [-100] * 5])
    assert decoder_labels(labels).tolist() == [[3, -100, 4, -100, -100], [5, 6, 7, -100, -100], [-100] * 5]
    kept = labels[1:2]
    assert decoder_labels(kept) is kept


def test_leading_padding_moves_to_the_end_with_every_field_of_its_tokens() -> None:
    left, right = batch_of(RECORDS, "left", kind="position_ids"), batch_of(RECORDS, "right", kind="position_ids")
    for embedded in ({}, {"inputs_embeds": torch.randn(3, 7, 7)}):
        moved = starting_left(left | embedded)
        for name in right:
            assert moved[name].tolist() == right[name].tolist(), name
        for value in embedded.values():
            assert torch.equal(moved["inputs_embeds"][0, :3], value[0, 4:])
            assert torch.equal(moved["inputs_embeds"][1], value[1])
    whole: dict[str, Any] = left | {"bias": torch.zeros(3, 7, 7)}
    assert starting_left(whole) == whole  # a bias between tokens is not torn
    without = {k: v for k, v in left.items() if k != "attention_mask"}
    assert starting_left(without) == without


def test_rotary_frequencies_that_follow_the_longest_record_are_refused_by_name() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 6, "rope_theta": 1e4}
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=29)
    model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=6, rope_parameters=scaling))
    refuse_stretched(model, 6)
    with pytest.raises(PrivacyRefusal, match=r"batch of 7 tokens exceeds the 6 of rope_type='dynamic'"):
        per_example_losses(model, batch_of(RECORDS, "right"))


LABELS: dict[str, Tensor] = {
    "(B, 1)": torch.tensor([[1], [0], [1]]),
    "several an example": torch.tensor([[1, 0], [0, 0], [1, 1]]),
    "ratings": torch.tensor([0.5, 1.0, 2.0]),
    "a class too many": torch.tensor([0, 2, 1]),
    "a negative class": torch.tensor([0, -1, 1]),
}


@pytest.mark.parametrize("name", LABELS)
def test_class_labels_of_another_kind_get_one_sentence(name: str) -> None:
    model = build("bert", torch.float32).eval()
    batch = batch_of(RECORDS, "right", kind="classes") | {"labels": LABELS[name]}
    for losses in (sequence_classification_losses, per_example_losses):
        with pytest.raises((InvalidValue, PrivacyRefusal), match="labels") as caught:
            losses(model, batch)
        assert "\n" not in str(caught.value) and "Target" not in str(caught.value)


def test_integer_ratings_of_a_model_with_one_score_get_one_sentence() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=29)
    model = BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).eval()
    for ratings in ([3, 4, 5], [0, 0, 0]):
        batch = batch_of(RECORDS, "right", kind="classes") | {"labels": torch.tensor(ratings)}
        with pytest.raises(PrivacyRefusal, match=r"num_labels=1.*per_example_loss=f"):
            per_example_losses(model, batch)
        with pytest.raises(InvalidValue, match=r"logits of shape \(3, 1\)"):
            sequence_classification_losses(model, batch)
    with pytest.raises(InvalidValue, match=r"\(3, 1\)"):
        classification_losses(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


def test_token_labels_of_another_kind_get_one_sentence() -> None:
    model, batch = build("gpt2", torch.float32).eval(), batch_of(RECORDS, "right")
    for labels, message in (
        (batch["labels"][:, :1], r"labels of shape|attention_mask of shape"),
        (batch["labels"].masked_fill(batch["labels"] == 20, 29), r"-100 or in \[0, 29\)"),
        (batch["labels"].masked_fill(batch["labels"] == 20, -1), r"-100 or in \[0, 29\)"),
        (batch["labels"].float(), "integer"),
        (torch.tensor([1, 0, 1]), "per-example loss here|labels of shape"),
    ):
        for chunked in (False, True):
            with pytest.raises((InvalidValue, PrivacyRefusal), match=message):
                per_example_losses(model, batch | {"labels": labels}, chunked_head=chunked)
    with pytest.raises(InvalidValue, match=r"must be \(2, 3\)"):
        token_losses(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
