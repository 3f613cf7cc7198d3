"""``dpaudit init``: what it writes can be run, is the same whatever the records say, and says what it assumed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.config import read_config
from dpaudit.runs.init import init
from dpaudit.runs.prepare import make_plans, public_size
from tests.runs.run_helpers import EXAMPLES, run_cli

MODEL = EXAMPLES / "model"


def mails(path: Path, *, rows: int = 60, word: str = "lunch") -> Path:
    lines = ["body,spam,sender", *(f"{word} number {i},{'spam' if i % 2 else 'ham'},s{i % 7}" for i in range(rows))]
    path.write_text("\n".join(lines) + "\n")
    return path


def folder(path: Path, **config: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_causal_proposal_is_a_configuration_that_can_be_planned(tmp_path: Path) -> None:
    proposal = init(mails(tmp_path / "mails.csv"), MODEL, unit="mail", public_size=2000, out=tmp_path / "run.toml")
    config = read_config(proposal.path)
    assert config.data.path == "mails.csv" and config.data.text_column == "body"
    assert config.canaries.kind == "new-token" and config.canaries.count == 1000
    assert (config.claim.delta, config.claim.epsilon) == (5e-5 / 5, 3.0)
    (plan,) = make_plans(config, public_size(config))
    assert plan.noise_multiplier is not None and plan.expected_batch_size == 200


def test_nothing_of_the_records_reaches_the_file(tmp_path: Path) -> None:
    texts = []
    for word, rows in (("lunch", 60), ("secret", 61)):
        home = tmp_path / word
        home.mkdir()
        data = mails(home / "mails.csv", rows=rows, word=word)
        texts.append(init(data, MODEL, unit="mail", public_size=100, out=home / "run.toml").text)
    assert texts[0] == texts[1]


def test_every_assumption_is_told_and_marked(tmp_path: Path) -> None:
    data = mails(tmp_path / "mails.csv")
    proposal = init(data, MODEL, unit="mail", public_size=100, out=tmp_path / "a.toml")
    assert len(proposal.assumed) == proposal.text.count("# ASSUMED: ")
    told = " ".join(proposal.assumed)
    assert "claim.delta" in told and "claim.epsilon" in told and "'sender'" in told
    stated = init(data, MODEL, unit="mail", public_size=100, out=tmp_path / "b.toml", epsilon=2.0, delta=1e-6)
    assert read_config(stated.path).claim.epsilon == 2.0
    assert not any(line.startswith(("claim.epsilon", "claim.delta")) for line in stated.assumed)


def test_labels_make_a_classifier_with_wrong_labels_as_canaries(tmp_path: Path) -> None:
    encoder = folder(tmp_path / "bert", architectures=["BertModel"], max_position_embeddings=32)
    data = mails(tmp_path / "mails.csv")
    proposal = init(data, encoder, unit="mail", public_size=400, label_column="spam", out=tmp_path / "run.toml")
    config = read_config(proposal.path)
    assert config.model.task == "sequence-classification" and config.data.label_column == "spam"
    assert config.canaries.kind == "label-flip" and config.canaries.count == 20
    assert config.data.max_length == 32


def test_large_models_get_adapters_and_random_canaries(tmp_path: Path) -> None:
    large = folder(tmp_path / "large", architectures=["LlamaForCausalLM"])
    with (large / "model.safetensors").open("wb") as weights:
        weights.truncate(400_000_000)
    proposal = init(mails(tmp_path / "m.csv"), large, unit="mail", public_size=50, out=tmp_path / "run.toml")
    config = read_config(proposal.path)
    assert (config.model.trainable, config.canaries.kind) == ("lora", "random-token")


@pytest.mark.parametrize("name", ["lines.txt", "table.jsonl", "table.parquet"])
def test_other_forms(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        import pandas as pd

        pd.DataFrame({"message": ["a", "b"]}).to_parquet(path)
    else:
        path.write_text("one\ntwo\n" if name.endswith("txt") else '{"message": "one"}\n{"message": "two"}\n')
    config = read_config(init(path, MODEL, unit="line", public_size=50, out=tmp_path / "run.toml").path)
    assert config.data.text_column == ("text" if name.endswith("txt") else "message")


def test_a_name_with_quotes_stays_one_comment_and_one_text(tmp_path: Path) -> None:
    data = mails(tmp_path / 'my "mails" é.csv')
    proposal = init(data, MODEL, unit='one "mail"', public_size=50, out=tmp_path / "run.toml")
    assert tomllib.loads(proposal.text)["claim"]["unit"] == 'one "mail"'
    assert read_config(proposal.path).data.path == data.name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data": "none.csv"}, "does not exist"),
        ({"data": "x.docx"}, "ending that is not known"),
        ({"model": "gpt2"}, "hub are not downloaded"),
        ({"text_column": "txt"}, "is no column of mails.csv; it has body, spam, sender"),
        ({"task": "sequence-classification"}, "--label-column"),
        ({"public_size": 3}, "20"),
        ({"public_size": "500"}, "public_size"),
        ({"public_size": 10**400}, "beyond 64 bits"),
        ({"unit": ""}, "unit"),
        ({"unit": "a\nb"}, "unit"),
        ({"text_column": "spam", "label_column": "spam"}, "both name 'spam'"),
        ({"delta": 1.0}, r"claim\.delta"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    mails(tmp_path / "mails.csv")
    (tmp_path / "x.docx").write_text("x")
    asked: dict[str, object] = {"data": "mails.csv", "model": str(MODEL), "unit": "mail", "public_size": 50} | change
    data = tmp_path / str(asked.pop("data"))
    with pytest.raises(InvalidValue, match=sentence):
        init(data, out=tmp_path / "run.toml", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "run.toml").exists()


def test_an_encoder_is_not_asked_to_continue_texts(tmp_path: Path) -> None:
    encoder = folder(tmp_path / "bert", architectures=["BertForMaskedLM"])
    with pytest.raises(InvalidValue, match="cannot continue texts"):
        init(mails(tmp_path / "mails.csv"), encoder, unit="mail", public_size=50, out=tmp_path / "run.toml")


def test_command_prints_what_it_assumed_and_never_overwrites(tmp_path: Path) -> None:
    data, out = mails(tmp_path / "mails.csv"), tmp_path / "run.toml"
    asked = ("init", data, "--model", MODEL, "--unit", "mail", "--public-size", "50", "--out", out)
    first = run_cli(*asked)
    assert first.code == 0 and "ASSUMED" in first.output and f"dpaudit certify {out}" in first.output
    again = run_cli(*asked)
    assert again.code == 64 and "exists; give another --out" in again.error
    assert run_cli(*asked[:-1], tmp_path / "b.toml", "--json").json["schema"] == "dpaudit.init/1"


@pytest.mark.parametrize("named", ["GPT2LMHeadModel", None, [], 3])
def test_a_model_that_names_no_architecture_is_one_sentence(tmp_path: Path, named: object) -> None:
    odd = folder(tmp_path / "odd", architectures=named, n_positions=-3)
    with pytest.raises(InvalidValue, match="names no architecture, which cannot continue texts"):
        init(mails(tmp_path / "mails.csv"), odd, unit="mail", public_size=50, out=tmp_path / "run.toml")
