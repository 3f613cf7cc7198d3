"""Atomic writes: whole or not at all, private where asked, one sentence when the disk refuses."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from dpaudit import DpauditError, StorageFailed
from dpaudit.storage.files import PRIVATE_MODE, write_atomically


def test_the_mode_holds_also_over_a_wider_file_and_a_wider_leftover(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for wider in (path, tmp_path / "a.tmp"):
        wider.write_bytes(b"old")
        wider.chmod(0o644)
    write_atomically(path, b"new", mode=PRIVATE_MODE)
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number, says", [(errno.ENOSPC, "no space left"), (errno.EIO, "Input/output error")])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str, call: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageFailed, match=says) as caught:
            write_atomically(path, b"new")
    assert isinstance(caught.value, OSError) and isinstance(caught.value, DpauditError)
    assert caught.value.errno == number and "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"its folder .*x does not exist; create the folder first"):
        write_atomically(tmp_path / "x" / "a", b"")


def test_a_foreign_librarys_error_becomes_one_sentence() -> None:
    failure = StorageFailed.of(Path("model"), RuntimeError("IoError(StorageFull)\nbacktrace"))
    assert str(failure) == "model cannot be written: no space left on the disk; free space, then run the same again."
    assert failure.errno is None
