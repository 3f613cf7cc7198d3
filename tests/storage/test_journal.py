"""The ledger on disk: chain, crash recovery, never too little."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dpaudit import InvalidEvidence, InvalidValue, Stage
from dpaudit.privacy.stage import Sampling
from dpaudit.storage.journal import DiskJournal, _read_open, read_journal, read_ledger

STAGE = Stage(sampling_probability=0.1, noise_multiplier=1.0, steps=0, sampling=Sampling.POISSON, clipping_norm=0.5)


def journal(folder: Path) -> DiskJournal:
    return DiskJournal(
        folder / "ledger.jsonl", relation="add_or_remove_one", unit="record", audit_plan_sha256="ab" * 32
    )


def run_steps(log: DiskJournal, steps: int) -> None:
    for _ in range(steps):
        log.count()


def test_sealed_segments_are_read_back(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    run_steps(log, 3)
    log.seal("checkpoint")
    log.begin(STAGE)
    run_steps(log, 2)
    log.seal("finished")
    record = read_journal(tmp_path / "ledger.jsonl")
    assert record.ledger.steps == 5 and [s.steps for s in record.ledger.merged().stages] == [5]
    assert record.reasons == ("checkpoint", "finished") and record.open_steps is None
    assert record.audit_plan_sha256 == "ab" * 32 and record.head == log.head
    assert not (tmp_path / "ledger.open").exists()


def test_open_steps_are_counted_before_the_release(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    for done in range(1, 6):
        log.count()
        assert read_ledger(tmp_path / "ledger.jsonl").steps >= done


def test_an_unclean_stop_is_recovered_and_never_under_counts(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    run_steps(log, 4)
    log.close()  # as after a SIGKILL: nothing was sealed
    again = journal(tmp_path)
    assert again.recovered_steps >= 4
    assert read_journal(tmp_path / "ledger.jsonl").reasons == ("recovered after an unclean stop",)
    again.begin(STAGE)
    again.count()
    again.seal("finished")
    assert read_ledger(tmp_path / "ledger.jsonl").steps >= 5


def test_a_crash_between_append_and_removal_counts_once(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    run_steps(log, 4)
    left = (tmp_path / "ledger.open").read_bytes()
    log.seal("finished")
    log.close()
    (tmp_path / "ledger.open").write_bytes(left)
    assert read_ledger(tmp_path / "ledger.jsonl").steps == 4
    assert journal(tmp_path).recovered_steps == 0
    assert read_ledger(tmp_path / "ledger.jsonl").steps == 4


@pytest.mark.parametrize("slot", [0, 1])
def test_a_torn_slot_leaves_the_other(tmp_path: Path, slot: int) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    run_steps(log, 3)
    path = tmp_path / "ledger.open"
    whole = _read_open(path).steps
    content = bytearray(path.read_bytes())
    content[4096 + 512 * slot + 20] ^= 0xFF
    path.write_bytes(bytes(content))
    assert _read_open(path).steps >= whole - 1000 and _read_open(path).steps >= 0
    content[4096 + 512 * (1 - slot) + 20] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidEvidence, match="no whole slot"):
        _read_open(path)


def test_every_changed_byte_breaks_the_chain_or_the_head(tmp_path: Path) -> None:
    log = journal(tmp_path)
    for _ in range(2):
        log.begin(STAGE)
        run_steps(log, 2)
        log.seal("checkpoint")
    path = tmp_path / "ledger.jsonl"
    good = path.read_bytes()
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        try:
            assert read_journal(path).head != log.head, position
        except InvalidEvidence:
            pass


def test_missing_and_reordered_lines_are_refused(tmp_path: Path) -> None:
    log = journal(tmp_path)
    for _ in range(3):
        log.begin(STAGE)
        run_steps(log, 1)
        log.seal("checkpoint")
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for broken in ([*lines[:1], *lines[2:]], [lines[0], lines[2], lines[1], lines[3]], lines[1:]):
        path.write_bytes(b"".join(broken))
        with pytest.raises(InvalidEvidence):
            read_ledger(path)
    path.write_bytes(b"".join(lines)[:-1])
    with pytest.raises(InvalidEvidence, match="whole line"):
        read_ledger(path)
    with pytest.raises(InvalidEvidence, match="does not exist"):
        read_ledger(tmp_path / "none.jsonl")


def test_another_configuration_may_not_continue(tmp_path: Path) -> None:
    journal(tmp_path)
    with pytest.raises(InvalidEvidence, match="audit_plan_sha256"):
        DiskJournal(tmp_path / "ledger.jsonl", relation="add_or_remove_one", unit="record", audit_plan_sha256=None)


def test_a_million_steps_stay_small_and_blocks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: flushes.append(fd))
    log = journal(tmp_path)
    log.begin(STAGE)
    run_steps(log, 20_000)
    reserved = _read_open(tmp_path / "ledger.open").steps
    assert 20_000 <= reserved <= 21_000 and flushes
    log.seal("finished")
    assert read_ledger(tmp_path / "ledger.jsonl").steps == 20_000
    assert (tmp_path / "ledger.jsonl").stat().st_size < 2_000


def test_blocks_never_exceed_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    log = DiskJournal(path, relation="zero_out", unit="record", audit_plan_sha256=None, planned_steps=2_000)
    log.begin(STAGE)
    run_steps(log, 500)
    log.seal("checkpoint")
    log.begin(STAGE)
    run_steps(log, 1_499)
    assert 1_999 <= read_ledger(path).steps <= 2_000
    run_steps(log, 1)
    assert read_ledger(path).steps == 2_000


def test_lines_hold_plain_json(tmp_path: Path) -> None:
    journal(tmp_path)
    assert json.loads((tmp_path / "ledger.jsonl").read_text())["kind"] == "header"


@pytest.mark.parametrize(
    "bad", [{"unit": "para\u2028graph"}, {"unit": ""}, {"relation": "add"}, {"max_records_per_unit": 0}]
)
def test_what_could_not_be_read_back_is_refused_before_the_ledger_is_begun(tmp_path: Path, bad: dict[str, Any]) -> None:
    header: dict[str, Any] = {"relation": "add_or_remove_one", "unit": "row", "audit_plan_sha256": None}
    with pytest.raises(InvalidValue):
        DiskJournal(tmp_path / "ledger.jsonl", **{**header, **bad})
    assert not list(tmp_path.iterdir())
