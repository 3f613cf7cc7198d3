"""Ledgers from files of any content: read, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpaudit.privacy.errors import DpauditError
from dpaudit.runs.ledger_file import read_ledger_file

STAGE = {"sampling_probability": 0.01, "noise_multiplier": 1.0, "steps": 10, "sampling": "poisson"}
LEDGER = {"relation": "add_or_remove_one", "unit": "record", "max_records_per_unit": 1, "stages": [STAGE]}


def test_a_ledger_and_a_history_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    for value in (LEDGER, [[1.0, 0.01, 10]], {"history": [[1.0, 0.01, 10]]}):
        path.write_text(json.dumps(value))
        assert read_ledger_file(path, None)[0].steps == 10


@pytest.mark.parametrize(
    "value",
    [
        *(
            1,
            None,
            "x",
            True,
            [1],
            [[1]],
            [[1, 2, "3"]],
            [[1, 0.5, None]],
            [[1, 0.5, 1.5]],
            [None],
            ["abc"],
            [{}],
            [[]],
        ),
        *({"history": 1}, {"history": "abc"}, {"history": None}, {"history": [[1e308, 0.5, 1e300]]}),
        *({**LEDGER, "stages": 1}, {**LEDGER, "stages": "ab"}, {**LEDGER, "stages": [1]}, {**LEDGER, "stages": [[]]}),
        *({**LEDGER, "unit": 3}, {**LEDGER, "unit": "a\nb"}, {**LEDGER, "relation": []}, {**LEDGER, "stages": None}),
        *({**LEDGER, "stages": [{**STAGE, key: other}]} for key in STAGE for other in (None, "x", [], {}, True)),
        *({**LEDGER, "stages": [{**STAGE, "stop_reason": other}]} for other in (1, [], {}, "a\nb")),
        *({**LEDGER, "stages": [{**STAGE, key: None}]} for key in ("mechanism",)),
    ],
    ids=lambda value: json.dumps(value)[-60:],
)
def test_anything_else_is_one_sentence(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DpauditError) as caught:
        read_ledger_file(path, None)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 10**6, b'{"stages":NaN}', b"9" * 5000])
def test_what_is_no_json_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.json"
    path.write_bytes(content)
    with pytest.raises(DpauditError):
        read_ledger_file(path, None)
