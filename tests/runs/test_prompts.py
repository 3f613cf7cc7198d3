"""Prompts before texts: read and not learnt, one record with their text, from one column or the fields of a table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpaudit import InvalidValue
from dpaudit.runs.config import parse_config
from dpaudit.runs.encoding import collator, encode
from dpaudit.runs.records import private_and_public
from tests.runs.run_helpers import EXAMPLES, run_cli, small_config, write_toml

ROWS = "name,food,text,public\n" + "".join(f"Place {i},food {i},They serve it at place {i}.,x\n" for i in range(60))


def prepared(folder: Path, **changes: Any) -> Any:
    from transformers import AutoTokenizer

    path = folder / "t.csv"
    if not path.exists():
        path.write_text(ROWS)
    told = {"data__path": str(path), "data__heldout": None, "data__heldout_fraction": 0.2, "data__max_length": 16}
    config = parse_config(small_config(**(told | changes)), "c.toml")
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "model")
    return SimpleNamespace(config=config, tokenizer=tokenizer)


def test_only_the_text_is_learnt(tmp_path: Path) -> None:
    run = prepared(tmp_path, data__prompt_columns=["name"])
    private, public = private_and_public(run.config, tmp_path)
    assert len(private) + len(public) == 60
    batch = collator(run)(encode(run, private)[:4])
    ids, labels = batch["input_ids"], batch["labels"]
    assert ids.shape == labels.shape and ids.shape[1] <= 16
    for row, learnt, text in zip(ids, labels, private.texts, strict=False):
        prompt, answer = text.split("\x1f")
        wanted = [*run.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"], run.tokenizer.eos_token_id]
        assert learnt[learnt != -100].tolist() == wanted[:15]
        assert run.tokenizer(prompt, add_special_tokens=False)["input_ids"][-1] in row.tolist()


def test_fields_of_a_table_are_named_and_missing_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,food,text\nAlimentum,Italian,It is Italian.\nZizzi,,No food is told.\n")
    run = prepared(tmp_path, data__prompt_columns=["name", "food"], data__heldout_fraction=0.0)
    private, _ = private_and_public(run.config, tmp_path)
    assert private.texts[0] == "name : Alimentum | food : Italian\x1fIt is Italian."
    assert private.texts[1] == "name : Zizzi\x1fNo food is told."


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="has no column 'question'"):
        private_and_public(prepared(tmp_path, data__prompt_columns=["question"]).config, tmp_path)
    with pytest.raises(InvalidValue, match=r"need model\.task='causal-lm'"):
        prepared(
            tmp_path, data__prompt_columns=["name"], model__task="sequence-classification", canaries__kind="label-flip"
        )
    (tmp_path / "t.csv").write_text('name,text\na,"x\x1fy"\n')
    with pytest.raises(InvalidValue, match=r"line 2 holds the control character U\+001F"):
        private_and_public(prepared(tmp_path, data__prompt_columns=["name"]).config, tmp_path)


def test_a_run_trains_on_questions_and_answers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(ROWS)
    told = {
        "data__path": "t.csv",
        "data__heldout": None,
        "data__heldout_fraction": 0.2,
        "data__prompt_columns": ["name"],
    }
    config = write_toml(tmp_path / "c.toml", small_config(**told))
    outcome = run_cli("train", config, "--out", tmp_path / "run", "--json")
    assert outcome.json["status"] == "attacked" and outcome.json["heldout_after"] > 1
