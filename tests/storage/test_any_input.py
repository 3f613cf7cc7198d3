"""Whatever stands in a table, a manifest or a configuration: it is read, or refused in one sentence of our own."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpaudit import DpauditError
from dpaudit.runs.config import parse_config
from dpaudit.runs.records import private_and_public, read_records
from dpaudit.storage.records import read_ids, read_kept, read_text_records, read_values
from dpaudit.storage.scores import read_coins, read_scores
from tests.runs.run_helpers import EXAMPLES, small_config

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = st.sampled_from(["id", "member", "score", "coin", "copies", "nonce", "run", "pair", "attack", "text", "label"])
CELL: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["0", "1", " 1", "1.0", "1,5", "nan", "None", "x"])
    | st.lists(st.integers(0, 2), max_size=2)
)
ROWS = st.lists(st.dictionaries(NAMES, CELL, max_size=9), max_size=6)


def refused_well(reader: Callable[[], Any]) -> None:
    try:
        reader()
    except DpauditError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 2000


def readers(path: Path) -> list[Callable[[], Any]]:
    data = parse_config(small_config(), "c").data
    return [
        lambda: read_scores(path),
        lambda: read_scores(path, needs_member=False),
        lambda: read_coins(path),
        lambda: read_text_records(path),
        lambda: read_values(path, "score"),
        lambda: read_kept(path, read_ids(path)),
        lambda: read_records(data, path, needs_labels=True).numbered(("0", "1")),
    ]


@given(ROWS)
@FEW
def test_any_json_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for reader in readers(path):
        refused_well(reader)


@given(st.text(max_size=120) | st.lists(st.sampled_from('id,member,score\n"\r01.x;\t '), max_size=60).map("".join))
@FEW
def test_any_csv(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for head in ("", "id,member,score\n", "id,coin,nonce,copies\n", "id,text,label\n"):
        path.write_text(head + text, encoding="utf-8", newline="")
        for reader in readers(path):
            refused_well(reader)


COLUMN = st.sampled_from(
    [
        pa.array(["a", None]),
        pa.array([1, None]),
        pa.array([0.5, float("nan")]),
        pa.array([True, False]),
        pa.array([b"\xff", b"a"]),
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, None]),
        pa.array([10**12, 3], pa.timestamp("ms")),
        pa.array(["1", "0"]).dictionary_encode(),
        pa.array([None, None], pa.null()),
    ]
)


@pytest.mark.slow
@given(st.dictionaries(NAMES, COLUMN, min_size=3, max_size=11))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_parquet_types(tmp_path_factory: pytest.TempPathFactory, columns: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    pq.write_table(pa.table(columns), path)
    for reader in readers(path):
        refused_well(reader)


JSON = st.recursive(
    CELL,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["manifest", "canaries", "copies", "nonce", "commitment", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
@FEW
def test_any_manifest(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    refused_well(lambda: read_coins(path))


@given(st.data())
@FEW
def test_any_configuration_with_a_value_replaced(draw: st.DataObject) -> None:
    value = tomllib.loads((EXAMPLES / "certify.toml").read_text())
    section = draw.draw(st.sampled_from(sorted(value)))
    key = draw.draw(st.sampled_from(sorted(value[section])) | st.text(min_size=1, max_size=8))
    value[section][key] = draw.draw(CELL | st.dictionaries(st.text(max_size=3), CELL, max_size=2))
    if draw.draw(st.booleans()):
        value[draw.draw(st.text(min_size=1, max_size=6))] = draw.draw(CELL)
    refused_well(lambda: parse_config(value, "c.toml"))


@given(
    st.binary(max_size=80), st.sampled_from(["any.txt", "any.csv", "any.jsonl", "any.txt.gz", "any.parquet", "any.x"])
)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_as_private_records(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / name).write_bytes(content)
    config = parse_config(small_config(data__path=name), "c")
    refused_well(lambda: private_and_public(config, folder))
