"""Run folders: valid at every moment, refuse what is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.storage.run_folder import RunFolder, folder_digests, new_record, read_record, update_record


def test_a_record_round_trips_and_merges_facts(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    record = update_record(folder, new_record({"claim": {"epsilon": 3.0}}), facts={"a": 1})
    record = update_record(folder, record, status="training", facts={"b": 2})
    back = read_record(RunFolder.open(tmp_path / "run"))
    assert back.status == "training" and back.facts == {"a": 1, "b": 2} and back == record
    assert {"python", "versions", "commit", "dirty"} <= set(back.provenance)


def test_a_changed_configuration_is_seen(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    update_record(folder, new_record({"claim": {"epsilon": 3.0}}))
    folder.record.write_text(folder.record.read_text().replace("3.0", "4.0"))
    with pytest.raises(InvalidEvidence, match="config_sha256"):
        read_record(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"schema": "x"}', json.dumps({"schema": "dpaudit.run/1"}), "[" * 10**5]
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InvalidEvidence):
        read_record(RunFolder.open(tmp_path))


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidEvidence, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "other").write_text("x")
    with pytest.raises(InvalidValue, match="not empty"):
        RunFolder.create(tmp_path)
    with pytest.raises(InvalidValue, match="is a file"):
        RunFolder.create(tmp_path / "other")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    with folder.locked(), pytest.raises(InvalidValue, match="in use"), folder.locked():
        pass


def test_digests_name_every_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    assert list(folder_digests(tmp_path)) == ["a/b"]


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"[]",
            b"null",
            b"{}",
            b'{"a":1,"a":2}',
            b"[" * 100_000,
            b"9" * 5000,
            b'{"schema":[1],"status":"trained"}',
        ),
        *(b'{"schema":"dpaudit.run/1","status":["trained"]}', b'{"schema":"dpaudit.run/1","status":"trained"}'),
    ],
)
def test_a_file_that_is_no_record_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.record.write_bytes(content)
    with pytest.raises(InvalidEvidence) as caught:
        read_record(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        *({"config": "-inf"}, {"config": []}, {"facts": None}, {"facts": "a"}, {"provenance": 3}, {"created": None}),
        *({"error": {}}, {"facts": {"steps_lost": "three"}}, {"facts": {"planned": "x"}}, {"facts": {"base": ["a"]}}),
        *({"facts": {"heldout_before": "low"}}, {"config_sha256": 1}, {"config": {"a": "\ud800"}}),
    ],
)
def test_a_record_with_a_field_of_another_type_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = RunFolder.create(tmp_path / "run")
    value = {**new_record({"a": 1}).to_dict(), **changes}
    folder.record.write_text(json.dumps(value))
    with pytest.raises(InvalidEvidence):
        read_record(folder)


@pytest.mark.parametrize("key", sorted(new_record({}).to_dict()))
def test_a_record_without_one_of_its_fields_is_one_sentence(tmp_path: Path, key: str) -> None:
    folder = RunFolder.create(tmp_path / "run")
    value = {name: item for name, item in new_record({}).to_dict().items() if name != key}
    folder.record.write_text(json.dumps(value))
    with pytest.raises(InvalidEvidence) as refusal:
        read_record(folder)
    assert "\n" not in str(refusal.value)
