"""Pretrain the bundled checkpoint: a 1.5 M parameter GPT-2 on the public example texts only.

    python examples/pretrain.py

It fits a byte-level BPE tokenizer, adds one reserved token per default canary at the end of the vocabulary
(these never occur in the text), trains on one record a row (`<|endoftext|>` record `<|endoftext|>`, cut at
64 tokens) and writes `examples/model/`, model card included. The private records are never read; the held-out
ones only to report perplexity. It takes about a quarter of an hour on two CPU cores. Seeded: a rerun
with the same library versions on the same kind of CPU gives the same weights up to rounding.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
EOS, PAD = "<|endoftext|>", "<|pad|>"
BPE_VOCAB, CANARIES = 4096, 1024
MAX_TOKENS, BATCH = 64, 64
KJV_HELDOUT_EVERY = 60  # every 60th verse is kept out of pretraining, to measure perplexity on

CARD = """# A small causal language model for the examples

A GPT-2 with {parameters:,} parameters (4 layers, 4 heads, width 128, 128 positions, tied embeddings, no
dropout; fp16 weights), pretrained from scratch by `examples/pretrain.py`. It is a starting point for examples
and tests of private fine-tuning, not a useful language model.

- **Training data**: the King James Bible ({verses:,} verses) and two novels by Jane Austen ({paragraphs:,}
  records), all in the public domain; see `examples/data/README.md`. Neither the tokenizer nor the model has
  seen `austen_private.txt.xz` or `austen_heldout.txt.xz`, which come from other novels.
- **Tokenizer**: byte-level BPE, vocabulary {vocab:,}: `<|endoftext|>` = 0 (begin and end), `<|pad|>` = 1,
  learned tokens up to {last_bpe}, and {canaries:,} reserved tokens, `<canary_0000>` = {first_canary} to
  `<canary_1023>` = {last_canary}, one per default canary; they never occur in the pretraining text. The
  tokenizer does not add `<|endoftext|>` by itself.
- **Training**: {steps:,} steps ({epochs} epochs) of {batch} records cut at {max_tokens} tokens, AdamW, peak
  learning rate {lr}, cosine schedule, seed {seed}, fp32 on CPU, torch {torch_version}.
- **Perplexity per token** (records cut at {max_tokens} tokens, end token included):
  {heldout_ppl:.1f} on `austen_heldout.txt.xz`, {kjv_ppl:.1f} on {kjv_heldout} verses kept out of training.

Made by:

```
python examples/pretrain.py --epochs {epochs} --lr {lr} --seed {seed} --threads {threads}
```
"""


def read_lines(name: str) -> list[str]:
    return lzma.decompress((HERE / "data" / name).read_bytes()).decode("utf-8").splitlines()


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE fitted on `texts`, with the reserved tokens as the last ids."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=BPE_VOCAB, special_tokens=[EOS, PAD], initial_alphabet=alphabet)
    )
    bpe.add_tokens([AddedToken(f"<canary_{i:04d}>", normalized=False) for i in range(CANARIES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, pad_token=PAD, model_max_length=128
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    eos = tokenizer.eos_token_id
    return [[eos, *ids, eos][:MAX_TOKENS] for ids in tokenizer(texts)["input_ids"]]


def batches(rows: list[list[int]], rng: random.Random) -> list[list[list[int]]]:
    """Batches of rows of similar length, in random order (random ties, so that they differ every epoch)."""
    order = sorted(rows, key=lambda row: len(row) + 4 * rng.random())
    cut = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    rng.shuffle(cut)
    return cut


def batch_loss(model: GPT2LMHeadModel, batch: list[list[int]], pad: int) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy of the next token and the number of tokens predicted."""
    width = max(map(len, batch))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
    real = ids[:, 1:] != pad  # rows are padded on the right and attention is causal: no mask needed
    hidden = model.transformer(ids[:, :-1]).last_hidden_state[real]
    return F.cross_entropy(model.lm_head(hidden), ids[:, 1:][real], reduction="sum"), int(real.sum())


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, rows: list[list[int]], pad: int) -> float:
    model.eval()
    parts = [batch_loss(model, rows[i : i + BATCH], pad) for i in range(0, len(rows), BATCH)]
    return math.exp(sum(loss.item() for loss, _ in parts) / sum(count for _, count in parts))


def train(model: GPT2LMHeadModel, rows: list[list[int]], pad: int, epochs: int, lr: float, seed: int) -> int:
    """AdamW with a short warm-up and a cosine schedule; returns the number of steps."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    steps = epochs * math.ceil(len(rows) / BATCH)
    warmup = steps // 50 + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.02 + 0.49 * (1 + math.cos(math.pi * s / steps)))
    )
    rng = random.Random(seed)
    step = tokens = 0
    start = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        for batch in batches(rows, rng):
            loss, count = batch_loss(model, batch, pad)
            optimizer.zero_grad()
            (loss / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step, tokens = step + 1, tokens + count
            if step % 100 == 0:
                rate = tokens / (time.perf_counter() - start)
                print(
                    f"epoch {epoch} step {step}/{steps} loss {loss.item() / count:.3f} {rate:.0f} tokens/s",
                    flush=True,
                )
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    kjv, austen = read_lines("kjv.txt.xz"), read_lines("austen_public.txt.xz")
    kjv_heldout = kjv[::KJV_HELDOUT_EVERY]
    kjv_train = [verse for i, verse in enumerate(kjv) if i % KJV_HELDOUT_EVERY]
    tokenizer = build_tokenizer(kjv_train + austen)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=128, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=eos, eos_token_id=eos, pad_token_id=pad, tie_word_embeddings=True,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    rows = encode(tokenizer, kjv_train + austen)
    print(
        f"{model.num_parameters():,} parameters, {len(rows):,} rows, {sum(map(len, rows)):,} tokens",
        flush=True,
    )
    steps = train(model, rows, pad, args.epochs, args.lr, args.seed)

    model.to(torch.float16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    settings = json.loads((args.out / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that older transformers know, too
    (args.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (args.out / "model.safetensors").chmod(0o644)
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    card = CARD.format(
        parameters=model.num_parameters(), verses=len(kjv_train), paragraphs=len(austen),
        kjv_heldout=len(kjv_heldout),
        vocab=len(tokenizer), last_bpe=BPE_VOCAB - 1, canaries=CANARIES,
        first_canary=tokenizer.convert_tokens_to_ids("<canary_0000>"),
        last_canary=tokenizer.convert_tokens_to_ids(f"<canary_{CANARIES - 1:04d}>"),
        steps=steps, epochs=args.epochs, batch=BATCH, max_tokens=MAX_TOKENS, lr=args.lr, seed=args.seed,
        threads=args.threads, torch_version=torch.__version__.split("+")[0],
        heldout_ppl=perplexity(model, encode(tokenizer, read_lines("austen_heldout.txt.xz")), pad),
        kjv_ppl=perplexity(model, encode(tokenizer, kjv_heldout), pad),
    )  # fmt: skip
    (args.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
