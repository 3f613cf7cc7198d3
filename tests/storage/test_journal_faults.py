"""Released steps never exceed the ledger: two writers, forks, lost files, and every call that can fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dpaudit.storage.journal as module
from dpaudit import InvalidEvidence, InvalidValue, PrivacyRefusal, Stage, StorageFailed
from dpaudit.privacy.stage import Sampling
from dpaudit.storage.journal import DiskJournal, read_journal

STAGE = Stage(sampling_probability=0.1, noise_multiplier=1.0, steps=0, sampling=Sampling.POISSON)
CALLS = ("open", "pwrite", "fdatasync", "fsync", "replace", "unlink")


def journal(folder: Path, **options: Any) -> DiskJournal:
    return DiskJournal(
        folder / "ledger.jsonl", relation="add_or_remove_one", unit="r", audit_plan_sha256=None, **options
    )


def steps(folder: Path) -> int:
    return read_journal(folder / "ledger.jsonl").ledger.steps


def in_child(act: Callable[[], None]) -> str:
    """What ``act`` raised in a forked child, by name, or ""."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:
            os.write(writes, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    said = os.read(reads, 10_000).decode()
    os.close(reads)
    return said


@pytest.fixture(autouse=True)
def blocks_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLUSH_SHARE", 1e9)  # as for steps that take far longer than a flush


def test_a_second_writer_is_refused_in_this_process_and_in_another(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    log.count()
    with pytest.raises(InvalidValue, match=r"ledger\.jsonl is in use"):
        journal(tmp_path)
    assert in_child(lambda: journal(tmp_path).begin(STAGE)).startswith("InvalidValue")
    log.count()
    log.seal("finished")
    with pytest.raises(InvalidValue, match="in use"):  # sealed is not closed
        journal(tmp_path)
    log.close()
    with journal(tmp_path) as again:
        assert again.steps == 2 and again.recovered_steps == 0


@pytest.mark.parametrize("act", ["count", "seal", "begin", "append", "copy_to"])
def test_a_forked_child_cannot_write(tmp_path: Path, act: str) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    log.count()
    arguments: dict[str, tuple[Any, ...]] = {
        "count": (),
        "seal": ("x",),
        "begin": (STAGE,),
        "append": (STAGE, "x"),
        "copy_to": (tmp_path / "copy",),
    }
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert in_child(lambda: getattr(log, act)(*arguments[act])).startswith("PrivacyRefusal: ledger ledger.jsonl")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    log.count()
    assert steps(tmp_path) == 2


def test_a_child_that_outlives_a_killed_writer_does_not_keep_the_ledger(tmp_path: Path) -> None:
    def train() -> None:
        log = journal(tmp_path)
        log.begin(STAGE)
        log.count()
        if os.fork() == 0:  # a worker of a data loader, say
            for handle in range(3, 64):  # the test's own pipes
                try:
                    os.close(handle)
                except OSError:
                    pass
            import time

            time.sleep(2)
            os._exit(0)
        os.kill(os.getpid(), 9)

    in_child(train)
    with journal(tmp_path) as log:
        assert log.recovered_steps == log.steps == 1


def test_a_child_of_with_cannot_seal_and_the_parent_goes_on(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.begin(STAGE)
        log.count()
        assert "PrivacyRefusal" in in_child(lambda: log.__exit__(None, None, None))
    assert read_journal(tmp_path / "ledger.jsonl").reasons == ("finished",) and steps(tmp_path) == 1


class Faults:
    """Makes the n-th of the calls by which a journal writes fail, once."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, number: int) -> None:
        self.left, self.number, self.failed = at, number, ""
        for name in CALLS:
            patch.setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.failed = name
                if name == "pwrite":  # some bytes reach the disk
                    handle, data, offset = arguments
                    return real(handle, data[:20], offset)
                if name == "replace":  # the rename happens and its reply is lost
                    real(*arguments, **options)
                raise OSError(self.number, os.strerror(self.number))
            return real(*arguments, **options)

        return call


def run_once(folder: Path, retry: bool) -> tuple[int, bool]:
    """Two stages of three steps; returns the released steps and whether the run ended."""
    released = 0

    def attempt(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except StorageFailed:
            if not retry:
                raise
            return act()

    try:
        log = attempt(lambda: journal(folder))
        try:
            for _ in range(2):
                attempt(lambda: log.begin(STAGE))
                for _ in range(3):
                    attempt(log.count)
                    released += 1
                attempt(lambda: log.seal("finished"))
        finally:
            log.close()
    except StorageFailed:
        return released, False
    return released, True


@pytest.mark.parametrize("number, retry", [(errno.ENOSPC, True), (errno.EIO, False)])
def test_no_failed_call_is_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, retry: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # real flushes take most of this test's time
    failed: list[str] = []
    for at in range(1, 200):
        folder = tmp_path / str(at)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, number)
            released, ended = run_once(folder, retry)
        if not faults.failed:
            break
        failed.append(faults.failed)
        if not (folder / "ledger.jsonl").exists():
            assert released == 0
            continue
        assert steps(folder) >= released, (at, faults.failed)
        if retry:
            assert ended and released == 6
        with journal(folder) as again:  # what is left can be continued
            assert 0 <= again.steps - released <= 1
            again.begin(STAGE)
            again.count()
        assert steps(folder) >= released + 1
        left = {p.name for p in folder.iterdir()}
        assert left == {"ledger.jsonl"}, (at, faults.failed, left)
    assert {"pwrite", "fdatasync", "fsync", "replace", "open"} <= set(failed) and at > 30


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    acts=st.lists(st.sampled_from(["begin", "count", "count", "count", "fail", "seal", "kill", "fork"]), max_size=25),
    share=st.sampled_from([1e9, 1e-9]),
)
def test_released_steps_never_exceed_the_ledger(
    tmp_path_factory: pytest.TempPathFactory, acts: list[str], share: float
) -> None:
    folder, released, is_open = tmp_path_factory.mktemp("ledger"), 0, False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(module, "_FLUSH_SHARE", share)
        log = journal(folder)
        for act in acts:
            if act == "begin":
                log.begin(STAGE)
                is_open = True
            elif act == "count" and is_open:
                log.count()
                released += 1
            elif act == "fail" and is_open:
                with pytest.MonkeyPatch.context() as broken:
                    Faults(broken, 2, errno.ENOSPC)
                    try:
                        log.count()
                        released += 1
                    except StorageFailed:
                        pass
            elif act == "seal":
                log.seal("checkpoint")
                is_open = False
            elif act == "kill":
                log.close()
                log, is_open = journal(folder), False
            elif act == "fork" and is_open:
                assert in_child(log.count)
            assert steps(folder) >= released
            assert log.steps >= released
        log.close()
        with journal(folder) as end:
            assert end.steps >= released
            if share == 1e9:
                assert end.steps <= released + acts.count("fail")


def test_a_lost_open_record_is_refused_whatever_else_stands(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.begin(STAGE)
        log.count()
        log.seal("checkpoint")
        log.begin(STAGE)
        earlier = (tmp_path / "ledger.open").read_bytes()
        log.seal("checkpoint")
        log.begin(STAGE)
        log.count()
        log.close()
    record = tmp_path / "ledger.open"
    whole, sealed = record.read_bytes(), (tmp_path / "ledger.jsonl").read_bytes()
    record.unlink()
    for use in (lambda: read_journal(tmp_path / "ledger.jsonl"), lambda: journal(tmp_path)):
        with pytest.raises(InvalidEvidence, match=r"ledger\.open is missing"):
            use()
    record.write_bytes(earlier)  # of the segment before, which is sealed
    with pytest.raises(InvalidEvidence, match="does not belong"):
        read_journal(tmp_path / "ledger.jsonl")
    record.write_bytes(whole)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(sealed.splitlines(keepends=True)[:1]))
    for use in (lambda: read_journal(tmp_path / "ledger.jsonl"), lambda: journal(tmp_path)):
        with pytest.raises(InvalidEvidence, match="does not belong"):
            use()
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(InvalidEvidence, match=r"ledger\.jsonl is missing"):
        journal(tmp_path)
    (tmp_path / "ledger.jsonl").write_bytes(sealed)
    assert steps(tmp_path) == 2


def test_a_record_of_another_ledger_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        log = DiskJournal(tmp_path / name / "ledger.jsonl", relation="zero_out", unit=name, audit_plan_sha256=None)
        log.begin(STAGE)
        log.count()
        log.close()
    (tmp_path / "a" / "ledger.open").write_bytes((tmp_path / "b" / "ledger.open").read_bytes())
    with pytest.raises(InvalidEvidence, match="does not belong"):
        read_journal(tmp_path / "a" / "ledger.jsonl")


def test_a_ledger_changed_under_the_journal_is_not_written_over(tmp_path: Path) -> None:
    log = journal(tmp_path)
    log.begin(STAGE)
    log.count()
    path = tmp_path / "ledger.jsonl"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"unit":"r"', b'"unit":"s"'))
    with pytest.raises(InvalidEvidence, match="was changed by something else"):
        log.seal("finished")
    path.write_bytes(good)
    log.seal("finished")
    assert steps(tmp_path) == 1


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"ledger\.jsonl cannot be written: its folder .* does not exist"):
        journal(tmp_path / "none")


def test_with_seals_and_gives_the_ledger_up(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), journal(tmp_path) as log:
        log.begin(STAGE)
        log.count()
        _ = 1 / 0
    assert read_journal(tmp_path / "ledger.jsonl").reasons == ("interrupted",)
    with pytest.raises(RuntimeError, match="closed"):
        log.begin(STAGE)
    with journal(tmp_path) as log:
        log.begin(STAGE)
        log.count()
    assert read_journal(tmp_path / "ledger.jsonl").reasons == ("interrupted", "finished")


def test_a_copy_holds_every_step_and_the_segment_goes_on(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.begin(STAGE)
        log.count()
        (tmp_path / "copy").mkdir()
        log.copy_to(tmp_path / "copy" / "ledger.jsonl")
        log.count()
    assert steps(tmp_path / "copy") == 1 and steps(tmp_path) == 2
    assert read_journal(tmp_path / "ledger.jsonl").heads[1] == read_journal(tmp_path / "copy" / "ledger.jsonl").head


def test_a_child_process_in_a_refusal_names_both(tmp_path: Path) -> None:
    log = journal(tmp_path)
    said = in_child(lambda: log.begin(STAGE))
    assert str(os.getpid()) in said and "\n" not in said
    assert issubclass(PrivacyRefusal, Exception)


def test_one_ledger_has_one_lock_by_whatever_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "other.jsonl").symlink_to(tmp_path / "real" / "ledger.jsonl")
    monkeypatch.chdir(tmp_path / "real")
    log = journal(Path())
    for name in (tmp_path / "link" / "ledger.jsonl", tmp_path / "other.jsonl", tmp_path / "real" / "ledger.jsonl"):
        with pytest.raises(InvalidValue, match="in use"):
            DiskJournal(name, relation="add_or_remove_one", unit="r", audit_plan_sha256=None)
    log.begin(STAGE)
    monkeypatch.chdir(tmp_path)  # a path given relative to the folder of that time
    log.count()
    log.seal("finished")
    assert steps(tmp_path / "real") == 1 and not (tmp_path / "ledger.jsonl").exists()


def test_threads_of_one_process_count_every_step(tmp_path: Path) -> None:
    import sys
    import threading

    log = journal(tmp_path)
    log.begin(STAGE)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [log.count() for _ in range(50)]) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert steps(tmp_path) >= 300 and log.steps == 300
    log.seal("finished")
    assert steps(tmp_path) == 300


def test_a_journal_is_never_copied_or_pickled(tmp_path: Path) -> None:
    import copy
    import pickle

    log = journal(tmp_path)
    for act in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyRefusal, match="never copied or pickled"):
            act(log)


def test_appending_beside_an_open_stage_is_refused(tmp_path: Path) -> None:
    with journal(tmp_path) as log:
        log.begin(STAGE)
        log.count()
        with pytest.raises(RuntimeError, match="while a stage is open"):
            log.append(STAGE, "x")
    assert steps(tmp_path) == 1
