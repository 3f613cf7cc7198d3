"""Neighbours of texts, candidate losses and gradient norms on tiny models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpaudit import InvalidValue
from dpaudit.attacks import draw_candidates, guess_candidates
from dpaudit.attacks.canaries.canary import from_rows
from dpaudit.attacks.extraction import candidate_losses
from dpaudit.attacks.scores.neighbours import neighbour_texts
from dpaudit.attacks.scores.score_model import gradient_norms

WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[UNK]", "[PAD]", "[MASK]", "[CLS]", *WORDS, *"0123456789"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]", cls_token="[CLS]"
    )


def test_neighbours_differ_in_the_share_asked_for(tokenizer: Any) -> None:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )
    texts = [" ".join(WORDS[:10]), "w3 w4 w5"]
    made = neighbour_texts(model, tokenizer, texts, n=9, rng=np.random.default_rng(0), share=0.2, batch_size=4)
    assert [len(row) for row in made] == [9, 9]
    for text, row, expected in zip(texts, made, (2, 1), strict=True):
        for other in row:
            pairs = list(zip(text.split(), other.split(), strict=True))
            assert sum(a != b for a, b in pairs) == expected and "[" not in other
    assert len({*made[0]}) > 1
    with pytest.raises(InvalidValue, match="share=0"):
        neighbour_texts(model, tokenizer, texts, n=1, rng=np.random.default_rng(0), share=0)


def test_a_model_that_learned_a_secret_gives_it_away() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    characters = "0123456789 acdehiost"
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(["[UNK]", *characters])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=24, n_embd=16, n_layer=1, n_head=2))
    template = "the code is {secret}"
    drawn = draw_candidates(1, 5, rng=np.random.default_rng(0), secret_length=6)
    blind = candidate_losses(model, tokenizer, template, drawn.candidates)
    assert blind.shape == (1, 32)
    # The oracle: one unbatched forward pass per candidate, summed over the six digits.
    model.eval()
    for j, secret in enumerate(drawn.candidates[0][:4]):
        ids = torch.tensor([tokenizer(template.format(secret=secret))["input_ids"]])
        with torch.no_grad():
            table = model(input_ids=ids).logits[0].log_softmax(-1)
        assert blind[0, j] == pytest.approx(-float(sum(table[p - 1, ids[0, p]] for p in range(12, 18))), rel=1e-5)
    ids = torch.tensor([tokenizer(template.format(secret=drawn.inserted[0]))["input_ids"]])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    found = guess_candidates(candidate_losses(model, tokenizer, template, drawn.candidates), drawn.truth)
    assert found.correct == 1 and found.scores[0] > 1


def test_gradient_norms_equal_autograd_one_by_one() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=12, n_embd=8, n_layer=1, n_head=2))
    rng = np.random.default_rng(0)
    rows = [rng.integers(30, size=n).tolist() for n in (4, 7, 5)]
    canaries = from_rows(["a", "b", "c"], rows, [(1, 3), (2,), (1, 2, 3, 4)], kind="test", params={})
    model.train()
    norms = gradient_norms(model, canaries)
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()
    for norm, row, places in zip(norms, rows, ((1, 3), (2,), (1, 2, 3, 4)), strict=True):
        model.zero_grad()
        table = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
        (-sum(table[p - 1, row[p]] for p in places)).backward()
        expected = sum(float((p.grad.double() ** 2).sum()) for p in model.parameters() if p.grad is not None) ** 0.5
        assert norm == pytest.approx(expected, rel=1e-5)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(InvalidValue, match="no trainable parameter"):
        gradient_norms(model, canaries)
