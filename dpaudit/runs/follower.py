"""What the other processes of a run do: train beside the first one, segment by segment, as it orders.

``python -m dpaudit.runs.follower`` is how ``[run] processes`` starts one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit import MemoryJournal
from dpaudit.privacy import spelling
from dpaudit.privacy.errors import DpauditError
from dpaudit.runs.allocator import keep_freed_memory
from dpaudit.runs.encoding import private_records
from dpaudit.runs.fit import runner_of
from dpaudit.runs.in_run.watch import Watch
from dpaudit.runs.processes import MEETING, Place, Team, arrived, joined, launched
from dpaudit.runs.progress import quiet_transformers
from dpaudit.runs.segment import Part
from dpaudit.runs.sources import load_model, select_trainable

if TYPE_CHECKING:
    from dpaudit.runs.config import Config


def follow(place: Place, config: Config | None = None) -> None:
    """Take part in a run until its first process has no more orders.

    Parameters
    ----------
    place : Place
    config : Config, optional
        Of the run, where this process knows it before the first one tells: it decides how the processes talk.

    Raises
    ------
    DpauditError
        If another process ended or hung.
    """
    import torch

    from dpaudit.trainers.stopping import finish_the_step

    quiet_transformers()
    with joined(place, config) as prepared:
        if prepared is None:
            return
        if prepared.config.optimizer.threads:
            torch.set_num_threads(prepared.config.optimizer.threads)
        model = load_model(prepared.config, prepared.base, classes=prepared.public.classes)
        model = select_trainable(model, prepared.config)
        records, run = private_records(prepared), runner_of(prepared.config)
        team = Team(place, MemoryJournal(), sharded=prepared.config.run.sharding is not None)
        with finish_the_step() as told:

            def after_step(report: Any) -> bool:
                return told.signal is not None

            while (order := team.hear()) is not None:
                stage, (start, stop), state = order
                run(
                    Part(
                        prepared=prepared, model=model, records=records, team=team, stage=stage, start=start,
                        stop=stop, state=state, after_step=after_step, watch=Watch(),
                    )
                )  # fmt: skip
                team.any(told.signal is not None)


def follow_the_first(config: Config | None) -> None:
    """In another process than the first of a launcher: take part in its training, then end this program.

    Parameters
    ----------
    config : Config or None
        Of the run; None where the run was trained before and one process has all that is left to do.
    """
    place = launched()
    if place is None or place.rank == 0:
        return
    if config is not None:
        follow(place, config)
    raise SystemExit(0)


def main() -> int:
    """Join the run that started this process; its exit code."""
    spelling.prepare(sys.stdout, sys.stderr)
    keep_freed_memory()
    place = launched()
    assert place is not None  # the process that starts this one sets its rank in the environment
    arrived(Path(os.environ[MEETING]), place.rank).touch()
    try:
        follow(place)
    except DpauditError as error:
        print(f"process {place.rank}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
