"""Score files and coins: every row is joined by an id of its own, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.storage.commitment import commitment, manifest
from dpaudit.storage.scores import read_coins, read_scores, scores_of

NONCE = bytes(range(32))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"id": [None, "b"], "member": [1, 0], "score": [1.0, 2.0]}, "has no id in its row 1"),
        ({"id": ["a", "b"], "member": [None, 0], "score": [1.0, 2.0]}, "member of id 'a' is empty"),
        ({"id": ["a", "b"], "member": [1, 0], "score": [None, 2.0]}, "score of id 'a' is empty"),
        ({"id": ["a", "b"], "member": [1, 2], "score": [1.0, 2.0]}, "member=2 of id 'b' must be 0 or 1"),
        ({"id": ["a", "b"], "member": [1, 0], "score": [[1.0], [2.0]]}, "must be a number"),
        ({"id": ["a", "b"], "member": [1, 0], "score": [1.0, 2.0], "copies": [None, 1]}, "copies of id 'a' is empty"),
        ({"id": ["a", "b"], "member": [1, 0], "score": [1.0, 2.0], "run": [None, "r"]}, "has no run in its row 1"),
        (
            {"id": ["a", "b"], "member": [1, 0], "score": [1.0, 2.0], "attack": [None, "x"]},
            "has no attack in its row 1",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_missing_and_impossible_cells_are_named(tmp_path: Path, ending: str, rows: dict, words: str) -> None:
    path = tmp_path / f"scores.{ending}"
    table = pa.table(rows)
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    with pytest.raises(InvalidEvidence, match=words):
        read_scores(path)


@pytest.mark.parametrize("copies", [0, -1, 1.5, 1e300])
def test_copies_of_a_score_file_are_a_whole_number(tmp_path: Path, copies: float) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f"id,member,score,copies\na,1,0.5,{copies}\nb,0,0.25,{copies}\n")
    with pytest.raises(InvalidValue, match="the same whole number >= 1"):
        read_scores(path)


def test_coins_are_read_alike_from_every_format(tmp_path: Path) -> None:
    digest = commitment(NONCE, manifest(["a", "b"], [1, 0], 2))
    rows = [
        {"id": "a", "coin": 1, "nonce": NONCE.hex(), "copies": 2},
        {"id": "b", "coin": 0, "nonce": NONCE.hex(), "copies": 2},
    ]
    (tmp_path / "c.csv").write_text(
        "id,coin,nonce,copies\n" + "".join(",".join(map(str, r.values())) + "\n" for r in rows)
    )
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.json").write_text(json.dumps({"canaries": [["a", 1], ["b", 0]], "copies": 2, "nonce": NONCE.hex()}))
    pq.write_table(
        pa.table({"id": ["a", "b"], "coin": [1, 0], "nonce": [NONCE] * 2, "copies": [2, 2]}), tmp_path / "c.parquet"
    )
    for name in ("c.csv", "c.jsonl", "c.parquet"):
        found = read_coins(tmp_path / name)
        assert (dict(found.by_id), found.copies, found.commitment) == ({"a": 1, "b": 0}, 2, digest), name
    (tmp_path / "c.json").write_text(
        json.dumps({"manifest": {"canaries": [["a", 1], ["b", 0]], "copies": 2}, "nonce": NONCE.hex()})
    )
    assert read_coins(tmp_path / "c.json").commitment == digest


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"canaries": [[None, 1]], "copies": 1}, "has no id"),
        ({"canaries": [["a", 1]], "copies": 0}, "copies=0, which is no whole number"),
        ({"canaries": [["a", 1]], "copies": 2.5}, "copies=2.5, which is no whole number"),
        ({"canaries": [["a", 1]], "copies": True}, "copies=True, which is no whole number"),
        ({"canaries": [["a", 0.5]], "copies": 1}, "a coin other than 0 and 1"),
        ({"manifest": {"canaries": [["a", 1]]}, "nonce": "xyz"}, "not hexadecimal"),
        ({"manifest": {"canaries": [["a", 1]]}, "nonce": 7}, "not hexadecimal"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, value: object, words: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InvalidEvidence, match=words):
        read_coins(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,coin\na,1\na,0\n", "2 canaries with 1 ids"),
        ("id,coin\n", "0 canaries"),
        ("id,coin,copies\na,1,x\n", "copies='x' of id 'a' must be a number"),
        ("id,coin,copies\na,1,0\n", "copies=0.0, which is no whole number"),
        ("id,coin,nonce\na,1,zz\n", "not hexadecimal"),
        ("id,coin,nonce\na,1,ff\n", "a nonce of 1 bytes"),
        ("id,coin,nonce\na,1,\n", "has no nonce in its row 1"),
    ],
)
def test_coin_tables_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "coins.csv"
    path.write_text(text)
    with pytest.raises(InvalidEvidence, match=words):
        read_coins(path)


def test_scores_of_a_run_are_one_for_each_canary_by_the_planned_attack(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("id,score,attack\nb,2.0,loss\na,1.0,loss\na,9.0,zlib\n")
    assert scores_of(path, ["a", "b"], attack="loss").tolist() == [1.0, 2.0]
    with pytest.raises(InvalidEvidence, match="holds scores of loss, zlib and the plan pre-registered 'min-k'"):
        scores_of(path, ["a", "b"], attack="min-k")
    for ids, attack in ((["a", "b"], "unspecified"), (["a"], "loss"), (["a", "b", "c"], "loss")):
        with pytest.raises(InvalidEvidence, match="exactly one score for each"):
            scores_of(path, ids, attack=attack)
