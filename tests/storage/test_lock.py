"""One holder at a time: two objects, two processes, and a forked child that outlives the holder."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
from pathlib import Path

import pytest

from dpaudit import InvalidValue, StorageFailed
from dpaudit.storage.lock import FileLock


def taken(path: Path) -> bool:
    try:
        FileLock(path, what="it").release()
    except InvalidValue as error:
        assert "in use" in str(error)
        return True
    return False


def test_two_holders_in_one_process_and_release(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    held = FileLock(path, what="ledger a")
    assert taken(path)
    with pytest.raises(InvalidValue, match="ledger a is in use"):
        FileLock(path, what="ledger a")
    held.release()
    held.release()
    assert not taken(path) and not path.exists()


def test_a_lock_ends_with_its_object_and_a_file_left_by_a_crash_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.touch()
    held = FileLock(path, what="it")
    assert taken(path)
    del held
    gc.collect()
    assert not taken(path)


def test_a_forked_child_neither_holds_nor_drops_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    held = FileLock(path, what="it")
    (waits, goes), (hears, tells) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(goes)
        seen = taken(path)
        held.release()  # not the child's to release
        os.write(tells, b"y" if seen and taken(path) else b"n")
        os.read(waits, 1)  # lives on after the holder has let go
        os._exit(0)
    os.close(waits)
    try:
        assert os.read(hears, 1) == b"y" and taken(path)
        held.release()
        assert not taken(path)
    finally:
        os.close(goes)
        os.waitpid(child, 0)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    path, (ready, tell) = tmp_path / "a.lock", os.pipe()
    child = os.fork()
    if child == 0:
        held = FileLock(path, what="it")
        os.write(tell, b"x")
        signal.pause()  # until it is killed
        os._exit(held is None)
    os.read(ready, 1)
    assert taken(path)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert path.exists() and not taken(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StorageFailed, match=r"cannot be locked .*local disk") as caught:
        FileLock(tmp_path / "a.lock", what="ledger a")
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"ledger a cannot be written: its folder .*none does not exist; create"):
        FileLock(tmp_path / "none" / "a.lock", what="ledger a")
