"""Classes as words in a gap, from the configuration to a certificate that is derived again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.config import parse_config
from tests.runs.run_helpers import run_cli, small_config, write_toml

WORDS = [f"w{i}" for i in range(30)]
SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "It", "was", "bad", "good", ".", "so", "fine"]


def tiny_masked_model(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    )
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reviews(path: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(count)]
    texts[0] += " [MASK] <mask> [MA[MASK]SK]"  # a record may say anything
    rows = [{"text": text, "label": ["no", "yes"][i % 2]} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture()
def config(tmp_path: Path) -> dict[str, Any]:
    value = small_config(
        model__path=str(tiny_masked_model(tmp_path / "model")),
        model__task="text-infilling",
        model__template="{0} It was <mask> .",
        model__words=["bad", "good"],
        canaries__kind="label-flip",
        data__path=str(reviews(tmp_path / "private.jsonl", 60, 0)),
        data__heldout=str(reviews(tmp_path / "public.jsonl", 40, 1)),
        data__labels=["no", "yes"],
        privacy__steps=2,
        audit__attack="loss-drop",
    )
    for key in ("length", "positions"):
        del value["canaries"][key]
    return value


@pytest.mark.slow
def test_run_trains_audits_controls_and_verifies(tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoModelForMaskedLM

    out = tmp_path / "run"
    made = run_cli("certify", write_toml(tmp_path / "c.toml", config), "--out", out, "--control", "--json")
    assert made.code == 2, made.error
    assert run_cli("verify", out).code == 2
    released = AutoModelForMaskedLM.from_pretrained(out / "release" / "model").config
    assert released.id2label == {0: "no", 1: "yes"}
    assert released.text_infilling == {"template": "{0} It was <mask> .", "words": ["bad", "good"]}
    facts = json.loads((out / "run.json").read_text())["facts"]
    assert 0 <= facts["heldout_after"] <= 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model__words": ["bad"]}, "must be 2 different words"),
        ({"model__words": ["so fine", "bad"]}, "'so fine' is not one known token"),
        ({"model__template": "It was <mask>"}, "has no place {0}"),
        ({"model__template": "{0} was {kind} <mask>"}, "no other braces"),
        ({"model__template": "{0} was"}, "holds <mask> 0 times"),
        ({"data__labels": None}, "needs model.template"),
        ({"data__max_length": 4}, "data.max_length=4 leaves no room"),
        ({"canaries__kind": "random-token"}, "needs model.task='causal-lm'"),
    ],
)
def test_prompt_that_cannot_be_filled_is_one_sentence(
    tmp_path: Path, config: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    for name, value in change.items():
        section, _, key = name.partition("__")
        config[section].pop(key, None)
        if value is not None:
            config[section][key] = value
    out = run_cli("train", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run")
    assert out.code == 64 and sentence in out.error
    assert not (tmp_path / "run" / "private" / "canaries.secret.parquet").exists()


def test_words_without_the_task_are_refused() -> None:
    value = small_config(model__words=["bad", "good"])
    with pytest.raises(InvalidValue, match=r"belong to model\.task='text-infilling'"):
        parse_config(value, "c")
