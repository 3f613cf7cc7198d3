"""Mistakes that newcomers made with files and commands, and the one sentence that answers each.

``test_mistakes`` of the Hugging Face trainer has those made in Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.runs.run_helpers import run_cli, small_config, write_toml

pytestmark = pytest.mark.slow

CLASSES = {
    "model__task": "sequence-classification",
    "data__heldout": None,
    "data__heldout_fraction": 0.3,
    "canaries__kind": "label-flip",
    "canaries__count": 10,
    "audit__attack": "loss-drop",
}
TRAIN: dict[str, tuple[dict[str, Any], str]] = {
    "wrong column": (
        {"data__path": "one.csv", "data__heldout": None, "data__heldout_fraction": 0.1},
        "has no column 'text': it needs text and has body, sender (data.text_column",
    ),
    "path missing": ({"data__path": "none/x.csv"}, "data.path='none/x.csv' does not exist (looked at "),
    "name of the hub": ({"model__path": "gpt2"}, "are not downloaded: save it with save_pretrained"),
    "batch above data": ({"privacy__expected_batch_size": 500}, "must be <= privacy.public_size=60"),
    "unknown key": ({"privacy__stepz": 5}, "privacy.stepz=5: extra inputs are not permitted; did you mean steps?"),
    "missing key": ({"claim__unit": None}, "claim.unit: field required; add it"),
    "delta of 2": ({"claim__delta": 2.0}, "claim.delta=2.0: input should be less than 1"),
    "relation misspelt": ({"claim__relation": "add_remove"}, "should be 'add_or_remove_one', 'replace_one' or"),
    "sigma too small": ({"privacy__noise_multiplier": 0.3}, "above claim.epsilon=3; raise privacy.noise_multiplier"),
    "too many canaries": ({"canaries__count": 5000}, "the tokenizer has 1024; lower the count or use canaries.kind"),
    "long canaries": ({"canaries__length": 40}, "are longer than max_length=16 tokens and would be truncated"),
    "short records": (
        {**CLASSES, "data__path": "three.csv", "data__max_length": 2},
        "0 different public texts are not longer than data.max_length=2 tokens; raise data.max_length",
    ),
    "adapters beside new tokens": ({"model__trainable": "lora"}, "freezes the embeddings by which canaries.kind="),
    "a folder as data": ({"data__path": "folder"}, "is a folder and no saved dataset"),
    "one class": (
        {**CLASSES, "data__path": "alike.csv"},
        "has only the label 'same' among its public records; classification needs two",
    ),
}


def write_files(home: Path) -> None:
    (home / "one.csv").write_text("body,sender\n" + "".join(f"hello {i},s\n" for i in range(80)))
    (home / "three.csv").write_text("text,label\n" + "".join(f"hello number {i},c{i % 3}\n" for i in range(120)))
    (home / "alike.csv").write_text("text,label\n" + "".join(f"hello number {i},same\n" for i in range(120)))
    (home / "folder").mkdir()


@pytest.mark.parametrize("name", TRAIN)
def test_a_wrong_configuration_is_one_sentence(tmp_path: Path, name: str) -> None:
    changes, sentence = TRAIN[name]
    write_files(tmp_path)
    out = run_cli("train", write_toml(tmp_path / "c.toml", small_config(**changes)), "--out", tmp_path / "run")
    assert out.code == 64
    assert sentence in out.error and "\n" not in out.error.strip()
    assert not (tmp_path / "run" / "release" / "ledger.jsonl").exists()


def test_large_delta_is_warned_of(tmp_path: Path) -> None:
    path = write_toml(tmp_path / "c.toml", small_config(claim__delta=0.02))
    with pytest.warns(UserWarning, match=r"claim a delta well below 1/public_size"):
        assert run_cli("train", path, "--out", tmp_path / "run").code == 0


def test_three_classes_train(tmp_path: Path) -> None:
    write_files(tmp_path)
    path = write_toml(tmp_path / "c.toml", small_config(**CLASSES, data__path="three.csv"))
    assert run_cli("train", path, "--out", tmp_path / "run").code == 0


def test_mistakes_with_a_run_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = write_toml(tmp_path / "c.toml", small_config())
    assert run_cli("train", first, "--out", out).code == 0
    unfinished = run_cli("verify", out)
    assert (
        unfinished.code == 3 and "holds no certificate.json; give the certificate or a finished run" in unfinished.error
    )
    other = run_cli("train", write_toml(first, small_config(optimizer__learning_rate=0.5)), "--out", out)
    assert other.code == 64 and "(optimizer.learning_rate=0.5 and was 0.001)" in other.error
    assert run_cli("certify", out).code == 2
    ledger = out / "release" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":', b'"steps": ', 1))
    changed = run_cli("verify", out)
    assert changed.code == 3 and "ledger.chain" in changed.output and "different" in changed.output


def test_a_misspelt_command_is_guessed() -> None:
    out = run_cli("certfy", "x")
    assert out.code == 64 and out.error == "No such command 'certfy'; did you mean certify?"
