"""The last checkpoint of a run: what stands in the weights, and an echo of what the ledger had counted by then."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from dpaudit.privacy.errors import InvalidEvidence, StorageFailed
from dpaudit.storage.files import PRIVATE_MODE, sync_folder

SLACK = 2**20
"""Bytes kept free for the small files that end a run: the ledger's last line, logs, run.json."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything a resume needs; neither noise nor sampler state.

    Attributes
    ----------
    steps : int
        Private steps whose update stands in ``model``.
    counted : int
        Steps that the ledger held when this was written; a ledger that holds fewer has lost some.
    head : str or None
        SHA-256 of the ledger's last sealed line then.
    statuses : tuple of str
        Statuses of the segments so far.
    model, optimizer
        State dictionaries; ``optimizer`` is whatever the method's loop continues from.
    observers : mapping or None
        State of what watches the run, for the in-run audit.
    """

    steps: int = 0
    counted: int = 0
    head: str | None = None
    statuses: tuple[str, ...] = ()
    model: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)
    optimizer: Any = dataclasses.field(default=None, repr=False)
    observers: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or the state of a run that has not begun.

    Raises
    ------
    InvalidEvidence
        When the file is cut or is no checkpoint.
    """
    import torch

    if not path.exists():
        return Checkpoint()
    try:
        value: dict[str, Any] = torch.load(path, weights_only=True)
        steps = int(value["steps"])
        return Checkpoint(
            steps=steps,
            counted=int(value.get("counted", steps)),
            head=value.get("head"),
            statuses=tuple(value["statuses"]),
            model=value["model"],
            optimizer=value["optimizer"],
            observers=value.get("observers"),
        )
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise _unreadable(path, error) from error


def load_weights(path: Path, checkpoint: Checkpoint, model: Any) -> None:
    """Load a checkpoint's weights into the model; :class:`InvalidEvidence` when they are another model's."""
    if checkpoint.model is None:
        return
    try:
        model.load_state_dict(checkpoint.model)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InvalidEvidence:
    return InvalidEvidence(
        f"checkpoint {path} cannot be read ({type(error).__name__}); restore it, or start a new run folder."
    )


class CheckpointFile:
    """Writes checkpoints into space that was reserved before the first private step.

    A step that was counted is charged whether or not its update is kept, so a full disk must be met before the first
    step and not after some. The next checkpoint is written over the reserved file, which then takes the place of the
    last one; ``SLACK`` more bytes are let go at the first failure, so that ledger, logs and run.json can be completed.

    Parameters
    ----------
    path : Path
        ``private/checkpoint.pt``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next, self._slack = path.with_name(path.name + ".tmp"), path.with_name("reserve.tmp")
        self._bytes = 0

    def reserve(self, model: Any, *, bytes_per_number: int, beside: int = 0) -> None:
        """Reserve what a checkpoint of this model takes; called before the first private step.

        Parameters
        ----------
        model : nn.Module
        bytes_per_number : int
            What the method keeps for each trained number beside it: 8 for two fp32 moments.
        beside : int
            Bytes that observers of the run keep.

        Raises
        ------
        StorageFailed
            When the disk has not that much room.
        """
        self._bytes = _largest(model, bytes_per_number) + beside
        self._take(self._slack, SLACK)
        self._take(self._next, self._bytes)

    def _take(self, path: Path, size: int) -> None:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
            try:
                os.fchmod(handle, PRIVATE_MODE)
                os.posix_fallocate(handle, 0, size)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return  # a file system that cannot promise room
            self.give_back()
            kept = ", and the last one is saved" if self.path.exists() else ""
            megabytes = max(1, round(self._bytes / 10**6))
            refusal = StorageFailed(
                f"run folder {path.parent.parent} has no room for its next checkpoint of about {megabytes} MB"
                f" ({error.strerror}){kept}; free space, then run the same again."
            )
            refusal.errno = error.errno
            raise refusal from error

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint atomically, into the reserved room if there is any.

        Raises
        ------
        StorageFailed
            When it could not be written, also into the room that everything reserved leaves; the last one still stands.
        """
        try:
            self._write(checkpoint)
        except StorageFailed:
            self.give_back()  # where overwriting takes new room, as on a copy-on-write file system
            self._write(checkpoint)

    def _write(self, checkpoint: Checkpoint) -> None:
        import torch

        value = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
        value["statuses"] = list(checkpoint.statuses)
        sink = None
        try:
            handle = os.open(self._next, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
            with os.fdopen(handle, "r+b") as file:
                os.fchmod(file.fileno(), PRIVATE_MODE)
                sink = _Sink(file)
                torch.save(value, cast(Any, sink))
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            size = self._next.stat().st_size
            self._next.replace(self.path)
            sync_folder(self.path.parent)
        except (OSError, RuntimeError) as error:
            cause = error if sink is None or sink.error is None else sink.error
            if not isinstance(cause, OSError):
                raise
            raise StorageFailed.of(self.path, cause) from error
        self._bytes = size + SLACK

    def reserve_next(self) -> None:
        """Reserve room for the checkpoint after the one just written; see :meth:`reserve`."""
        self._take(self._next, self._bytes)

    def let_go(self) -> None:
        """Free the slack: something could not be written, and what remains to be written is small."""
        with contextlib.suppress(OSError):
            self._slack.unlink(missing_ok=True)

    def give_back(self) -> None:
        """Free everything that was reserved."""
        self.let_go()
        with contextlib.suppress(OSError):
            self._next.unlink(missing_ok=True)


class _Sink:
    """A file that remembers what the disk refused: torch reports it as an unexpected position."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return int(self._file.write(data))
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _largest(model: Any, bytes_per_number: int) -> int:
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}  # tied ones are stored once
    state = sum(t.numel() * t.element_size() + 2048 for t in tensors.values())
    kept = sum(p.numel() * bytes_per_number + 4096 for p in model.parameters() if p.requires_grad)
    return int(state + kept + SLACK)
