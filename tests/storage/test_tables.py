"""Tables by the ending of their names: the same table gives the same cells in every format, or a sentence."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit import InvalidEvidence
from dpaudit.storage import tables as tables_module
from dpaudit.storage.tables import coins, format_of, identifiers, is_missing, load_table, numbers, read_table

COLUMNS = ("id", "score")


def save_dataset(folder: Path, table: pa.Table, *, parts: int = 1) -> Path:
    """What ``datasets.Dataset.save_to_disk`` leaves: Arrow streams, and ``state.json`` that names them."""
    folder.mkdir(parents=True)
    files = []
    step = -(-table.num_rows // parts)
    for i in range(parts):
        name = f"data-{i:05d}-of-{parts:05d}.arrow"
        part = table.slice(i * step, step)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
        files.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "x", "_split": "train"}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_every_format_gives_the_same_table(tmp_path: Path) -> None:
    table = pa.table({"id": ["007", "b\u2028c", "d"], "other": [1, 2, 3], "score": [0.5, -1.0, 2.0]})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
    text = "id,other,score\n007,1,0.5\nb\u2028c,2,-1.0\nd,3,2.0\n"
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(lines)
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "bom.csv").write_text("\ufeff" + text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    save_dataset(tmp_path / "saved", table, parts=2)
    for name in ("a.parquet", "a.jsonl", "a.json", "a.csv", "bom.csv", "a.csv.gz", "saved"):
        found = read_table(tmp_path / name, columns=COLUMNS, optional=("absent",))
        assert list(found) == ["id", "score"], name
        assert found["id"] == ["007", "b\u2028c", "d"], name
        assert numbers(found["score"], name="score", ids=found["id"]).tolist() == [0.5, -1.0, 2.0], name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "ID,Score\na,1\n", "no column 'id'.* has ID, Score; rename 'ID' to 'id'"),
        ("t.csv", "id, score\na, 1\n", "rename ' score' to 'score'"),
        ("t.csv", "id,points\na,1\n", "no column 'score': it needs id, score and has id, points"),
        ("t.jsonl", '{"id": "a"}\n', "no column 'score'"),
        ("t.jsonl", '[{"id": "a", "score": 1}]', "one JSON array; write one JSON object a line"),
        ("t.json", '{\n "id": "a"\n}\n', "line 1 is not valid JSON"),
        ("t.jsonl", '{"id": "a", "score": 1}\n[1]\n', "line 2 is no JSON object"),
        ("t.jsonl", '{"id": "a", "id": "b", "score": 1}\n', "stands twice"),
        ("t.jsonl", '{"id": "a", "score": NaN}\n', "NaN is not a JSON number"),
        ("t.jsonl", '{"id": "\\ud800", "score": 1}\n', "half of a surrogate pair"),
        ("t.jsonl", "", "no column 'id'"),
        ("t.parquet", "not parquet", "not a readable Parquet file"),
        ("t.csv", "", "needs a header line"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InvalidEvidence, match=words):
        read_table(path, columns=COLUMNS)


def test_bytes_in_parquet_are_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [b"\xff\x00", b"a"], "score": [1.0, 2.0]}), tmp_path / "t.parquet")
    with pytest.raises(InvalidEvidence, match="its column 'id' holds bytes, not text"):
        read_table(tmp_path / "t.parquet", columns=COLUMNS)
    found = read_table(tmp_path / "t.parquet", columns=COLUMNS, binary=("id",))
    assert found["id"] == ["ff00", "61"]


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([1.0])], names=["id", "id", "score"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InvalidEvidence, match="two columns named 'id'"):
        read_table(tmp_path / "t.parquet", columns=COLUMNS)


def test_folders_that_are_no_single_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEvidence, match="is a folder and no saved dataset"):
        read_table(tmp_path, columns=COLUMNS)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InvalidEvidence, match="holds the splits train, test; give the folder of one"):
        read_table(tmp_path, columns=COLUMNS)
    saved = save_dataset(tmp_path / "saved", pa.table({"id": ["a"], "score": [1.0]}))
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": "../outside.arrow"}]}))
    with pytest.raises(InvalidEvidence, match="leads outside"):
        read_table(saved, columns=COLUMNS)
    (saved / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "x"}]}))
    with pytest.raises(InvalidEvidence, match="flatten_indices"):
        read_table(saved, columns=COLUMNS)
    (saved / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    (saved / "state.json").write_text(json.dumps(state))
    with pytest.raises(InvalidEvidence, match="not a readable Arrow file"):
        read_table(saved, columns=COLUMNS)


def test_rows_are_named_by_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,score\n"a\nb",1\n\nc,2\n')
    table = load_table(tmp_path / "t.csv", columns=COLUMNS)
    assert [table.place(i) for i in range(len(table))] == ["line 3", "line 5"]
    assert table.take([1]).columns["id"] == ["c"] and table.take([1]).place(0) == "line 5"
    pq.write_table(pa.table({"id": ["a", "b"], "score": [1.0, 2.0]}), tmp_path / "t.parquet")
    assert load_table(tmp_path / "t.parquet", columns=COLUMNS).place(1) == "row 2"


@pytest.mark.parametrize("cell", [None, "", "  ", float("nan")])
def test_missing_cells_never_become_ids_or_numbers(cell: Any) -> None:
    assert is_missing(cell)
    with pytest.raises(InvalidEvidence, match="has no id in its row 2"):
        identifiers(["a", cell], name="t.csv")
    with pytest.raises(InvalidEvidence, match="score of id 'b' is empty"):
        numbers([1.0, cell], name="score", ids=["a", "b"])


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [
        ("1,5", "write a point for the decimal comma"),
        ("1.234,5", "write a point for the decimal comma"),
        ("13,463.50", "without thousands separators"),
        ("1_000", "must be a number"),
        ("١٢", "must be a number"),
        ("0x10", "must be a number"),
        ("high", "must be a number"),
        ([1.0], "must be a number"),
        ({"a": 1}, "must be a number"),
    ],
)
def test_numbers_that_can_be_read_in_two_ways_are_refused(cell: Any, remedy: str) -> None:
    with pytest.raises(InvalidEvidence, match=remedy):
        numbers(["1.5", cell], name="score", ids=["a", "b"])


def test_numbers_as_people_write_them() -> None:
    cells = ["1", " -2.5", "+.5", "3.", "1E3", "-inf", "Infinity", 7, 0.25]
    expected = [1, -2.5, 0.5, 3, 1000, -np.inf, np.inf, 7, 0.25]
    assert numbers(cells, name="score", ids=[str(i) for i in range(9)]).tolist() == expected
    with pytest.raises(InvalidEvidence, match="score"):
        numbers([10**400], name="score", ids=["a"])


def test_coins_are_zero_or_one() -> None:
    assert coins(["1", "0", "1.0", 0, True], name="coin", ids=list("abcde")).tolist() == [
        True,
        False,
        True,
        False,
        True,
    ]
    for cell in ("TRUE", "no", "2", 0.5, "-1"):
        with pytest.raises(InvalidEvidence, match="of id 'b' must be 0 or 1"):
            coins(["1", cell], name="member", ids=["a", "b"])


def test_endings() -> None:
    assert format_of(Path("a.CSV")) == "csv" and format_of(Path("a.txt.xz")) == "text"
    assert format_of(Path("a.tsv")) is None and format_of(Path("a.parquet")) == "parquet"


_CELLS = [
    "1",
    "0",
    "-2.5",
    "1e5",
    ".5",
    "5.",
    "+3",
    "1E-3",
    " 1 ",
    "",
    "1_0",
    "٣",
    "nan",
    "inf",
    "0x1",
    "--1",
    "e5",
    "1e",
    ".",
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(_CELLS), min_size=1, max_size=4))
def test_numbers_are_read_alike_with_and_without_the_fast_path(cells: list[str]) -> None:
    fast = tables_module._plain_numbers(cells)
    plain = all(re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", cell, re.ASCII) for cell in cells)
    assert (fast is not None) == plain
    if fast is not None:
        assert fast.tolist() == [float(cell) for cell in cells]
