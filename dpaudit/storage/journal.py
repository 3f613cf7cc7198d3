"""The ledger on disk: sealed segments in a digest chain, and one open record that is durable before each release.

``ledger.jsonl`` holds one canonical JSON object a line; each carries the SHA-256 of the line before it, and the
first carries the digest of the audit plan. ``ledger.open`` is a fixed-size file: a header that names the open
stage, then two slots that are rewritten in turn, so that a torn write leaves the other slot whole. A crash may
over-count (by the block of steps reserved ahead) and never under-counts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

from dpaudit.privacy.errors import DpauditError, InvalidEvidence
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.stage import Stage
from dpaudit.storage.commitment import canonical_json, sha256_bytes

GENESIS = "0" * 64
MAX_LEDGER_BYTES = 64 * 2**20
_HEADER_BYTES = 4096
_SLOT = struct.Struct("<QQ32s")
_SLOT_STRIDE = 512  # one slot a disk sector, so that a torn sector cannot touch the other
_OPEN_BYTES = _HEADER_BYTES + 2 * _SLOT_STRIDE
_FLUSH_SHARE = 0.01


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecord:
    """What ``ledger.jsonl`` says, its chain checked.

    Attributes
    ----------
    ledger : Ledger
        Sealed stages, and the open one if there is one (counted at its reserved steps).
    head : str
        SHA-256 of the last sealed line: what a certificate binds.
    audit_plan_sha256 : str or None
        Digest the ledger opened with.
    reasons : tuple of str
        Why each segment was sealed.
    open_steps : int or None
        Steps of a segment still open (the run is going on, or was killed), else None.
    """

    ledger: Ledger
    head: str
    audit_plan_sha256: str | None
    reasons: tuple[str, ...]
    open_steps: int | None


def read_journal(path: Path) -> JournalRecord:
    """Read and check a ledger file and, when it stands beside it, its open segment.

    Raises
    ------
    InvalidEvidence
        When a line is missing, reordered or changed.
    """
    path = Path(path)
    header, segments, head = _read_sealed(path)
    stages = [_stage_of(segment, path) for segment in segments]
    steps = None
    open_path = path.with_suffix(".open")
    if open_path.exists():
        record = _read_open(open_path)
        if not _already_sealed(record, segments):
            steps = record.steps
            if steps:
                stages.append(dataclasses.replace(record.stage, steps=steps))
    try:
        ledger = Ledger(
            stages=tuple(stages),
            relation=header["relation"],
            unit=header["unit"],
            max_records_per_unit=header["max_records_per_unit"],
        )
    except (DpauditError, KeyError, TypeError, AttributeError) as error:
        raise InvalidEvidence(
            f"ledger {path.name}: its first line does not name what it protects ({error})."
        ) from error
    reasons = tuple(str(segment.get("reason", "")) for segment in segments)
    plan = header.get("audit_plan_sha256")
    return JournalRecord(ledger=ledger, head=head, audit_plan_sha256=plan, reasons=reasons, open_steps=steps)


def read_ledger(path: Path) -> Ledger:
    """Ledger of a ``ledger.jsonl`` file; see :func:`read_journal`."""
    return read_journal(path).ledger


class DiskJournal:
    """Writes a ledger; :meth:`count` returns only when the step is durable.

    Parameters
    ----------
    path : Path
        ``release/ledger.jsonl``. When it exists the run continues it, and an open segment left by a crash is
        sealed at every step it may have released.
    relation, unit, max_records_per_unit
        As in :class:`~dpaudit.Ledger`; must equal those of an existing file.
    audit_plan_sha256 : str or None
        Digest of ``audit_plan.json``, written into the first line.
    planned_steps : int or None
        Steps of the whole run: blocks are never reserved beyond it, so that a crash cannot overspend the plan.
    """

    def __init__(
        self,
        path: Path,
        *,
        relation: str,
        unit: str,
        max_records_per_unit: int = 1,
        audit_plan_sha256: str | None,
        planned_steps: int | None = None,
    ) -> None:
        self._path = Path(path)
        self._open_path = self._path.with_suffix(".open")
        self._stage: Stage | None = None
        self._steps = self._reserved = self._sequence = 0
        self._block = 1
        self._file: int | None = None
        self._last_count: float | None = None
        self._planned, self._sealed_steps = planned_steps, 0
        self.recovered_steps = 0
        header = {
            "kind": "header",
            "version": 1,
            "previous": GENESIS,
            "relation": str(relation),
            "unit": unit,
            "max_records_per_unit": max_records_per_unit,
            "audit_plan_sha256": audit_plan_sha256,
        }
        if self._path.exists():
            existing, _, self._head = _read_sealed(self._path)
            if existing != header:
                changed = sorted(k for k in header if existing.get(k) != header[k])
                raise InvalidEvidence(
                    f"ledger {self._path.name} was opened with another {changed[0] if changed else 'header'};"
                    " continue it with the configuration it began with, or give another run folder."
                )
            self._recover()
        else:
            self._write_lines([canonical_json(header)])
        self._head = _read_sealed(self._path)[2]

    def _recover(self) -> None:
        if not self._open_path.exists():
            return
        _, segments, self._head = _read_sealed(self._path)
        record = _read_open(self._open_path)
        if record.steps and not _already_sealed(record, segments):
            self._append(dataclasses.replace(record.stage, steps=record.steps), "recovered after an unclean stop")
            self.recovered_steps = record.steps
        self._open_path.unlink()
        _sync_folder(self._path.parent)

    @property
    def head(self) -> str:
        """SHA-256 of the last sealed line."""
        return self._head

    def ledger(self) -> Ledger:
        """The ledger so far, the open segment included."""
        return read_ledger(self._path)

    def begin(self, stage: Stage, /) -> None:
        """Open a stage; its ``steps`` are ignored. Seals the one before."""
        self.seal("stage change")
        self._stage = dataclasses.replace(stage, steps=0)
        self._steps = self._reserved = self._sequence = 0
        self._block, self._last_count = 1, None
        self._sealed_steps = read_ledger(self._path).steps
        body = canonical_json({"version": 1, "previous": self._head, "stage": self._stage.to_dict()})
        if len(body) > _HEADER_BYTES - 36:
            raise InvalidEvidence(f"the open stage takes {len(body)} bytes and at most {_HEADER_BYTES - 36} fit.")
        header = struct.pack("<I32s", len(body), hashlib.sha256(body).digest()) + body
        content = header.ljust(_HEADER_BYTES, b"\0") + _slot(body, 0, 0).ljust(_SLOT_STRIDE, b"\0") * 2
        write_atomically(self._open_path, content)
        self._body = body
        self._file = os.open(self._open_path, os.O_RDWR)

    def count(self) -> None:
        """Count one step BEFORE its noisy release; returns when that is on disk."""
        if self._stage is None or self._file is None:
            raise RuntimeError("count() before begin(): no stage is open.")
        started = time.perf_counter()
        if self._steps + 1 > self._reserved:
            self._reserved = self._steps + self._block
            if self._planned is not None:
                left = self._planned - self._sealed_steps
                self._reserved = max(self._steps + 1, min(self._reserved, left))
            self._sequence += 1
            offset = _HEADER_BYTES + (self._sequence % 2) * _SLOT_STRIDE
            os.pwrite(self._file, _slot(self._body, self._sequence, self._reserved), offset)
            os.fdatasync(self._file)
            flush = time.perf_counter() - started
            if self._last_count is not None:
                step = max(started - self._last_count, 1e-9)
                self._block = (
                    min(1000, max(1, round(flush / (_FLUSH_SHARE * step)))) if flush > _FLUSH_SHARE * step else 1
                )
        self._steps += 1
        self._last_count = time.perf_counter()

    def seal(self, reason: str, /) -> None:
        """Close the open segment at the steps really counted and append it to the chain."""
        if self._stage is None:
            return
        if self._steps:
            self._append(dataclasses.replace(self._stage, steps=self._steps), reason)
        if self._file is not None:
            os.close(self._file)
        self._open_path.unlink(missing_ok=True)
        self._stage, self._file = None, None

    def _append(self, stage: Stage, reason: str) -> None:
        line = canonical_json({"kind": "segment", "previous": self._head, "stage": stage.to_dict(), "reason": reason})
        lines = [*self._path.read_bytes().splitlines(), line]
        self._write_lines(lines)
        self._head = sha256_bytes(line)

    def _write_lines(self, lines: list[bytes]) -> None:
        write_atomically(self._path, b"\n".join(lines) + b"\n")


@dataclasses.dataclass(frozen=True, slots=True)
class _OpenRecord:
    stage: Stage
    previous: str
    steps: int


def _slot(body: bytes, sequence: int, steps: int) -> bytes:
    digest = hashlib.sha256(body + struct.pack("<QQ", sequence, steps)).digest()
    return _SLOT.pack(sequence, steps, digest)


def _read_open(path: Path) -> _OpenRecord:
    content = path.read_bytes()
    try:
        length, digest = struct.unpack_from("<I32s", content)
        body = content[36 : 36 + length]
        if len(content) != _OPEN_BYTES or hashlib.sha256(body).digest() != digest:
            raise ValueError("its header does not match its digest")
        header = json.loads(body)
        stage = Stage.from_dict(header["stage"])
        previous = str(header["previous"])
    except (ValueError, KeyError, TypeError, struct.error, DpauditError) as error:
        raise InvalidEvidence(
            f"open ledger record {path.name} is damaged ({error}); the run cannot be counted."
        ) from error
    steps = []
    for index in range(2):
        sequence, count, mark = _SLOT.unpack_from(content, _HEADER_BYTES + index * _SLOT_STRIDE)
        if _slot(body, sequence, count) == _SLOT.pack(sequence, count, mark):
            steps.append(count)
    if not steps:
        raise InvalidEvidence(f"open ledger record {path.name} has no whole slot; the run cannot be counted.")
    return _OpenRecord(stage, previous, max(steps))


def _already_sealed(record: _OpenRecord, segments: list[dict[str, Any]]) -> bool:
    """A crash between appending a segment and removing the open record leaves both; count it once."""
    return bool(segments) and segments[-1].get("previous") == record.previous


def _read_sealed(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    try:
        size = path.stat().st_size
        if size > MAX_LEDGER_BYTES:
            raise InvalidEvidence(f"ledger {path.name} has {size} bytes and at most {MAX_LEDGER_BYTES} are read.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InvalidEvidence(f"ledger {path} does not exist; give a run folder's release/ledger.jsonl.") from error
    if not content.endswith(b"\n"):
        raise InvalidEvidence(f"ledger {path.name} does not end with a whole line; it was cut or changed.")
    head, values = GENESIS, []
    for number, line in enumerate(content[:-1].split(b"\n"), start=1):
        try:
            value = json.loads(line)
            whole = isinstance(value, dict) and canonical_json(value) == line
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            raise InvalidEvidence(f"ledger {path.name}, line {number} is not canonical JSON; it was changed.")
        if value.get("previous") != head:
            raise InvalidEvidence(
                f"ledger {path.name}, line {number} does not continue line {number - 1}; the chain is broken."
            )
        if value.get("kind") != ("header" if number == 1 else "segment"):
            raise InvalidEvidence(
                f"ledger {path.name}, line {number} has kind {value.get('kind')!r}; the chain is broken."
            )
        head = sha256_bytes(line)
        values.append(value)
    if values[0].get("version") != 1:
        raise InvalidEvidence(
            f"ledger {path.name} has version {values[0].get('version')!r}; this dpaudit reads version 1."
        )
    return values[0], values[1:], head


def _stage_of(segment: dict[str, Any], path: Path) -> Stage:
    try:
        return Stage.from_dict(segment["stage"])
    except (DpauditError, KeyError, TypeError) as error:
        raise InvalidEvidence(f"ledger {path.name} holds a stage that cannot be read: {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, rename: a crash leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
