"""Small models, pretrained here on public text alone, and the tokenizer they share.

Nothing is downloaded: three causal models (GPT-2 in small) for rows 1, 2, 4, 5, 7 and 8, one masked model (BERT in
small) for rows 3 and 4. Each takes a minute or two on one core and is kept in ``FOLDER``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from findings import texts

FOLDER = Path(os.environ.get("DPAUDIT_FINDINGS_MODELS", Path(tempfile.gettempdir()) / "dpaudit_findings_models"))
END, PAD, MASK, UNKNOWN = "<|endoftext|>", "<|pad|>", "<mask>", "<|unknown|>"
VOCABULARY, LENGTH, BATCH = 2048, 40, 64


@dataclasses.dataclass(frozen=True)
class Size:
    """Layers, width and heads of a model."""

    layers: int
    width: int
    heads: int


SIZES = {"tiny": Size(1, 12, 2), "small": Size(1, 24, 2), "medium": Size(2, 40, 4), "trial": Size(1, 16, 2)}
EPOCHS, RATE = 3, 5e-3


@functools.cache
def tokenizer() -> Any:
    """Byte-level BPE fitted on the pretraining text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END, PAD, MASK, UNKNOWN]
    bpe.train_from_iterator(
        texts.pretraining(),
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, mask_token=MASK, unk_token=UNKNOWN
    )


def encoded(records: tuple[str, ...] | list[str], length: int = LENGTH) -> list[list[int]]:
    """Token ids between two end tokens, cut to ``length``."""
    end = tokenizer().eos_token_id
    return [[end, *ids, end][:length] for ids in tokenizer()(list(records))["input_ids"]]


def causal(size: str, seed: int = 0) -> Any:
    """A GPT-2 of one of ``SIZES`` with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    shape, end = SIZES[size], tokenizer().eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer()), n_positions=128, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end,
        pad_token_id=tokenizer().pad_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def masked(size: str, seed: int = 0) -> Any:
    """A BERT of one of ``SIZES`` with an output layer for masked words and random weights."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    shape = SIZES[size]
    config = BertConfig(
        vocab_size=len(tokenizer()), hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=4 * shape.width, max_position_embeddings=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=tokenizer().pad_token_id,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


def model(kind: str, size: str) -> Any:
    """The pretrained model of a kind ("causal", "masked") and size; pretrained now if it is not in ``FOLDER``."""
    path = FOLDER / f"{kind}_{size}.pt"
    fresh = causal(size) if kind == "causal" else masked(size)
    if size == "trial":
        return fresh
    if not path.exists():
        pretrain(fresh, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        torch.save(fresh.state_dict(), temporary)
        temporary.replace(path)
    fresh.load_state_dict(torch.load(path))
    return fresh


def pretrain(network: nn.Module, kind: str, *, steps: int | None = None) -> None:
    """AdamW with warm-up and cosine decay on the public text; batches of rows of similar length."""
    rows, rng = encoded(list(texts.pretraining())), random.Random(0)
    total = steps if steps is not None else EPOCHS * math.ceil(len(rows) / BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    warm = total // 50 + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.02 + 0.49 * (1 + math.cos(math.pi * s / total)))
    )
    network.train()
    done, begun = 0, time.process_time()
    while done < total:
        order = sorted(rows, key=lambda row: len(row) + 4 * rng.random())
        cut = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        rng.shuffle(cut)
        for batch in cut[: total - done]:
            loss = _masked_loss(network, batch, rng) if kind == "masked" else _next_loss(network, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done % 200 == 0:
                print(
                    f"pretraining {done}/{total} loss {loss.item():.3f} {time.process_time() - begun:.0f} s", flush=True
                )
    network.eval()


def _padded(batch: list[list[int]]) -> Tensor:
    width, pad = max(map(len, batch)), tokenizer().pad_token_id
    return torch.tensor([row + [pad] * (width - len(row)) for row in batch])


def _next_loss(network: Any, batch: list[list[int]]) -> Tensor:
    ids = _padded(batch)
    real = ids[:, 1:] != tokenizer().pad_token_id
    hidden = network.transformer(ids[:, :-1]).last_hidden_state[real]
    return F.cross_entropy(network.lm_head(hidden), ids[:, 1:][real])


def _masked_loss(network: Any, batch: list[list[int]], rng: random.Random) -> Tensor:
    """Every fifth token is hidden, on average."""
    ids = _padded(batch)
    attended = ids != tokenizer().pad_token_id
    chosen = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(rng.randrange(1 << 30))) < 0.2) & attended
    chosen[:, 1] = True
    hidden = network.bert(ids.masked_fill(chosen, tokenizer().mask_token_id), attention_mask=attended.long())
    return F.cross_entropy(network.cls(hidden.last_hidden_state[chosen]), ids[chosen])
