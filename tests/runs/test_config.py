"""The configuration file: what is wrong is named with its key and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidValue
from dpaudit.runs.config import Config, parse_config, read_config
from tests.runs.run_helpers import EXAMPLES, small_config


def refusal(value: dict[str, Any]) -> str:
    with pytest.raises(InvalidValue) as raised:
        parse_config(value, "c.toml")
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["certify", "certify_zo", "encoder", "smollm"])
def test_every_example_is_read(name: str) -> None:
    assert isinstance(read_config(EXAMPLES / f"{name}.toml"), Config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"privacy__cliping_norm": 0.5, "privacy__clipping_norm": None},
            "privacy.cliping_norm.*did you mean clipping_norm",
        ),
        ({"data__text_col": "body"}, "data.text_col.*did you mean text_column"),
        ({"privacy__learning_rate": 1e-3}, r"privacy.learning_rate.*it belongs into \[optimizer\]"),
        ({"claim__noise_multiplier": 1.0}, r"claim.noise_multiplier.*it belongs into \[privacy\]"),
        ({"run__colour": "red"}, "run.colour.*remove it or correct its spelling"),
        ({"optimizer__learning_rate": "1e-3"}, "optimizer.learning_rate='1e-3': must be a number, without quotes"),
        ({"privacy__steps": "4"}, "privacy.steps='4': must be a number, without quotes"),
        ({"privacy__steps": True}, "privacy.steps=True: must be a number"),
        ({"claim__delta": "1e-5"}, "claim.delta='1e-5': must be a number"),
        ({"claim__epsilon": float("inf")}, "claim.epsilon=inf: input should be a finite number"),
        ({"claim__unit": "re\u202ecord"}, "claim: unit=.* must be a name: text on one line, .*; correct it"),
        ({"optimizer__learning_rate": float("nan")}, "optimizer.learning_rate=nan: input should be"),
        ({"data__limit_by": "last"}, "data.limit_by='last'"),
        ({"data__labels": "ham,spam"}, "data.labels='ham,spam'"),
        ({"data__text_column": ""}, "data.text_column=''"),
        ({"data__heldout_fraction": 0.2}, "data.heldout and data.heldout_fraction both name the public records"),
        ({"data__limit": None, "data__limit_by": "first"}, "data.limit_by='first' chooses for data.limit"),
        ({"data__labels": ["a", "b"]}, "data.labels names classes, which model.task='causal-lm' has not"),
        (
            {"model__task": "sequence-classification", "canaries__kind": "random-token"},
            "'random-token' needs .*label-flip",
        ),
        (
            {"model__task": "sequence-classification", "canaries__kind": "label-substitution"},
            "'label-substitution' replaces a record by another and claim.relation='add_or_remove_one' says nothing of",
        ),
        (
            {"canaries__kind": "label-substitution", "claim__relation": "replace_one"},
            "canaries.kind='label-substitution' needs model.task='sequence-classification'",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(change: dict[str, Any], words: str) -> None:
    import re

    assert re.search(words, refusal(small_config(**change)))


def test_an_unknown_section_is_told_which_one_it_may_be() -> None:
    value = small_config()
    value["claims"] = value.pop("claim")
    assert "claims: extra inputs are not permitted; did you mean claim? Correct its spelling." in refusal(value)


@pytest.mark.parametrize(
    ("prefix", "encoding", "words"),
    [
        (b"\xef\xbb\xbf", "utf-8", "begins with a byte-order mark .BOM., .* save it as UTF-8 without BOM"),
        (b"", "utf-16", "is UTF-16 text; save it as UTF-8"),
        (b"", "cp1252", "is not UTF-8 text .byte 0xfc on line 2"),
    ],
)
def test_encodings_of_other_editors_are_named(tmp_path: Path, prefix: bytes, encoding: str, words: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(prefix + '[claim]\nunit = "Absatz für"\n'.encode(encoding))
    with pytest.raises(InvalidValue, match=words):
        read_config(path)


def test_windows_paths_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b'[data]\r\npath = "C:\\data\\new.txt"\r\n')
    with pytest.raises(InvalidValue, match=r"write / for .* in paths"):
        read_config(path)
    path.write_bytes((EXAMPLES / "certify.toml").read_bytes().replace(b"\n", b"\r\n"))
    assert read_config(path) == read_config(EXAMPLES / "certify.toml")
