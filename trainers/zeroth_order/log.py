"""The (seed, coefficient) log: a complete checkpoint of a few bytes a step.

Every update is a function of public direction keys and of the released numbers, so the log with the base model
rebuilds the weights bit for bit. It holds nothing that was not released through the ledger.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import InvalidEvidence, StorageFailed
from dpaudit.privacy.parts import write_atomically

SCHEMA = "dpaudit.zo_log/1"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One step: its number in the run and the P released numbers."""

    step: int
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageEntry:
    """Start of a stage (or its continuation at ``done`` steps): index, schedule and the mask's digest."""

    index: int
    done: int
    schedule: Mapping[str, Any]
    mask_sha256: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ZOLog:
    """Header and entries in order; entries undone by a rewind are already dropped."""

    header: Mapping[str, Any]
    entries: tuple[StageEntry | Release, ...]

    @property
    def steps(self) -> int:
        """Number of updates that stand in the weights."""
        return sum(isinstance(entry, Release) for entry in self.entries)


class ZOLogWriter:
    """Keeps the log in memory and, with a path, appends it to a JSON-lines file, one flushed line a step.

    A crash may leave a torn last line, whose step was counted and whose update is lost; readers drop it.

    Parameters
    ----------
    path : Path, optional
        JSON-lines file. Where it exists its lines are read, and the next ones are appended.

    Raises
    ------
    InvalidEvidence
        If the file is no log; from :meth:`header`, if it belongs to another model or other directions.
    OSError
        If a line cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lines: list[dict[str, Any]] = []
        if path is not None and path.exists() and path.stat().st_size:
            self._lines = _lines(path)
            _rewrite(path, self._lines)
        self._file = None if path is None else path.open("a", encoding="utf-8")

    def header(self, header: Mapping[str, Any]) -> None:
        """Write the header, or check that the log at hand belongs to the same base model and directions."""
        value = {"schema": SCHEMA, **header}
        if not self._lines:
            self._append(value)
            return
        for key in ("run", "generator", "tensors"):
            if self._lines[0].get(key) != value.get(key):
                raise InvalidEvidence(
                    f"the log's {key} differs from this run's; continue with the same model and directions, or"
                    " start a new log."
                )

    def stage(self, entry: StageEntry) -> None:
        """Write a stage's start."""
        self._append(
            {
                "stage": entry.index,
                "done": entry.done,
                "schedule": dict(entry.schedule),
                "mask_sha256": entry.mask_sha256,
            }
        )

    def release(self, entry: Release) -> None:
        """Write one step's released numbers."""
        self._append({"step": entry.step, "g": list(entry.values)})

    def rewind(self, steps: int) -> None:
        """Note in the log that the weights went back to the state after ``steps`` updates (a checkpoint was restored).

        Raises
        ------
        InvalidEvidence
            When the file holds fewer updates than stand in the weights: it would not rebuild them.
        """
        logged = self.value().steps
        if logged > steps:
            self._append({"rewind": steps})
        elif logged < steps and self.path is not None:
            raise InvalidEvidence(
                f"log {self.path} holds {logged} updates and the checkpoint {steps}, so that it would not rebuild the"
                " weights; restore the log, or start a new run."
            )

    def value(self) -> ZOLog:
        """What was written so far."""
        return _parse(self._lines)

    def flush(self) -> None:
        """Write the lines that an earlier failure left unwritten, each exactly once.

        Raises
        ------
        StorageFailed
            When the disk still refuses.
        """
        if self._file is None:
            return
        try:
            self._file.flush()
        except OSError as error:
            assert self.path is not None
            raise StorageFailed.of(self.path, error) from error

    def close(self) -> None:
        """Close the file, if any."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                assert self.path is not None
                raise StorageFailed.of(self.path, error) from error

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        if self._file is not None:
            # Buffered, so a full disk is refused in flush.
            self._file.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
            self.flush()


def read_zo_log(path: Path) -> ZOLog:
    """Read a log file.

    Parameters
    ----------
    path : Path
        As ``ZOLogWriter`` was given.

    Returns
    -------
    ZOLog
        Header, stages and released numbers in the order of the steps.

    Raises
    ------
    InvalidEvidence
        If a line other than a torn last one is no log line, or the header is missing or of another version.
    """
    if not path.exists():
        raise InvalidEvidence(f"log {path} does not exist; give the file that the run wrote.")
    return _parse(_lines(path))


def _lines(path: Path) -> list[dict[str, Any]]:
    raw = path.read_text(encoding="utf-8").split("\n")
    found: list[dict[str, Any]] = []
    for number, line in enumerate(raw):
        if not line:
            continue
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(raw) - 1:  # a last line without a newline was cut by a crash
                break
            raise InvalidEvidence(f"log {path}, line {number + 1} is not JSON; restore the file.") from error
    return found


def _rewrite(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Drop a torn last line before appending to the file."""
    text = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in lines)
    write_atomically(path, text.encode())


def _parse(lines: Sequence[Mapping[str, Any]]) -> ZOLog:
    if not lines or lines[0].get("schema") != SCHEMA:
        found = lines[0].get("schema") if lines else None
        raise InvalidEvidence(f"the log's schema is {found!r} and must be {SCHEMA!r}; its first line is the header.")
    entries: list[StageEntry | Release] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            if "rewind" in line:
                entries = _first(entries, int(line["rewind"]))
            elif "stage" in line:
                entries.append(
                    StageEntry(
                        index=int(line["stage"]),
                        done=int(line["done"]),
                        schedule=line["schedule"],
                        mask_sha256=line["mask_sha256"],
                    )
                )
            else:
                entries.append(Release(step=int(line["step"]), values=tuple(float(g) for g in line["g"])))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidEvidence(f"the log's line {number} is no stage, step or rewind; restore the file.") from error
    return ZOLog(header=dict(lines[0]), entries=tuple(entries))


def _first(entries: list[StageEntry | Release], steps: int) -> list[StageEntry | Release]:
    """The entries up to and with the given number of releases."""
    kept: list[StageEntry | Release] = []
    for entry in entries:
        if isinstance(entry, Release):
            if steps == 0:
                break
            steps -= 1
        kept.append(entry)
    return kept
