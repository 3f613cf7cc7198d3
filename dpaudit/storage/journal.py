"""The ledger on disk: sealed segments in a digest chain, and one open record that is durable before each release.

``ledger.jsonl`` holds one canonical JSON object a line; each carries the SHA-256 of the line before it, and the
first carries the digest of the audit plan. ``ledger.open`` is a fixed-size file: a header that names the open
stage, then two slots that are rewritten in turn, so that a torn write leaves the other slot whole. A crash may
over-count (by the block of steps reserved ahead) and never under-counts.

While a segment is open, the last line of ``ledger.jsonl`` says so; sealing puts the segment in its place. A ledger
whose ``ledger.open`` was lost is therefore refused, and not read as if its open steps had never been taken. One
writer has the ledger at a time: ``ledger.lock`` is locked for the journal's life, and a forked child may not write.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from dpaudit.privacy.errors import DpauditError, InvalidEvidence, PrivacyRefusal, StorageFailed
from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.protocols import FileJournal
from dpaudit.privacy.stage import Stage
from dpaudit.storage.commitment import canonical_json, sha256_bytes
from dpaudit.storage.files import sync_folder, write_atomically
from dpaudit.storage.lock import FileLock
from dpaudit.storage.readers import parse_json, read_bytes

GENESIS = "0" * 64
MAX_LEDGER_BYTES = 16 * 2**20
_HEADER_BYTES = 4096
_SLOT = struct.Struct("<QQ32s")
_SLOT_STRIDE = 512  # one slot a disk sector, so that a torn sector cannot touch the other
_OPEN_BYTES = _HEADER_BYTES + 2 * _SLOT_STRIDE
_FLUSH_SHARE = 0.01
_MARK = b'{"kind":"open",'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecord:
    """Content of a ``ledger.jsonl`` file whose digest chain was checked.

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
    heads : tuple of str
        SHA-256 of every sealed line in order; ``head`` is the last.
    """

    ledger: Ledger
    head: str
    audit_plan_sha256: str | None
    reasons: tuple[str, ...]
    open_steps: int | None
    heads: tuple[str, ...] = ()


def read_journal(path: Path) -> JournalRecord:
    """Read and check a ledger file and, when it stands beside it, its open segment.

    Parameters
    ----------
    path : Path
        ``ledger.jsonl``; its open segment is the file ``ledger.open`` beside it.

    Returns
    -------
    JournalRecord
        The ledger with the steps of the open segment, the digests of its lines, and the audit plan that it is bound
        to.

    Raises
    ------
    InvalidEvidence
        When a line is missing, reordered or changed, or when the open segment is missing.
    """
    path = Path(path)
    header, segments, heads, record = _read_both(path)
    stages = [_stage_of(segment, path) for segment in segments]
    steps = None
    if record is not None:
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
    return JournalRecord(
        ledger=ledger,
        head=heads.sealed[-1],
        audit_plan_sha256=plan,
        reasons=reasons,
        open_steps=steps,
        heads=heads.sealed,
    )


def _read_both(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], _Heads, _OpenRecord | None]:
    """Read both files of a ledger, again where a running journal changed the first before the second was read."""
    while True:
        header, segments, heads = _read_sealed(path)
        try:
            return header, segments, heads, _open_segment(path, heads)
        except InvalidEvidence:
            if _read_sealed(path)[2] == heads:
                raise


def read_ledger(path: Path) -> Ledger:
    """Ledger of a ``ledger.jsonl`` file; see :func:`read_journal`."""
    return read_journal(path).ledger


class DiskJournal(FileJournal):
    """Writes a ledger; :meth:`count` returns only when the step is durable.

    One journal has a ledger at a time: the file is locked from here to :meth:`close` (or the end of the ``with``
    block, of the object, or of the process), and a process forked from this one cannot write. A write that failed
    raises, changes nothing that this object holds, and is made again by the next call.

    Parameters
    ----------
    path : Path
        ``release/ledger.jsonl``; its folder must exist and lie on a file system with locks. When the file exists the
        run continues it, and an open segment left by a crash is sealed at every step it may have released.
    relation, unit, max_records_per_unit
        As in :class:`~dpaudit.Ledger`; must equal those of an existing file.
    audit_plan_sha256 : str or None
        Digest of ``audit_plan.json``, written into the first line.
    planned_steps : int or None
        Steps of the whole run: blocks are never reserved beyond it, so that a crash cannot overspend the plan.

    Attributes
    ----------
    recovered_steps : int
        Steps of a segment that an unclean stop had left open and that was sealed here.

    Raises
    ------
    InvalidValue
        When another journal, in this process or another, has the ledger.
    InvalidEvidence
        When an existing ledger is damaged, incomplete, or was opened with another header.
    StorageFailed
        When the folder is missing or cannot be written or locked.
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
        self._path = Path(path).resolve()  # one lock, and one file, by whatever name or from whatever folder
        self._mutex = threading.RLock()
        self._open_path = self._path.with_suffix(".open")
        self._process, self._closed = os.getpid(), False
        self._stage: Stage | None = None
        self._steps = self._reserved = self._sequence = 0
        self._block = 1
        self._file: int | None = None
        self._last_count: float | None = None
        self._planned = planned_steps
        self.recovered_steps = 0
        # a header that could not be read back must be refused before any step is counted
        Ledger(stages=(), relation=relation, unit=unit, max_records_per_unit=max_records_per_unit)
        header = {
            "kind": "header",
            "version": 1,
            "previous": GENESIS,
            "relation": str(relation),
            "unit": unit,
            "max_records_per_unit": max_records_per_unit,
            "audit_plan_sha256": audit_plan_sha256,
        }
        self._lock = FileLock(self._path.with_suffix(".lock"), what=f"ledger {self._path.name}")
        try:
            self._take_up(header)
        except BaseException:
            self._lock.release()
            raise

    def _take_up(self, header: dict[str, Any]) -> None:
        """Continue the ledger that exists at the path, or begin one."""
        if not self._path.exists():
            if self._open_path.exists():
                raise InvalidEvidence(
                    f"{self._open_path.name} holds counted steps and {self._path.name} is missing; restore it, or give"
                    " another folder."
                )
            line = canonical_json(header)
            self._write_lines([line])
            self._head, self._sealed_steps = sha256_bytes(line), 0
            return
        existing, _, heads = _read_sealed(self._path)
        self._head = heads.sealed[-1]
        if existing != header:
            changed = sorted(k for k in header if existing.get(k) != header[k])
            raise InvalidEvidence(
                f"ledger {self._path.name} was opened with another {changed[0] if changed else 'header'};"
                " continue it with the configuration it began with, or give another run folder."
            )
        record = _open_segment(self._path, heads)
        if record is not None and record.steps:
            self._append(dataclasses.replace(record.stage, steps=record.steps), "recovered after an unclean stop")
            self.recovered_steps = record.steps
        elif heads.marked is not None:
            self._write_lines(self._lines())
        self._remove_open()
        self._sealed_steps = read_ledger(self._path).steps

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.seal("finished" if kind is None else "interrupted")
        except StorageFailed:
            if error is None:  # otherwise the first failure is the one to tell: the open record counts the steps
                raise
        finally:
            self.close()

    @property
    def head(self) -> str:
        """SHA-256 of the last sealed line."""
        return self._head

    @property
    def path(self) -> Path:
        """The sealed ledger's file."""
        return self._path

    @property
    def heads(self) -> tuple[str, ...]:
        """SHA-256 of every sealed line."""
        return read_journal(self._path).heads

    @property
    def steps(self) -> int:
        """Steps counted so far, those of earlier processes included."""
        return self._sealed_steps + self._steps

    def ledger(self) -> Ledger:
        """The ledger so far, the open segment included."""
        return read_ledger(self._path)

    def begin(self, stage: Stage, /) -> None:
        """Open a stage; its ``steps`` are ignored. Seals the one before."""
        with self._alone():
            self._begin(stage)

    def _begin(self, stage: Stage) -> None:
        self.seal("stage change")
        stage = dataclasses.replace(stage, steps=0)
        value = {"version": 1, "previous": self._head, "stage": stage.to_dict(), "segment": secrets.token_hex(8)}
        body = canonical_json(value)
        if len(body) > _HEADER_BYTES - 36:
            raise InvalidEvidence(f"the open stage takes {len(body)} bytes and at most {_HEADER_BYTES - 36} fit.")
        header = struct.pack("<I32s", len(body), hashlib.sha256(body).digest()) + body
        content = header.ljust(_HEADER_BYTES, b"\0") + _slot(body, 0, 0).ljust(_SLOT_STRIDE, b"\0") * 2
        write_atomically(self._open_path, content)
        mark = {"kind": "open", "previous": self._head, "record": sha256_bytes(body)}
        self._write_lines([*self._lines(), canonical_json(mark)])
        try:
            self._file = os.open(self._open_path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StorageFailed.of(self._open_path, error) from error
        self._body, self._stage = body, stage
        self._steps = self._reserved = self._sequence = 0
        self._block, self._last_count = 1, None

    def count(self) -> None:
        """Count one step BEFORE its noisy release; returns when that is on disk.

        Raises
        ------
        StorageFailed
            When it could not be written: the step is not counted and must not be released. The next call writes again.
        """
        with self._alone():
            self._count()

    def _count(self) -> None:
        if self._stage is None or self._file is None:
            raise RuntimeError("count() before begin(): no stage is open.")
        started = time.perf_counter()
        if self._steps + 1 > self._reserved:
            reserved = self._steps + self._block
            if self._planned is not None:
                left = self._planned - self._sealed_steps
                reserved = max(self._steps + 1, min(reserved, left))
            self._reserve(reserved)
            flush = time.perf_counter() - started
            if self._last_count is not None:
                step = max(started - self._last_count, 1e-9)
                self._block = (
                    min(1000, max(1, round(flush / (_FLUSH_SHARE * step)))) if flush > _FLUSH_SHARE * step else 1
                )
        self._steps += 1
        self._last_count = time.perf_counter()

    def _reserve(self, steps: int) -> None:
        """Make ``steps`` of the open segment durable; remembered only when all of it has succeeded."""
        assert self._file is not None
        sequence = self._sequence + 1
        offset = _HEADER_BYTES + (sequence % 2) * _SLOT_STRIDE  # a try that fails again tears the same slot
        slot = _slot(self._body, sequence, steps)
        try:
            if (written := os.pwrite(self._file, slot, offset)) != len(slot):
                raise OSError(None, f"{written} of {len(slot)} bytes were written")
            os.fdatasync(self._file)
        except OSError as error:
            what = f"ledger record {self._open_path.name} (the step is not counted and must not be released)"
            raise StorageFailed.of(self._open_path, error, what=what) from error
        self._sequence, self._reserved = sequence, steps

    def seal(self, reason: str, /) -> None:
        """Close the open segment at the steps really counted and append it to the chain."""
        if self._stage is None:
            return
        with self._alone():
            if self._stage is not None:  # another thread may have sealed it meanwhile
                self._seal(self._stage, reason)

    def _seal(self, stage: Stage, reason: str) -> None:
        if self._steps:
            self._append(dataclasses.replace(stage, steps=self._steps), reason)
        else:
            self._write_lines(self._lines())
        self._sealed_steps += self._steps
        self._stage, self._steps = None, 0
        self._close_open()
        self._remove_open()

    def append(self, stage: Stage, reason: str, /) -> None:
        """Append a segment that ran elsewhere, with its ``steps``; an imported run is written so."""
        with self._alone():
            if self._stage is not None:
                raise RuntimeError("append() while a stage is open: seal it first, or its steps would follow no line.")
            self._append(stage, reason)
            self._sealed_steps += stage.steps

    def copy_to(self, path: Path) -> None:
        """Write a copy of the sealed ledger; an open segment is sealed first and goes on as a new one."""
        stage = self._stage
        self.seal("copied")
        write_atomically(path, self._path.read_bytes())
        if stage is not None:
            self.begin(stage)

    def close(self) -> None:
        """Release the lock, so that another journal may go on; an open segment stays as a crash leaves it."""
        if os.getpid() == self._process:
            self._stage = None
            self._close_open()
            self._lock.release()
            self._closed = True

    def _close_open(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _remove_open(self) -> None:
        """Remove a record whose steps are sealed; should that fail, the chain says that they are."""
        with contextlib.suppress(OSError):
            self._open_path.unlink(missing_ok=True)
            sync_folder(self._path.parent)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PrivacyRefusal(
            f"the journal of {self._path.name} is its only writer and is never copied or pickled; count in the process"
            " that opened it."
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a forked child, and let one thread write at a time."""
        self._refuse_other_process()  # before the lock, which a thread of the parent may have held when it forked
        with self._mutex:
            yield

    def _refuse_other_process(self) -> None:
        if os.getpid() != self._process:
            raise PrivacyRefusal(
                f"ledger {self._path.name} was opened by process {self._process} and this is its child {os.getpid()}:"
                " two processes would count one step; train in the process that opened it."
            )
        if self._closed:
            raise RuntimeError(f"the journal of {self._path.name} is closed; open another one.")

    def _append(self, stage: Stage, reason: str) -> None:
        line = canonical_json({"kind": "segment", "previous": self._head, "stage": stage.to_dict(), "reason": reason})
        lines = self._lines(expected=line)
        self._write_lines([*lines, line])
        self._head = sha256_bytes(line)

    def _lines(self, *, expected: bytes = b"") -> list[bytes]:
        """The sealed lines on disk, which must end where this journal left them.

        A line that an earlier try wrote before its flush failed (``expected``) is left out: it is written again.
        """
        lines = self._path.read_bytes().splitlines()
        if lines and lines[-1].startswith(_MARK):
            lines.pop()
        if lines and lines[-1] == expected:
            lines.pop()
        if not lines or sha256_bytes(lines[-1]) != self._head:
            raise InvalidEvidence(
                f"ledger {self._path.name} was changed by something else while this journal had it; restore it, or"
                " start a new run folder."
            )
        return lines

    def _write_lines(self, lines: list[bytes]) -> None:
        write_atomically(self._path, b"\n".join(lines) + b"\n")


@dataclasses.dataclass(frozen=True, slots=True)
class _OpenRecord:
    stage: Stage
    previous: str
    steps: int
    digest: str
    """SHA-256 of what names the segment; the ledger's last line holds it while the segment is open."""


def _slot(body: bytes, sequence: int, steps: int) -> bytes:
    digest = hashlib.sha256(body + struct.pack("<QQ", sequence, steps)).digest()
    return _SLOT.pack(sequence, steps, digest)


def _read_open(path: Path) -> _OpenRecord:
    content = read_bytes(path, limit=_OPEN_BYTES)
    try:
        length, digest = struct.unpack_from("<I32s", content)
        body = content[36 : 36 + length]
        if len(content) != _OPEN_BYTES or hashlib.sha256(body).digest() != digest:
            raise ValueError("its header does not match its digest")
        header = parse_json(body)
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
    return _OpenRecord(stage, previous, max(steps), digest.hex())


@dataclasses.dataclass(frozen=True, slots=True)
class _Heads:
    """SHA-256 of every sealed line, and of the open record that the file says stands beside it, if any."""

    sealed: tuple[str, ...]
    marked: str | None


def _open_segment(path: Path, heads: _Heads) -> _OpenRecord | None:
    """The segment still open, or None; one that is sealed already counts once.

    A crash between appending a segment and removing the open record leaves both, and the segment says which line it
    continues. A record that continues no line of this file, or that the file speaks of and that is gone, means that
    counted steps were lost.
    """
    open_path = path.with_suffix(".open")
    if not os.path.lexists(open_path):
        if heads.marked is not None:
            raise InvalidEvidence(
                f"ledger {path.name} says that a segment is open and {open_path.name} is missing, so that its steps"
                " cannot be counted; restore it, or start a new run folder."
            )
        return None
    record = _read_open(open_path)
    if record.previous in heads.sealed[:-1] and heads.marked is None:
        return None
    if record.previous != heads.sealed[-1] or heads.marked not in (None, record.digest):
        raise InvalidEvidence(
            f"open ledger record {open_path.name} does not belong to the last line of {path.name}; restore both files"
            " as they were together."
        )
    return record


def _read_sealed(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], _Heads]:
    if not os.path.lexists(path):
        raise InvalidEvidence(f"ledger {path} does not exist; give a run folder's release/ledger.jsonl.")
    content = read_bytes(path, limit=MAX_LEDGER_BYTES)
    if not content.endswith(b"\n"):
        raise InvalidEvidence(f"ledger {path.name} does not end with a whole line; it was cut or changed.")
    head, values = GENESIS, []
    heads: list[str] = []
    lines = content[:-1].split(b"\n")
    marked: str | None = None
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line)
            whole = isinstance(value, dict) and canonical_json(value) == line
        except DpauditError:
            whole = False
        if not whole:
            raise InvalidEvidence(f"ledger {path.name}, line {number} is not canonical JSON; it was changed.")
        if value.get("previous") != head:
            raise InvalidEvidence(
                f"ledger {path.name}, line {number} does not continue line {number - 1}; the chain is broken."
            )
        if number == len(lines) > 1 and line.startswith(_MARK):
            marked = str(value.get("record"))
            break
        if value.get("kind") != ("header" if number == 1 else "segment"):
            raise InvalidEvidence(
                f"ledger {path.name}, line {number} has kind {value.get('kind')!r}; the chain is broken."
            )
        head = sha256_bytes(line)
        heads.append(head)
        values.append(value)
    if values[0].get("version") != 1:
        raise InvalidEvidence(
            f"ledger {path.name} has version {values[0].get('version')!r}; this dpaudit reads version 1."
        )
    return values[0], values[1:], _Heads(tuple(heads), marked)


def _stage_of(segment: dict[str, Any], path: Path) -> Stage:
    try:
        return Stage.from_dict(segment["stage"])
    except (DpauditError, KeyError, TypeError) as error:
        raise InvalidEvidence(f"ledger {path.name} holds a stage that cannot be read: {error}") from error
