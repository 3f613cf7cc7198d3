"""Model folders as people have them: without a tokenizer, without special tokens, damaged, or not a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dpaudit.privacy.errors import InvalidValue
from dpaudit.runs.config import parse_config
from dpaudit.runs.sources import load_model, load_tokenizer
from tests.runs.run_helpers import EXAMPLES, run_cli, small_config


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def without_tokens(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in settings.items() if not k.endswith("_token")}), encoding="utf-8")


def shortened(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200_000])


def broken(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


FAULTS = {
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer; save it there"),
    "no special tokens": (without_tokens, "has a tokenizer without an end-of-text token"),
    "no weights": (without("model.safetensors"), "cannot be loaded as a causal-lm model"),
    "half of the weights": (shortened, "cannot be loaded as a causal-lm model"),
    "broken configuration": (broken, "cannot be loaded as a causal-lm model"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_model_folder_that_cannot_be_used_is_one_sentence(tmp_path: Path, name: str) -> None:
    damage, sentence = FAULTS[name]
    folder = tmp_path / "model"
    shutil.copytree(EXAMPLES / "model", folder)
    damage(folder)
    config = parse_config(small_config(model__path=str(folder)), "c")
    with pytest.raises(InvalidValue) as caught:
        load_tokenizer(config, tmp_path)
        load_model(config, tmp_path)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    config = parse_config(small_config(model__path=str(EXAMPLES / "model" / "config.json")), "c")
    with pytest.raises(InvalidValue, match="is a file; give the folder that it lies in"):
        load_tokenizer(config, tmp_path)


def test_what_is_no_configuration_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "mails.csv").write_text("text\nhello\n", encoding="utf-8")
    data = run_cli("certify", tmp_path / "mails.csv", "--out", tmp_path / "run")
    assert data.code == 64 and "is data and no configuration; 'dpaudit init " in data.error
    missing = run_cli("certify", tmp_path / "nothing")
    assert missing.code == 64 and "does not exist; give a configuration ('dpaudit init' writes one)" in missing.error
    assert "does not exist" in run_cli("bundle", tmp_path / "nothing").error
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    init = run_cli("init", empty, "--model", EXAMPLES / "model", "--unit", "mail", "--public-size", "100")
    assert init.code == 64 and "empty.csv is empty; it needs a header line" in init.error
