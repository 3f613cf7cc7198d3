"""What may be continued: never with fewer counted steps, other data, or more ε than claimed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dpaudit.runs.fit as fitting
import dpaudit.storage.journal as journal
from dpaudit import Stage
from dpaudit.runs.resume import declared_configuration, differing_keys
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.files import write_atomically
from dpaudit.storage.journal import DiskJournal, read_journal
from dpaudit.storage.run_folder import RunFolder, read_record
from tests.runs.run_helpers import Outcome, run_cli, small_config, write_toml

TEXTS = [f"private paragraph number {i} about rain" for i in range(60)]


def data(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(texts) + "\n")
    return path


def leave_out_what_is_slow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fitting, "check_sensitivity", lambda *arguments: None)
    patch.setattr(fitting, "public_quality", lambda *arguments: 1.0)
    patch.setattr(journal, "_FLUSH_SHARE", 1e9)  # no step reserved ahead, however slow the disk is


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_what_is_slow(monkeypatch)


def lose_power_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Stop as a kill does: step ``step`` is counted, and nothing is sealed or saved afterwards."""
    counted: list[int] = []
    real = DiskJournal.count

    def count(self: DiskJournal) -> None:
        real(self)
        counted.append(1)
        if len(counted) == step:
            patch.setattr(DiskJournal, "seal", lambda self, reason: None)
            raise KeyboardInterrupt

    patch.setattr(DiskJournal, "count", count)


def train(root: Path, **changes: Any) -> Outcome:
    return run_cli("train", write_toml(root / "c.toml", small_config(**changes)), "--out", root / "run")


@pytest.fixture(scope="module", params=["dp-adam", "dp-zoso"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps, killed while step 3 was taken, with a checkpoint after step 2, and its ledger of that time."""
    root = tmp_path_factory.mktemp("killed")
    config = small_config(
        privacy__method=request.param,
        privacy__steps=6,
        run__checkpoints=3,
        data__path=data(root / "p.txt", TEXTS).name,
        data__limit=None,
    )
    if request.param == "dp-zoso":
        config["zeroth_order"] = {"stages": 1, "scale": 1e-3, "proximal": 1e-3}
    write_toml(root / "c.toml", config)
    with pytest.MonkeyPatch.context() as patch:
        leave_out_what_is_slow(patch)
        lose_power_at(patch, 3)
        with pytest.raises(BaseException):  # noqa: B017  click turns it into Abort
            run_cli("train", root / "c.toml", "--out", root / "run")
    assert read_journal(root / "run" / "release" / "ledger.jsonl").ledger.steps == 3
    return root


def copied(killed: Path, to: Path) -> tuple[Path, Path]:
    shutil.copytree(killed, to, dirs_exist_ok=True)
    return to / "c.toml", to / "run"


def ledger_deleted(run: Path) -> None:
    (run / "release" / "ledger.jsonl").unlink()
    (run / "release" / "ledger.open").unlink()


def open_deleted(run: Path) -> None:
    (run / "release" / "ledger.open").unlink()


def ledger_cut_to_its_header(run: Path) -> None:
    path = run / "release" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    (run / "release" / "ledger.open").unlink()


def sealed_segment_dropped_and_open_kept(run: Path) -> None:
    path = run / "release" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def checkpoint_deleted_too(run: Path) -> None:
    ledger_deleted(run)
    (run / "private" / "checkpoint.pt").unlink()


def another_ledger_of_more_steps(run: Path) -> None:
    """As many steps, bound to the same plan, and not the line at which the checkpoint was written."""
    ledger_deleted(run)
    with DiskJournal(
        run / "release" / "ledger.jsonl",
        relation="add_or_remove_one",
        unit="paragraph",
        audit_plan_sha256=sha256_file(run / "release" / "audit_plan.json"),
    ) as log:
        log.append(Stage(sampling_probability=0.1, noise_multiplier=2.0, steps=5, sampling="poisson"), "x")


@pytest.mark.parametrize(
    "harm, says",
    [
        (ledger_deleted, "is missing and the checkpoint knows of 2 counted steps"),
        (open_deleted, "ledger.open is missing"),
        (ledger_cut_to_its_header, "counts 0 steps and the checkpoint knows of 2"),
        (sealed_segment_dropped_and_open_kept, "does not belong to the last line"),
        (checkpoint_deleted_too, "is missing and steps.jsonl knows of 2"),
        (another_ledger_of_more_steps, "does not hold the line at which the checkpoint was written"),
    ],
)
def test_a_ledger_that_lost_steps_is_refused_and_left_as_it_is(
    killed: Path, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    config, run = copied(killed, tmp_path)
    harm(run)
    before = {p.name: p.read_bytes() for p in (run / "release").iterdir() if p.is_file()}
    outcome = run_cli("train", config, "--out", run)
    assert outcome.code == 3 and says in outcome.error and "\n" not in outcome.error, outcome.error
    assert {p.name: p.read_bytes() for p in (run / "release").iterdir() if p.is_file()} == before
    assert says in str(read_record(RunFolder.open(run)).error)


def test_a_killed_run_goes_on_within_its_plan(killed: Path, tmp_path: Path) -> None:
    config, run = copied(killed, tmp_path)
    assert run_cli("train", config, "--out", run).code == 0
    record = read_journal(run / "release" / "ledger.jsonl")
    assert record.ledger.steps == 6
    assert read_record(RunFolder.open(run)).facts["steps_lost"] == 1


@pytest.mark.parametrize(
    "texts", [[*TEXTS[:-1], "another"], TEXTS[:-1], [*TEXTS, "one more"], [TEXTS[1], TEXTS[0], *TEXTS[2:]]]
)
def test_other_data_are_refused_once_a_record_was_drawn(killed: Path, tmp_path: Path, texts: list[str]) -> None:
    config, run = copied(killed, tmp_path)
    data(tmp_path / "p.txt", texts)
    outcome = run_cli("train", config, "--out", run)
    assert outcome.code == 64 and "are not those that the run" in outcome.error and "data.path=" in outcome.error
    assert read_journal(run / "release" / "ledger.jsonl").ledger.steps == 3


def test_a_lost_key_of_the_commitment_is_one_sentence(killed: Path, tmp_path: Path) -> None:
    config, run = copied(killed, tmp_path)
    (run / "private" / "data.key").unlink()
    outcome = run_cli("train", config, "--out", run)
    assert outcome.code == 3 and "data.key is missing" in outcome.error


def test_another_configuration_is_refused_by_its_keys_once_a_record_was_drawn(killed: Path, tmp_path: Path) -> None:
    config, run = copied(killed, tmp_path)
    config.write_text(
        config.read_text()
        .replace("clipping_norm = 0.5", "clipping_norm = 5.0")
        .replace("checkpoints = 3", "checkpoints = 2")
    )
    outcome = run_cli("train", config, "--out", run)
    assert outcome.code == 64
    assert "another configuration (privacy.clipping_norm=5.0 and was 0.5; run.checkpoints=2 and was 3)" in outcome.error


def test_ledger_and_remaining_plan_are_held_against_the_claim(killed: Path, tmp_path: Path) -> None:
    config, run = copied(killed, tmp_path)
    path = run / "release" / "ledger.jsonl"
    with DiskJournal(
        path,
        relation="add_or_remove_one",
        unit="paragraph",
        audit_plan_sha256=sha256_file(run / "release" / "audit_plan.json"),
    ) as log:
        stage = read_journal(path).ledger.stages[0]
        log.append(Stage.from_dict({**stage.to_dict(), "noise_multiplier": 0.5, "steps": 2}), "x")
    outcome = run_cli("train", config, "--out", run)
    assert outcome.code == 64 and "the 5 steps in the ledger and the 1 still planned have epsilon <=" in outcome.error
    assert read_journal(path).ledger.steps == 5


def test_a_configuration_that_drew_nothing_is_corrected_in_its_folder(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data__path": data(tmp_path / "p.txt", TEXTS).name, "privacy__steps": 2}
    refused = train(tmp_path, **changes, privacy__noise_multiplier=0.3)  # refused by its own accountant
    assert refused.code == 64 and not (tmp_path / "run" / "release" / "audit_plan.json").exists()
    with pytest.MonkeyPatch.context() as patch:  # prepared to the last file, and stopped before the first step
        patch.setattr(fitting, "check_sensitivity", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path, **changes)
    old = (tmp_path / "run" / "release" / "audit_plan.json").read_bytes()
    assert "ZeroDivisionError" in str(read_record(RunFolder.open(tmp_path / "run")).error)
    data(tmp_path / "p.txt", TEXTS[:50])  # corrected data, and another number of canaries
    assert train(tmp_path, **changes, canaries__count=20).code == 0
    plan = json.loads((tmp_path / "run" / "release" / "audit_plan.json").read_text())
    assert plan["m"] == 20 and json.loads(old)["m"] == 24
    record = read_record(RunFolder.open(tmp_path / "run"))
    assert record.config["canaries"]["count"] == 20 and record.error is None
    assert json.loads((tmp_path / "run" / "private" / "data_commitment.json").read_text())["records"] == 50
    assert read_journal(tmp_path / "run" / "release" / "ledger.jsonl").audit_plan_sha256 == sha256_file(
        tmp_path / "run" / "release" / "audit_plan.json"
    )
    assert "canaries.count=21 and was 20" in train(tmp_path, **changes, canaries__count=21).error


@pytest.mark.slow
def test_corrected_data_alone_begin_anew_and_an_untouched_preparation_is_kept(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data__path": data(tmp_path / "p.txt", TEXTS).name, "privacy__steps": 2}
    plan, seen = tmp_path / "run" / "release" / "audit_plan.json", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "check_sensitivity", lambda *arguments: 1 / 0)
        for texts in (TEXTS, TEXTS, TEXTS[:55]):
            data(tmp_path / "p.txt", texts)
            with pytest.raises(ZeroDivisionError):
                train(tmp_path, **changes)
            seen.append(plan.read_bytes())
    assert seen[0] == seen[1] != seen[2]  # a published plan stays what it was while nothing changes
    assert train(tmp_path, **changes).code == 0


def test_differing_keys_name_both_values() -> None:
    old: dict[str, Any] = {"a": {"x": 1, "y": 2}, "b": None}
    new: dict[str, Any] = {"a": {"x": 1, "y": 3}, "b": {"z": 1}}
    assert differing_keys(old, new) == ["a.y=3 and was 2", "b={'z': 1} and was None"]
    assert differing_keys(old, old) == []


def test_a_run_from_before_the_size_was_declared_can_be_reopened() -> None:
    config = small_config(audit__holdout_fraction=0.25)
    del config["privacy"]["public_size"]
    facts = {"planned": [{"public_size": 100 - 25 + 12}]}
    assert declared_configuration(config, facts)["privacy"]["public_size"] == 100
    assert "public_size" not in declared_configuration(config, {})["privacy"]
    assert declared_configuration(small_config(), facts) == small_config()


def test_nothing_private_is_readable_by_others(killed: Path, tmp_path: Path) -> None:
    config, run = copied(killed, tmp_path)
    write_atomically(run / "private" / "left-by-a-library", b"", mode=0o644)
    assert run_cli("train", config, "--out", run).code == 0
    files = [p for p in (run / "private").rglob("*") if p.is_file()]
    assert {"checkpoint.pt", "steps.jsonl", "data.key", "data_commitment.json"} <= {p.name for p in files}
    assert {p.stat().st_mode & 0o777 for p in files} == {0o600}


def test_a_run_whose_every_step_was_lost_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are the base model's: no attack could show anything, and nothing was learnt."""
    changes = {"data__path": data(tmp_path / "p.txt", TEXTS).name, "data__limit": None, "run__checkpoints": 1}
    with pytest.MonkeyPatch.context() as patch:
        lose_power_at(patch, 4)
        with pytest.raises(BaseException):  # noqa: B017  click turns it into Abort
            train(tmp_path, privacy__steps=4, **changes)
    outcome = train(tmp_path, privacy__steps=4, **changes)
    assert outcome.code == 3 and "all 4 charged steps" in outcome.error and "start a new run folder" in outcome.error
    assert read_journal(tmp_path / "run" / "release" / "ledger.jsonl").ledger.steps == 4
