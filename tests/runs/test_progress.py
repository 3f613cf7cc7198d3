"""Progress without a terminal: one line a minute on standard error, never on standard output."""

from __future__ import annotations

import pytest

from dpaudit.runs.progress import minutely, progress


def test_one_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    advance = minutely(10, "private steps", clock=lambda: now[0])
    for _ in range(6):
        now[0] += 25.0
        advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "dpaudit: private steps: 3 of 10 after 1 min",
        "dpaudit: private steps: 6 of 10 after 2 min",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "private steps") as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_closed_error_stream_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    now = [0.0]
    advance = minutely(1, "steps", clock=lambda: now[0])
    now[0] = 100.0
    advance(1)
