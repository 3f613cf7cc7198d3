"""Attempts are counted before they begin; a second examination replaces the first and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dpaudit.runs.examine as examine
from dpaudit.attacks.examiner.values import Findings
from dpaudit.runs.attempts import attempt_deviations, attempts_of, count_attempt
from dpaudit.runs.config import parse_config
from dpaudit.runs.run import Job, examine_phase
from dpaudit.storage.run_folder import RunFolder, new_record, read_json, read_record, update_record
from tests.runs.run_helpers import small_config


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder, value = RunFolder.create(tmp_path / "run"), small_config()
    folder.release.mkdir(exist_ok=True)
    record = update_record(folder, new_record(value))
    return Job(folder=folder, config=parse_config(value, "c.toml"), base=tmp_path, record=record)


def test_attempts_are_counted_before_they_begin(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> Findings:
        raise KeyboardInterrupt

    monkeypatch.setattr(examine, "examine_configuration", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            examine_phase(Job(folder=job.folder, config=job.config, base=job.base, record=read_record(job.folder)))
    facts = read_record(job.folder).facts
    assert attempts_of(facts) == {"examination": 2}
    assert ["2 times" in text for text in attempt_deviations(facts)] == [True]


def test_a_second_examination_replaces_the_first_and_says_so(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    alphas = iter((0.001, 0.002))
    monkeypatch.setattr(
        examine,
        "examine_configuration",
        lambda *_, **__: Findings(findings=(), tests=(), untested=(), alpha=next(alphas)),
    )
    told: list[str] = []
    first = examine_phase(job, budget="30s", tell=told.append)
    payload = read_json(job.folder.examination)
    assert not told and payload["false_alarm_probability"] == 0.001 and payload["attempt"] == 1
    assert payload["config_sha256"] == job.record.config_sha256 and payload["budget"] == "30s"
    second = examine_phase(first, tell=told.append)
    payload = read_json(job.folder.examination)
    assert len(told) == 1 and "replaced" in told[0]
    assert payload["false_alarm_probability"] == 0.002 and payload["attempt"] == 2
    job.folder.certificate.write_text("{}")
    assert examine_phase(second, tell=told.append) == second and "stays" in told[-1]
    assert read_json(job.folder.examination) == payload


def test_one_attempt_is_no_deviation_and_odd_facts_are_none(job: Job) -> None:
    record = count_attempt(job.folder, job.record, "control")
    record = count_attempt(job.folder, record, "training")
    record = count_attempt(job.folder, record, "training")
    assert attempts_of(record.facts) == {"control": 1, "training": 2} and attempt_deviations(record.facts) == []
    assert attempts_of({"attempts": {"control": "3", "other": 2, "training": True}}) == {}
    assert attempts_of({"attempts": [1]}) == attempts_of({}) == {}
