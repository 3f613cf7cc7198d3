"""Tiny random models of every supported family, unmodified and called in the default way, against the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.clipping import Flat
from dpaudit.trainers.ghost.clipper import GhostClipping
from tests.trainers.ghost.ghost_oracle import compare

BODY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 29}
GROUPED = BODY | {"num_key_value_heads": 1, "head_dim": 8}
ENCODER = BODY | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "max_position_embeddings": 32}
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 29, "dropout_rate": 0,
    "relative_attention_num_buckets": 6, "decoder_start_token_id": 0,
}  # fmt: skip
GPT2 = {
    "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 29, "n_positions": 16, "resid_pdrop": 0, "embd_pdrop": 0,
    "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
DISTIL = {
    "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 29, "dropout": 0, "attention_dropout": 0,
    "seq_classif_dropout": 0, "max_position_embeddings": 32,
}  # fmt: skip
ALBERT = ENCODER | {"embedding_size": 8, "classifier_dropout_prob": 0}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FALCON = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 29, "hidden_dropout": 0,
    "attention_dropout": 0, "max_position_embeddings": 32, "bias": True,
}  # fmt: skip
OPT = BODY | {"ffn_dim": 24, "max_position_embeddings": 32, "dropout": 0, "word_embed_proj_dim": 16}

# family: (class, config class, arguments, every weight-tying choice)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"tie_word_embeddings": False}),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", GROUPED | {"tie_word_embeddings": True}),  # as SmolLM
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GROUPED),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON),
    "bert": ("BertForSequenceClassification", "BertConfig", ENCODER),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", ENCODER),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", ENCODER),
    "roberta-mlm": ("RobertaForMaskedLM", "RobertaConfig", ENCODER),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", ENCODER | {"relative_attention_num_buckets": 32}),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", ALBERT),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5-gated": ("T5ForConditionalGeneration", "T5Config", GATED),
}  # fmt: skip


def build(family: str, dtype: torch.dtype) -> nn.Module:
    kind, config, arguments = FAMILIES[family]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**arguments)).to(dtype)
    with torch.no_grad():  # away from the gains of one and biases of zero that hide mistakes
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.train()


def losses_of(model: nn.Module) -> Callable[[slice], Tensor]:
    ids = torch.randint(3, 29, (4, 7), generator=torch.Generator().manual_seed(1))
    ids[:, 3] = ids[:, 1]  # repeated tokens
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[mask == 0] = 1  # RoBERTa's padding id
    labels = torch.tensor([0, 1, 1, 0])

    def losses(rows: slice) -> Tensor:
        inputs = {"input_ids": ids[rows], "attention_mask": mask[rows]}
        if "T5" in type(model).__name__:  # also with the prefix that fully_shard puts before it
            inputs["decoder_input_ids"] = ids[rows][:, :-1]
            logits = model(**inputs).logits
        else:
            logits = model(**inputs).logits
            if logits.dim() == 2:
                return nn.functional.cross_entropy(logits, labels[rows], reduction="none")
            logits = logits[:, :-1]
        each = nn.functional.cross_entropy(logits.mT, ids[rows][:, 1:], reduction="none")
        weight = mask[rows][:, 1:]
        return (each * weight).sum(1) / weight.sum(1)

    return losses


@pytest.mark.parametrize("family", FAMILIES)
def test_family_equals_the_loop_in_fp64(family: str) -> None:
    model = build(family, torch.float64)
    lean = sum(map(ord, family)) % 2 == 0  # both modes get their share of families
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat, lean=lean)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama-tied", "t5", "opt", "gemma"])
def test_family_equals_the_loop_in_fp32(family: str) -> None:
    model = build(family, torch.float32)
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat)
    assert wrong <= 1e-5 and norm_wrong <= 1e-5


def test_a_position_bias_of_another_form_is_refused_by_name() -> None:
    config = transformers.LongT5Config(**T5, local_radius=3)
    model = transformers.LongT5ForConditionalGeneration(config)
    ids = torch.randint(3, 29, (2, 7))
    with GhostClipping(model, 1.0), pytest.raises(UnsupportedModel, match=r"relative_attention_bias.* of 5 axes"):
        model(input_ids=ids, decoder_input_ids=ids)
    assert "compute_bias" not in vars(model.encoder.block[0].layer[0].LocalSelfAttention)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_gradient_checkpointing_is_right(family: str, reentrant: bool, lean: bool) -> None:
    model: Any = build(family, torch.float64)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        # The loop needs inputs that require a gradient; the clipper's own recorders already do.
        model.enable_input_require_grads()
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat, lean=lean)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


def test_bf16_autocast_is_as_near_as_autocast_itself() -> None:
    model = build("gpt2", torch.float32)
    losses = losses_of(model)

    def half(rows: slice) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses(rows).float()

    wrong, norm_wrong = compare(model, half, 4, Flat)
    assert wrong <= 2e-2 and norm_wrong <= 2e-2


def test_bf16_weights_get_fp32_sums() -> None:
    model = build("gpt2", torch.bfloat16)
    losses = losses_of(model)
    with GhostClipping(model, 1e-3) as clipper:
        clipper.backward(losses(slice(None)).float())
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.dtype is torch.float32 for g in grads)
    total = torch.stack([g.norm() for g in grads if g is not None]).norm()
    assert total <= 4e-3 * (1 + 1e-6)


def test_lora_on_tied_gpt2() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    model = peft.get_peft_model(build("gpt2", torch.float64), config).double()
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11
    assert all("lora" in n for n, p in model.named_parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prefix_tuning(family: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(build(family, torch.float64), config).double()
    ids = torch.randint(3, 29, (4, 7))

    def losses(rows: slice) -> Tensor:
        logits = model(input_ids=ids[rows]).logits[:, :-1]
        return nn.functional.cross_entropy(logits.mT, ids[rows][:, 1:], reduction="none").mean(1)

    wrong, norm_wrong = compare(model, losses, 4, Flat)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


def test_prompt_tuning_is_refused_by_name() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(UnsupportedModel, match="PromptEmbedding"):
        GhostClipping(peft.get_peft_model(build("gpt2", torch.float32), config), 1.0)


@pytest.mark.parametrize("trained", ["bias", "ln_", "wte", "wpe", "c_attn.weight"])
def test_frozen_subsets(trained: str) -> None:
    model = build("gpt2", torch.float64)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    wrong, norm_wrong = compare(model, losses_of(model), 4, Flat)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


def test_deberta_is_refused_by_name() -> None:
    config = transformers.DebertaV2Config(
        **ENCODER, relative_attention=True, pos_att_type=["c2p"], pooler_hidden_size=16
    )
    with pytest.raises(UnsupportedModel, match="DisentangledSelfAttention"):
        GhostClipping(transformers.DebertaV2ForSequenceClassification(config), 1.0)


def test_experts_are_refused_by_name() -> None:
    arguments = GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**arguments))
    losses = losses_of(model)
    with pytest.raises(UnsupportedModel, match=r"parameter .*cannot be clipped"):
        with GhostClipping(model, 1.0) as clipper:
            clipper.backward(losses(slice(None)))
    assert all(p.grad is None for p in model.parameters())
