"""Loops end between two steps: told to by the callback or a signal, or because a file cannot be written."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dpaudit import InvalidEvidence, MemoryJournal, StorageFailed
from dpaudit.trainers import PrivacyPlan, train
from dpaudit.trainers.stopping import TrainingStopped, finish_the_step
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.log import ZOLogWriter, read_zo_log
from dpaudit.trainers.zeroth_order.stages import ZOStage
from dpaudit.trainers.zeroth_order.train import zo_train
from dpaudit.trainers.zeroth_order.weights import replay

PLAN = PrivacyPlan(
    delta=1e-5, relation="add_or_remove_one", sampling="poisson", unit="row", public_size=40, expected_batch_size=8,
    steps=6, clipping_norm=1.0, noise_multiplier=1.0,
)  # fmt: skip
RECORDS = list(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def losses(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch)[:, 0] - 1) ** 2


class Refusing(MemoryJournal):
    """A journal whose disk refuses at one moment."""

    def __init__(self, count: int = 0, seal: int = 0) -> None:
        super().__init__()
        self.left = {"count": count, "seal": seal}

    def _maybe(self, name: str) -> None:
        self.left[name] -= 1
        if self.left[name] == 0:
            raise StorageFailed.of(Path("ledger.open"), OSError(errno.ENOSPC, "x"))

    def count(self) -> None:
        self._maybe("count")
        super().count()

    def seal(self, reason: str, /) -> None:
        if self.ledger_stages():
            self._maybe("seal")
        super().seal(reason)


def first_order(journal: MemoryJournal, **options: Any) -> Any:
    return train(net(), RECORDS, PLAN, collate=torch.stack, loss_fn=losses, journal=journal, **options)


def zeroth_order(journal: MemoryJournal, **options: Any) -> Any:
    stage = ZOStage(plan=PLAN, learning_rate=0.1, scale=1e-3)
    return zo_train(
        net(), RECORDS, stage, collate=torch.stack, loss_fn=losses, journal=journal,
        directions=Directions(run="r"), **options,
    )  # fmt: skip


def steps_of(result: Any) -> int:
    return result.stage.steps if hasattr(result, "stage") else result.stages[0].steps


LOOPS = pytest.mark.parametrize("loop", [first_order, zeroth_order])


@LOOPS
def test_a_callback_ends_the_run_after_its_step(loop: Any) -> None:
    journal = MemoryJournal()
    assert steps_of(loop(journal, callback=lambda report: report.step == 3)) == 3
    assert [stage.steps for stage in journal.ledger_stages()] == [3]


@LOOPS
@pytest.mark.parametrize("refuses, ran", [({"count": 4}, 3), ({"seal": 1}, 6)])
def test_a_journal_that_cannot_write_ends_the_run_with_its_result(loop: Any, refuses: dict[str, int], ran: int) -> None:
    seen: list[int] = []
    with pytest.raises(TrainingStopped, match="no space left") as caught:
        loop(Refusing(**refuses), callback=lambda report: seen.append(report.step))
    assert steps_of(caught.value.result) == ran == len(seen) and caught.value.errno == errno.ENOSPC


@LOOPS
def test_a_callback_that_cannot_write_keeps_its_step(loop: Any) -> None:
    def log(report: Any) -> None:
        if report.step == 2:
            raise StorageFailed("steps.jsonl cannot be written.")

    journal = MemoryJournal()
    with pytest.raises(TrainingStopped, match=r"steps\.jsonl") as caught:
        loop(journal, callback=log)
    assert steps_of(caught.value.result) == 2 and journal.ledger_stages()[0].steps == 2


@LOOPS
def test_another_error_is_not_covered_by_the_seal(loop: Any) -> None:
    def burst(report: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop(Refusing(seal=1), callback=burst)


@LOOPS
def test_a_resume_is_held_against_a_journal_on_disk_alone(loop: Any, tmp_path: Path) -> None:
    from dpaudit.storage.journal import DiskJournal

    later: dict[str, Any] = {"start_step": 4} if loop is first_order else {"start": (0, 4)}
    with DiskJournal(
        tmp_path / "ledger.jsonl", relation="add_or_remove_one", unit="row", audit_plan_sha256=None
    ) as journal:
        loop(journal, callback=lambda report: report.step == 3)
        with pytest.raises(InvalidEvidence, match="counts 3 steps and this run goes on after 4"):
            loop(journal, **later)
        assert journal.steps == 3
        later = {"start_step": 3} if loop is first_order else {"start": (0, 3)}
        loop(journal, **later)
        assert journal.steps == 6
    loop(MemoryJournal(), **later)  # a journal in memory counts one process


def test_a_log_that_could_not_be_written_is_completed_and_replays(tmp_path: Path) -> None:
    model = net()
    log = ZOLogWriter(tmp_path / "log.jsonl")
    stage = ZOStage(plan=PLAN, learning_rate=0.1, scale=1e-3)
    inner, full = log._file, []

    class Disk:
        def write(self, text: str) -> int:
            return inner.write(text)

        def flush(self) -> None:
            if '"step": 2' in str(log._lines[-1]).replace("'", '"') and not full:
                full.append(1)
                raise OSError(errno.ENOSPC, "No space left on device")
            inner.flush()

        def close(self) -> None:
            inner.close()

    log._file = Disk()  # type: ignore[assignment]
    with pytest.raises(TrainingStopped, match=r"log\.jsonl cannot be written: no space left"):
        zo_train(
            model, RECORDS, stage, collate=torch.stack, loss_fn=losses, journal=MemoryJournal(),
            directions=Directions(run="r"), log=log,
        )  # fmt: skip
    log.flush()
    log.close()
    found = read_zo_log(tmp_path / "log.jsonl")
    assert found.steps == 3
    again = replay(found, net())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish_and_the_second_stops_at_once(number: int) -> None:
    before = signal.getsignal(number)
    with finish_the_step() as told:
        assert told.signal is None and told.name == ""
        os.kill(os.getpid(), number)
        assert told.signal == number and told.name.startswith("SIG")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            for _ in range(1000):  # the interpreter looks at signals between instructions
                pass
    assert signal.getsignal(number) is before


def test_ignored_signals_stay_ignored_and_other_threads_change_nothing() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a job in the background
    try:
        with finish_the_step() as told:
            os.kill(os.getpid(), signal.SIGINT)
            assert told.signal is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    seen: list[Any] = []

    def inside() -> None:
        with finish_the_step():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
