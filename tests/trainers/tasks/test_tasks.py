import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, UnsupportedModel
from dpaudit.privacy.stage import Sampling
from dpaudit.trainers import GhostClipping, Infilling, causal_lm_losses, charged_mean, pad_labelled, trained_parameters
from dpaudit.trainers.huggingface.losses import per_example_losses
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.parameters import head_parameters
from dpaudit.trainers.tasks.metrics import perplexity
from dpaudit.trainers.tasks.text import complete, encode_dialogue, encode_pair, encode_table, linearise_table
from tests.trainers.reference_clipper import LoopClipper


def tokenizer():
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the film is was great terrible It . good bad a pub name : | food You Other"
    text = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words.split())}, unk_token="[UNK]"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    text.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=text, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", eos_token="[SEP]"
    )


def gpt2(**changes):
    torch.manual_seed(0)
    sizes = dict(n_layer=1, n_head=2, n_embd=16, vocab_size=30, n_positions=64, bos_token_id=3, eos_token_id=3)
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **changes})).eval()


SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, vocab_size=30)


# -- metrics ------------------------------------------------------------
def test_perplexity_weighs_tokens_and_not_records():
    model = gpt2()
    records = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}, {"input_ids": [9, 4], "labels": [9, 4]}]
    batch = pad_labelled(records, pad=0)
    means = causal_lm_losses(model, **batch)
    expected = math.exp((3 * means[0].item() + means[1].item()) / 4)
    for size in (1, 2):
        found = perplexity(model, records, lambda rows: pad_labelled(rows, pad=0), batch_size=size)
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_charged_mean_is_bounded_noised_and_counted():
    journal = MemoryJournal()
    values = [1.0, 0.0, 50.0, math.nan]
    found = charged_mean(values, 1.0, noise_multiplier=3.0, public_size=10, journal=journal, noise=NoNoise())
    assert found == pytest.approx(0.2)
    (stage,) = journal.ledger_stages()
    assert (stage.sampling, stage.sampling_probability, stage.noise_multiplier) == (Sampling.NONE, 1.0, 3.0)
    assert (stage.steps, stage.clipping_norm) == (1, 1.0)
    noisy = [
        charged_mean(values, 1.0, noise_multiplier=3.0, public_size=10, journal=MemoryJournal()) for _ in range(400)
    ]
    assert torch.tensor(noisy).std().item() == pytest.approx(0.3, rel=0.2)


# -- text to records ------------------------------------------------------------
def test_infilling_keeps_its_mask_and_cuts_the_text():
    task = Infilling.named(tokenizer(), "sst-2")
    record = task.encode(["the film " * 30], 1, length=16)
    assert len(record["input_ids"]) == 16 and record["input_ids"].count(4) == 1
    assert task.label_tokens == (10, 9)
    short = task.encode(["the film"], 0, length=16)
    batch = task.collate([record, short])
    assert batch["input_ids"].shape == (2, 16) and batch["labels"].tolist() == [1, 0]
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SMALL)).eval()
    losses = task.losses(model, batch)
    logits = model(input_ids=torch.tensor([short["input_ids"]])).logits[0, short["input_ids"].index(4)]
    assert losses[1].item() == pytest.approx(-logits[[10, 9]].log_softmax(0)[0].item(), abs=1e-5)


def test_infilling_prompts_have_one_mask_whatever_the_text_says():
    task = Infilling.named(tokenizer(), "sst-2")
    mask = task.tokenizer.mask_token
    for text in (f"the {mask} film", f"{mask[:2]}{mask}{mask[2:]} film", "<mask> film {0}"):
        record = task.encode([text], 0, length=24)
        assert record["input_ids"].count(task.tokenizer.mask_token_id) == 1, text


def test_infilling_reads_a_row_without_a_mask_instead_of_stopping_a_private_step():
    task = Infilling.named(tokenizer(), "sst-2")
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SMALL)).eval()
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3), "labels": torch.tensor([1])}
    first = model(input_ids=batch["input_ids"]).logits[0, 0, list(task.label_tokens)]
    assert task.losses(model, batch).item() == pytest.approx(-first.log_softmax(0)[1].item(), abs=1e-5)


def test_infilling_refuses_what_has_no_single_token():
    with pytest.raises(InvalidValue, match="'wonderful' is not one known token"):
        Infilling(tokenizer(), "{0} <mask>.", ("wonderful", "bad"))
    with pytest.raises(InvalidValue, match="2 times"):
        Infilling(tokenizer(), "{0} <mask> <mask>", ("good", "bad"))
    with pytest.raises(InvalidValue, match="task='sst-9'"):
        Infilling.named(tokenizer(), "sst-9")
    with pytest.raises(InvalidValue, match="length=5"):
        Infilling.named(tokenizer(), "sst-2").encode(["film"], 0, length=5)


def test_pairs_count_the_target_alone():
    record = encode_pair(tokenizer(), "name : pub", "the film", length=32)
    assert record["input_ids"] == [17, 18, 16, 3, 5, 6, 3] and record["labels"] == [-100] * 4 + [5, 6, 3]
    cut = encode_pair(tokenizer(), "name : pub", "the film", length=5)
    assert cut["input_ids"] == [16, 3, 5, 6, 3] and cut["labels"] == [-100, -100, 5, 6, 3]
    tiny = encode_pair(tokenizer(), "name : pub", "the film is great", length=3)
    assert tiny["input_ids"] == [3, 5, 6]


def test_the_loss_of_a_pair_ignores_what_the_source_would_predict():
    model = gpt2()
    record = encode_pair(tokenizer(), "name : pub", "the film", length=32)
    loss = causal_lm_losses(model, **pad_labelled([record], pad=0))
    logp = model(torch.tensor([record["input_ids"]])).logits[0].log_softmax(-1)
    assert loss.item() == pytest.approx(-(logp[3, 5] + logp[4, 6] + logp[5, 3]).item() / 3, abs=1e-5)


def test_tables_and_dialogues():
    assert encode_table(tokenizer(), {"name": "pub", "food": "good"}, "the film")["labels"][-3:] == [5, 6, 3]
    record = encode_dialogue(tokenizer(), ["a film"], ["It is good", "the film"], "It was great", length=64)
    assert [i for i in record["labels"] if i != -100] == [11, 8, 9, 3]
    assert record["input_ids"].count(21) >= 1  # both speakers are named
    assert linearise_table({"a": "b"}) == "a : b"


def test_completion_reads_what_a_pair_wrote():
    model = gpt2()
    record = encode_pair(tokenizer(), "name : pub", "the film", length=32)
    batch = pad_labelled([record], pad=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(40):
        optimizer.zero_grad()
        causal_lm_losses(model, **batch).sum().backward()
        optimizer.step()
    assert complete(model, tokenizer(), ["name : pub"], max_new_tokens=5) == ["the film"]


# -- which parameters ------------------------------------------------------------
def names(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def test_heads_and_biases():
    model = BertForSequenceClassification(BertConfig(**SMALL))
    assert names(trained_parameters(model, "head")) == {"classifier.weight", "classifier.bias"}
    bias = names(trained_parameters(model, "bias"))
    assert bias == {n for n, _ in model.named_parameters() if n.endswith("bias")} | {"classifier.weight"}
    assert len(names(trained_parameters(model, "all"))) == len(list(model.parameters()))


def test_a_tied_output_layer_is_an_embedding_and_not_a_head():
    model = gpt2()
    assert head_parameters(model) == frozenset()
    with pytest.raises(UnsupportedModel, match="tied"):
        trained_parameters(model, "head")
    assert head_parameters(gpt2(tie_word_embeddings=False)) == {"lm_head.weight"}
    assert "transformer.wte.weight" not in names(trained_parameters(model, "bias"))
    with pytest.raises(InvalidValue, match="rank"):
        trained_parameters(model, "all", rank=3)
    with pytest.raises(InvalidValue, match="'size'"):
        trained_parameters(model, "lora", size=3)


@pytest.mark.parametrize("options", [{}, {"targets": ["no_such_layer"]}])
def test_adapters_that_fit_nowhere_are_one_sentence(options):
    pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(UnsupportedModel, match=r"cannot be given lora by peft.*choose 'all' or 'bias'"):
        trained_parameters(model, "lora", **options)


@pytest.mark.parametrize(("choice", "options"), [("lora", {"rank": 2}), ("prefix", {"length": 3})])
def test_adapters_are_clipped_exactly(choice, options):
    pytest.importorskip("peft")
    model = trained_parameters(gpt2(), choice, **options)
    assert 0 < sum(p.numel() for p in model.parameters() if p.requires_grad) < 1000
    torch.manual_seed(1)
    for p in model.parameters():  # LoRA's B starts at zero, where half of the gradient vanishes
        if p.requires_grad:
            p.data.normal_(0, 0.3)
    batch = pad_labelled([{"input_ids": x, "labels": x} for x in ([5, 6, 7, 8], [9, 4, 11], [3, 3])], pad=0)
    sums = []
    for make in (GhostClipping, LoopClipper):
        model.zero_grad(set_to_none=True)
        clipper = make(model, 0.05)
        clipper.backward(per_example_losses(model, batch))
        sums.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        getattr(clipper, "close", lambda: None)()
    assert float((sums[0] - sums[1]).norm() / sums[1].norm()) < 1e-5
