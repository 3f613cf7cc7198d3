"""Canary values, generators, coins, commitment and the secret file."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.attacks import (
    flip_coins,
    label_flip_canaries,
    new_token_canaries,
    random_token_canaries,
    read_secret,
    template_canaries,
    write_secret,
)
from dpaudit.attacks.canaries.canary import CanarySet, commit, inserted
from dpaudit.attacks.canaries.coins import draw_nonce
from dpaudit.attacks.canaries.generate import ModelSampling, high_temperature_canaries, prefix_suffix_canaries
from dpaudit.attacks.canaries.secret import read_open
from dpaudit.storage.commitment import canonical_json

RESERVED = [f"<canary_{i:04d}>" for i in range(40)]
NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Byte-level BPE with 256 bytes, <|end|> and 40 reserved single-id tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<|end|>", special=True)])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in RESERVED])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", model_max_length=64)


@pytest.fixture(scope="module")
def canaries(tokenizer: Any) -> CanarySet:
    return new_token_canaries(tokenizer, 20, reserved_tokens=RESERVED, rng=np.random.default_rng(1))


def test_new_token_canaries_own_their_token_and_score_only_it(tokenizer: Any, canaries: CanarySet) -> None:
    reserved = tokenizer.convert_tokens_to_ids(RESERVED)
    assert canaries.input_ids.shape == (20, 12) and canaries.kind == "new_token"
    for i in range(20):
        canary = canaries[i]
        assert len(canary.positions) == 3 and 0 not in canary.positions
        assert {canary.input_ids[p] for p in canary.positions} == {reserved[i]}
        rest = [t for p, t in enumerate(canary.input_ids) if p not in canary.positions]
        assert not set(rest) & set(reserved) and tokenizer.eos_token_id not in rest
        assert canary.text == tokenizer.decode(canary.input_ids) and RESERVED[i] in canary.text
    assert not canaries.input_ids.flags.writeable


def test_new_token_canaries_refuse_what_cannot_be_inserted(tokenizer: Any) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InvalidValue, match="m=41"):
        new_token_canaries(tokenizer, 41, reserved_tokens=RESERVED, rng=rng)
    with pytest.raises(InvalidValue, match="no single token"):
        new_token_canaries(tokenizer, 1, reserved_tokens=["<absent>"], rng=rng)
    with pytest.raises(InvalidValue, match="repeats a token"):
        new_token_canaries(tokenizer, 1, reserved_tokens=[RESERVED[0]] * 2, rng=rng)
    with pytest.raises(InvalidValue, match="max_length=11 tokens and would be truncated"):
        new_token_canaries(tokenizer, 1, reserved_tokens=RESERVED, rng=rng, max_length=11)
    with pytest.raises(InvalidValue, match="max_length=64"):
        random_token_canaries(tokenizer, 1, rng=rng, length=65)
    with pytest.raises(InvalidValue, match="positions=12"):
        new_token_canaries(tokenizer, 1, reserved_tokens=RESERVED, rng=rng, positions=12)


def test_random_prefix_and_template_canaries(tokenizer: Any) -> None:
    rng = np.random.default_rng(2)
    reserved = tokenizer.convert_tokens_to_ids(RESERVED)
    random = random_token_canaries(tokenizer, 50, rng=rng, length=30, exclude=reserved)
    assert random.score_mask[:, 1:].all() and not set(random.input_ids.ravel()) & set(reserved)
    heads = ["It was a bright day", "He", "It was a bright day"]
    suffixed = prefix_suffix_canaries(tokenizer, heads, rng=rng, suffix_length=5)
    assert suffixed.lengths.tolist() == [24, 7, 24] and suffixed[1].positions == (2, 3, 4, 5, 6)
    assert tokenizer.decode(suffixed[0].input_ids[:19]) == heads[0]
    codes = template_canaries(tokenizer, 30, rng=rng, template="the code is {secret}.", secret_length=4)
    for i in range(30):
        scored = tokenizer.decode([codes[i].input_ids[p] for p in codes[i].positions])
        assert codes[i].text == f"the code is {scored}." and scored.isdigit() and len(scored) == 4
    with pytest.raises(InvalidValue, match="only 10 exist"):
        template_canaries(tokenizer, 11, rng=rng, secret_length=1)
    with pytest.raises(InvalidValue, match="at least one token before"):
        template_canaries(tokenizer, 3, rng=rng, template="{secret} it is")
    assert len(set(template_canaries(tokenizer, 10, rng=rng, secret_length=1).texts)) == 10


def test_label_flip_is_always_wrong(tokenizer: Any) -> None:
    texts, labels = [f"review {i}" for i in range(60)], [i % 3 for i in range(60)]
    flipped = label_flip_canaries(tokenizer, texts, labels, num_labels=3, rng=np.random.default_rng(0))
    assert flipped.labels is not None and (flipped.labels != np.array(labels)).all()
    assert set(flipped.labels.tolist()) == {0, 1, 2} and flipped.texts == tuple(texts)
    records = inserted(flipped, np.ones(60), 1)
    assert [r["labels"] for r in records] == flipped.labels.tolist()
    with pytest.raises(InvalidValue, match="more than once"):
        label_flip_canaries(tokenizer, ["a", "a"], [0, 1], num_labels=2, rng=np.random.default_rng(0))


def test_high_temperature_canaries_follow_the_model(tokenizer: Any) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    model.train()
    made = [
        high_temperature_canaries(
            model,
            tokenizer,
            30,
            ModelSampling(length=10, temperature=t, prompt="Hi"),
            rng=np.random.default_rng(0),
            batch_size=7,
        )
        for t in (1.0, 50.0)
    ]
    assert model.training and made[0].input_ids.shape == (30, 12) and made[0][0].positions == tuple(range(2, 12))
    from dpaudit.attacks import canary_losses

    cold, hot = (canary_losses(model, c).mean() for c in made)
    assert cold < hot  # a hotter sample is less probable under the model that made it


def test_canary_set_refuses_invalid_masks(canaries: CanarySet) -> None:
    import dataclasses

    first = np.zeros_like(canaries.score_mask)
    with pytest.raises(InvalidValue, match="canary 0 has no scored position"):
        dataclasses.replace(canaries, score_mask=first)
    first = first.copy()
    first[:, 0] = True
    with pytest.raises(InvalidValue, match="position 0"):
        dataclasses.replace(canaries, score_mask=first)
    with pytest.raises(InvalidValue, match="more than once"):
        canaries.take([0, 1, 0])
    holes = canaries.attention_mask.copy()
    holes[3, 4] = False
    with pytest.raises(InvalidValue, match="prefix of every row"):
        dataclasses.replace(canaries, attention_mask=holes)


def test_coins_are_fair_independent_bits() -> None:
    coins = flip_coins(200_000)
    assert set(np.unique(coins)) == {0, 1} and coins.dtype == np.int8
    assert abs(coins.mean() - 0.5) < 6 * 0.5 / np.sqrt(200_000)
    lag = (coins[1:] == coins[:-1]).mean()
    assert abs(lag - 0.5) < 6 * 0.5 / np.sqrt(200_000)
    assert (
        flip_coins(9, generator=np.random.default_rng(3)).tolist()
        == flip_coins(9, generator=np.random.default_rng(3)).tolist()
    )
    assert flip_coins(64).tolist() != flip_coins(64).tolist()
    with pytest.raises(InvalidValue, match="m=0"):
        flip_coins(0)


def test_commit_binds_texts_coins_and_copies(canaries: CanarySet) -> None:
    coins = flip_coins(20)
    ids, manifest, digest = commit(canaries, coins, NONCE, 2)
    assert len(set(ids)) == 20 and all(len(i) == 32 for i in ids)
    assert dict(manifest["canaries"]) == dict(zip(ids, coins.tolist(), strict=True)) and manifest["copies"] == 2
    assert digest == hashlib.sha256(NONCE + canonical_json(manifest)).hexdigest()
    flipped = coins.copy()
    flipped[0] ^= 1
    assert commit(canaries, flipped, NONCE, 2).commitment != digest
    assert commit(canaries, coins, NONCE, 1).commitment != digest
    with pytest.raises(InvalidValue, match=r"shape \(19,\)"):
        commit(canaries, coins[1:], NONCE, 1)
    with pytest.raises(InvalidValue, match="must be 0"):
        commit(canaries, coins * 2 + 1, NONCE, 1)


def test_inserted_are_whole_records(canaries: CanarySet) -> None:
    coins = flip_coins(20)
    records = inserted(canaries, coins, 3)
    assert len(records) == 3 * coins.sum()
    rows = [tuple(r["input_ids"]) for r in records]
    assert sorted(rows) == sorted(canaries[i].input_ids for i in np.flatnonzero(coins) for _ in range(3))
    assert all(r["labels"] == r["input_ids"] for r in records)
    for r in inserted(canaries, coins, 1, supervise="scored"):
        assert sum(label != -100 for label in r["labels"]) == 3


def test_secret_file_round_trip(tmp_path: Path, canaries: CanarySet, monkeypatch: pytest.MonkeyPatch) -> None:
    path, coins, nonce = tmp_path / "private" / "canaries.secret.parquet", flip_coins(20), draw_nonce()
    written = write_secret(path, canaries, coins, nonce, 2)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and [p.name for p in path.parent.iterdir()] == [path.name]
    read = read_secret(path)
    assert read.ids == written.ids and read.nonce == nonce and read.copies == 2
    assert read.coins.tolist() == coins.tolist() and read.commitment == commit(canaries, coins, nonce, 2).commitment
    assert read.canaries.digest == canaries.digest and read.canaries.texts == canaries.texts

    import pyarrow.parquet as pq

    asked: list[list[str]] = []
    real = pq.read_table

    def spy(source: Any, columns: list[str]) -> Any:
        asked.append(columns)
        return real(source, columns=columns)

    monkeypatch.setattr(pq, "read_table", spy)
    blind, ids = read_open(path)
    assert ids == read.ids and blind.digest == canaries.digest
    assert not {"coin", "nonce", "copies"} & set(asked[0])


def test_secret_file_refuses_what_was_changed(tmp_path: Path, canaries: CanarySet) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "canaries.secret.parquet"
    write_secret(path, canaries, flip_coins(20), NONCE, 1)
    table = pq.read_table(path)
    texts = table.column("text").to_pylist()
    texts[4] = "another"
    pq.write_table(table.set_column(1, "text", pa.array(texts)), path)
    with pytest.raises(InvalidEvidence, match="1 ids are not the HMAC"):
        read_secret(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(InvalidEvidence, match="no secret canary file"):
        read_secret(path)
    with pytest.raises(InvalidEvidence, match="cannot be read"):
        read_secret(tmp_path / "absent.parquet")


def test_failed_write_leaves_the_old_file(tmp_path: Path, canaries: CanarySet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "canaries.secret.parquet"
    write_secret(path, canaries, flip_coins(20), NONCE, 1)
    before = path.read_bytes()

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_secret(path, canaries, flip_coins(20), NONCE, 1)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_generator_is_public_and_digest_covers_contents(tokenizer: Any, canaries: CanarySet) -> None:
    other = new_token_canaries(tokenizer, 20, reserved_tokens=RESERVED, rng=np.random.default_rng(9))
    assert other.generator_digest == canaries.generator_digest and other.digest != canaries.digest
    assert not any(text in str(canaries.generator) for text in canaries.texts)
