"""A run in several processes: the first prepares, counts and writes; the others train beside it and write nothing.

The first process tells the others what to do, one order a segment. It is the one that was started, where ``[run]
processes`` starts the others, or that of rank 0 under a launcher such as ``torchrun``.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.privacy.errors import DpauditError, InvalidValue, RunInterrupted
from dpaudit.storage.journal import DiskJournal

if TYPE_CHECKING:
    from dpaudit.privacy.protocols import Journal
    from dpaudit.runs.config import Config
    from dpaudit.runs.in_run.watch import Watch
    from dpaudit.runs.prepare import Prepared

FOLLOWER = "dpaudit.runs.follower"
LIMIT = datetime.timedelta(minutes=30)
"""How long processes wait for one another: longer than the first one takes to evaluate and to write a checkpoint."""
MEETING = "DPAUDITMEETING"
"""Names, in a process that this module started, the folder where all of them meet."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among the others: its number, how many there are, and its number on its machine."""

    rank: int
    size: int
    on_machine: int


def launched() -> Place | None:
    """This process's place under a launcher of several, read from what the launcher sets; None where it is alone.

    Raises
    ------
    InvalidValue
        If the launcher's variables are no numbers.
    """
    try:
        size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        place = Place(rank, size, int(os.environ.get("LOCAL_RANK", str(rank))))
    except ValueError:
        raise InvalidValue(
            "WORLD_SIZE, RANK and LOCAL_RANK must be whole numbers; start with torchrun, or without any of them."
        ) from None
    return None if size == 1 else place


def trains_in(config: Config) -> int:
    """Processes that a run started now trains in."""
    place = launched()
    return config.run.processes if place is None else place.size


def refuse_lonely_shards(config: Config) -> None:
    """Refuse shards of a model that one process would hold all of.

    Raises
    ------
    InvalidValue
        Says what to set.
    """
    if config.run.sharding is not None and trains_in(config) == 1:
        raise InvalidValue(
            f"run.sharding={config.run.sharding!r} spreads a model over processes and run.processes=1; set"
            " run.processes, start with torchrun, or leave sharding out."
        )


class Team:
    """The processes of a run, seen from one of them.

    Attributes
    ----------
    leads : bool
        Whether this is the first process.
    journal : Journal
        The run's ledger in the first process; one in memory, of which nothing is kept, in the others.
    sharded : bool
        Whether the processes train one model in shards.
    own : mapping or None
        With shards, what this process's part of the last segment left.
    """

    def __init__(self, place: Place | None, journal: Journal, *, sharded: bool = False) -> None:
        self._place, self.journal, self.sharded = place, journal, sharded and place is not None
        self.leads = place is None or place.rank == 0
        self.own: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self._place is None else self._place.size

    def order(self, index: int, span: tuple[int, int], state: Any) -> None:
        """Tell the others to run stage ``index`` over these steps, going on from ``state``."""
        if self._place is not None:
            _from_the_first((index, span, state))

    def hear(self) -> tuple[int, tuple[int, int], Any] | None:
        """The next order of the first process; None at the end."""
        found: tuple[int, tuple[int, int], Any] | None = _from_the_first(None)
        return found

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all of them ask together."""
        if self._place is None:
            return flag
        from dpaudit.trainers.distributed.shards import any_process

        return any_process(flag)

    def shard(self, model: Any) -> None:
        """Bring the model into shards where the run asks for them and it is not yet; the first process's weights."""
        from dpaudit.trainers.distributed.layers import shard_layers
        from dpaudit.trainers.distributed.replicated import share_weights
        from dpaudit.trainers.distributed.shards import has_shards

        if self.sharded and not has_shards(model):
            share_weights(model)
            shard_layers(model)

    def first_order(self, model: Any, plan: Any, units: int, watch: Watch) -> dict[str, Any]:
        """Arguments of ``train`` in this process; ``units`` are drawn from, records or what they belong to."""
        if self._place is None:
            return {"journal": self.journal, "canaries": watch.canaries, "recorder": watch.recorder}
        from dpaudit.trainers.distributed.replicated import distributed_options

        watching = {"canaries": watch.canaries, "recorder": watch.recorder}
        return dict(distributed_options(model, plan, units, journal=self.journal, **watching))

    def zeroth_order(self, model: Any) -> dict[str, Any]:
        """Arguments of ``zo_train`` in this process, with the model made equal to the first one's."""
        if self._place is None:
            return {"journal": self.journal}
        from dpaudit.trainers.distributed.replicated import share_weights
        from dpaudit.trainers.zeroth_order.distributed import TorchWorld

        share_weights(model)
        return {"journal": self.journal, "world": TorchWorld(spread="records")}


@contextmanager
def gathered(prepared: Prepared, journal: DiskJournal) -> Iterator[Team]:
    """The team of a run, in its first process: starts the others where nobody did, and lets them go at the end.

    Raises
    ------
    InvalidValue
        If ``run.processes`` contradicts the launcher, or the device cannot be shared.
    DpauditError
        If another process ended or hung; the first one does not go on without it.
    """
    place, size = launched(), prepared.config.run.processes
    if place is None and size == 1:
        yield Team(None, journal)
        return
    if place is not None and size not in (1, place.size):
        raise InvalidValue(
            f"run.processes={size} and the launcher started {place.size}; leave run.processes out, or start without a"
            " launcher."
        )
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="dpaudit-") as meeting:
        try:
            if place is None:
                place = Place(0, size, 0)
                started = _start(size, meeting)
                _await(started, Path(meeting))
            with _group(place, prepared.config, meeting if started else None):
                try:
                    _from_the_first(prepared)
                    yield Team(place, journal, sharded=prepared.config.run.sharding is not None)
                except RunInterrupted:  # every process has ended the same step, so that all can be told to stop
                    _from_the_first(None)
                    raise
                except RuntimeError as error:
                    raise _lost(error, started) from error
                _from_the_first(None)
            for process in started:
                process.wait()
        finally:
            for process in started:  # only the first process writes, so the others may be killed
                process.kill()
                process.wait()


def dismiss(config: Config) -> None:
    """Let the processes of a launcher go when nothing is left to train."""
    place = launched()
    if place is not None and place.rank == 0:
        with _group(place, config, None):
            _from_the_first(None)


@contextmanager
def joined(place: Place, config: Config | None) -> Iterator[Prepared | None]:
    """Join the first process from another one; what it prepared, or None where there is nothing to train."""
    with _group(place, config, os.environ.get(MEETING)):
        try:
            yield _from_the_first(None)
        except RuntimeError as error:
            raise _lost(error, []) from error


@contextmanager
def _group(place: Place, config: Config | None, meeting: str | None) -> Iterator[None]:
    import torch
    import torch.distributed as dist

    device = "cpu" if config is None else config.optimizer.device
    backend = _backend(device, place)
    if meeting is None:
        dist.init_process_group(backend, timeout=LIMIT)
    else:
        start = f"file://{meeting}/group"
        dist.init_process_group(backend, init_method=start, rank=place.rank, world_size=place.size, timeout=LIMIT)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.size))
    try:
        yield
    finally:
        with suppress(RuntimeError):  # raised where a process of the group is gone
            dist.destroy_process_group()


def _backend(device: str, place: Place) -> str:
    import torch

    if device == "cpu":
        return "gloo"
    if device != "cuda":
        raise InvalidValue(
            f"optimizer.device={device!r} cannot be used in {place.size} processes; give 'cuda' (one GPU each), or"
            " 'cpu'."
        )
    torch.cuda.set_device(place.on_machine)
    return "nccl"


def _from_the_first(value: Any) -> Any:
    from dpaudit.trainers.distributed.shards import first_process

    return first_process(value)


def _start(size: int, meeting: str) -> list[subprocess.Popen[bytes]]:
    made = []
    for rank in range(1, size):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), MEETING: meeting}
        command = [sys.executable, "-m", FOLLOWER]
        made.append(subprocess.Popen(command, env={**os.environ, **place}, stdin=subprocess.DEVNULL))
    return made


def arrived(meeting: Path, rank: int) -> Path:
    """The file with which a started process says that it is there."""
    return meeting / f"arrived-{rank}"


def _await(started: list[subprocess.Popen[bytes]], meeting: Path) -> None:
    """Wait until every started process has loaded its program: one that cannot would keep the group waiting."""
    while not all(arrived(meeting, rank).exists() for rank in range(1, len(started) + 1)):
        for rank, process in enumerate(started, 1):
            if process.poll() is not None:
                raise DpauditError(
                    f"process {rank} of the run could not start (exit code {process.returncode}); see what it wrote, or"
                    " leave run.processes out."
                )
        time.sleep(0.02)


def _lost(error: RuntimeError, started: list[subprocess.Popen[bytes]]) -> Exception:
    """What a broken group means, in words; the error itself where it is not the group's."""
    text = str(error).lower()
    if not any(sign in text for sign in ("connection", "peer", "timed out", "timeout", "nccl", "gloo")):
        return error
    deadline, ended = time.monotonic() + 2.0, list[str]()
    while started and not ended and time.monotonic() < deadline:
        ended = [f"{i} (exit code {p.returncode})" for i, p in enumerate(started, 1) if p.poll() is not None]
        time.sleep(0.02)
    who = f"process {', '.join(ended)}" if ended else "another process"
    return DpauditError(
        f"{who} of the run ended or hangs, so that none goes on; steps that were counted stay charged. Run the same"
        " command again to go on from the last checkpoint."
    )
