"""A run on three classes from files that people bring: labels, canaries, control, examination and the released head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs.run_helpers import run_cli, small_config, write_toml

WORDS = [f"w{i}" for i in range(40)]
CLASSES = ["ham", "spam", "eggs"]


def tiny_encoder(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[PAD]", *WORDS])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def records(path: Path, count: int, seed: int) -> Path:
    import numpy as np

    rng = np.random.default_rng(seed)
    rows = [
        {"body": " ".join(rng.choice(WORDS, size=6)), "kind": CLASSES[int(rng.integers(3))], "n": i}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture()
def config(tmp_path: Path) -> dict[str, Any]:
    value = small_config(
        model__path=str(tiny_encoder(tmp_path / "model")),
        model__task="sequence-classification",
        canaries__kind="label-flip",
        canaries__count=30,
        data__path=str(records(tmp_path / "private.jsonl", 60, 0)),
        data__heldout=str(records(tmp_path / "public.jsonl", 40, 1)),
        data__text_column="body",
        data__label_column="kind",
        data__labels=CLASSES,
        privacy__steps=2,
    )
    for key in ("length", "positions"):
        del value["canaries"][key]
    return value


def released(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "release" / "model" / "config.json").read_text())
    return value


def test_three_classes_from_json_lines_to_the_released_head(tmp_path: Path, config: dict[str, Any]) -> None:
    done = run_cli("train", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run", "--json")
    assert done.code == 0 and 0 <= done.json["heldout_after"] <= 1, done.error
    model = released(tmp_path / "run")
    assert model["id2label"] == {"0": "ham", "1": "spam", "2": "eggs"} and model["label2id"]["eggs"] == 2


@pytest.mark.slow
def test_three_classes_with_control_and_examination(tmp_path: Path, config: dict[str, Any]) -> None:
    path = write_toml(tmp_path / "c.toml", config)
    done = run_cli("certify", path, "--out", tmp_path / "run", "--json", "--control", "--examine")
    assert done.code == 2, done.error
    assert run_cli("verify", tmp_path / "run").code == 2


@pytest.mark.slow
def test_canaries_whose_label_is_replaced_from_a_table_to_a_verified_certificate(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    config["canaries"].update(kind="label-substitution", copies=2)
    config["claim"]["relation"] = "replace_one"
    config["privacy"].update(accountants=["prv"], calibrate_with="prv")
    del config["audit"]["in_run"]
    path, run = write_toml(tmp_path / "c.toml", config), tmp_path / "run"
    done = run_cli("certify", path, "--out", run, "--json", "--control")
    assert done.code == 2, done.error
    body = json.loads((run / "release" / "certificate.json").read_text())["predicate"]
    size = config["privacy"]["public_size"] + 30 * 2  # all of them are in the data, whatever their coin
    assert body["ledger"]["stages"][0]["public_size"] == size and body["provenance"]["records"]["inserted"] == 30
    assert body["audit"]["plan"]["attack_parameters"]["canaries"]["kind"] == "label_substitution"
    assert "60 invented records" not in (run / "release" / "report.html").read_text()
    assert "30 invented records, 2 copies each, whose label" in (run / "release" / "report.html").read_text()
    checked = run_cli("verify", run)
    assert checked.code == 2
    canaries = run / "private" / "canaries.secret.parquet"
    options = ["--attack", "loss", "--out", tmp_path / "scores.csv", "--json"]
    scored = run_cli("attack", run / "release" / "model", "--canaries", canaries, *options)
    assert scored.code == 0, scored.error
    options = ["--claimed-epsilon", config["claim"]["epsilon"], "--delta", config["claim"]["delta"], "--json"]
    options += ["--manifest", canaries, "--attack", "loss-residual"]
    audited = run_cli("audit", run / "release" / "scores.parquet", *options, "--relation", "replace_one")
    assert audited.code == 64 and "needs a column pair" in audited.error
    audited = run_cli(
        "audit", run / "release" / "scores.parquet", *options, "--plan", run / "release" / "audit_plan.json"
    )
    assert audited.code == 2, audited.error
    assert audited.json["primary"]["epsilon_lower"] == body["audit"]["result"]["primary"]["epsilon_lower"]


def test_a_label_that_is_not_declared_never_reaches_a_private_step(tmp_path: Path, config: dict[str, Any]) -> None:
    config["data"]["labels"] = ["ham", "spam"]
    done = run_cli("train", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run")
    assert done.code == 64 and "has the label 'eggs', which is none of the classes ham, spam" in done.error
    assert not (tmp_path / "run" / "release" / "ledger.jsonl").exists()


def test_too_few_texts_that_fit_say_which_key_to_raise(tmp_path: Path, config: dict[str, Any]) -> None:
    config["data"]["max_length"] = 4
    done = run_cli("train", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run")
    assert done.code == 64 and "0 different public texts are not longer than data.max_length=4 tokens" in done.error
    assert "raise data.max_length" in done.error
