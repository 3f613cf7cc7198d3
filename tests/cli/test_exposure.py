"""``dpaudit exposure`` from files: references that are the canaries, reversed losses, claims that concern nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit import InvalidEvidence
from dpaudit.auditing import exposure_report
from dpaudit.cli import run


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code: Any = 0
    try:
        run(["exposure", *map(str, arguments)])
    except SystemExit as stopped:
        code = stopped.code or 0
    shown = capsys.readouterr()
    return int(code), shown.out, shown.err


@pytest.fixture()
def references(tmp_path: Path) -> Path:
    path = tmp_path / "ref.csv"
    losses = np.random.default_rng(0).normal(5, 1, 500).tolist()
    path.write_text("loss\n" + "".join(f"{loss!r}\n" for loss in losses))
    return path


def canaries(path: Path, losses: list[float], *, copies: int | None = None) -> Path:
    extra = "" if copies is None else f",{copies}"
    rows = "".join(f"c{i},{loss!r}{extra}\n" for i, loss in enumerate(losses))
    path.write_text("id,loss" + (",copies" if copies else "") + "\n" + rows)
    return path


def test_canaries_are_never_their_own_references(tmp_path: Path, references: Path, capsys: Any) -> None:
    own = canaries(tmp_path / "can.csv", [0.5, 5.1, 9.2])
    code, out, err = call(capsys, own, "--references", own)
    assert code == 3 and out == "" and "references can.csv is the file of the canaries" in err
    copy = tmp_path / "copy.csv"
    copy.write_bytes(own.read_bytes())
    assert "is the file of the canaries" in call(capsys, own, "--references", copy)[2]
    mixed = tmp_path / "mixed.csv"
    mixed.write_text("id,loss\nc1,5.1\nother,7.0\n")
    code, _, err = call(capsys, own, "--references", mixed)
    assert code == 3 and "holds 1 of the canaries (c1)" in err
    bare = tmp_path / "bare.csv"
    bare.write_text(references.read_text() + "0.5\n5.1\n9.2\n")
    code, _, err = call(capsys, own, "--references", bare)
    assert code == 3 and "all 3 canary losses stand among the references too" in err
    assert call(capsys, own, "--references", references)[0] == 0


def test_rounded_losses_may_repeat(tmp_path: Path, capsys: Any) -> None:
    rounded = np.round(np.random.default_rng(1).normal(5, 1, 500), 1)
    report = exposure_report([f"c{i}" for i in range(5)], [4.0, 4.5, 5.0, 5.5, 6.0], rounded)
    assert report.references == 500


def test_reversed_losses_are_named(tmp_path: Path, references: Path, capsys: Any) -> None:
    given = canaries(tmp_path / "can.csv", [9.0 + i / 10 for i in range(12)])
    code, out, _ = call(capsys, given, "--references", references)
    assert code == 0 and "The losses look reversed" in out
    payload = json.loads(call(capsys, given, "--references", references, "--json")[1])
    assert payload["looks_reversed"] is True and payload["note"].startswith("The losses look reversed")
    call(capsys, given, "--references", references, "--out", tmp_path / "page.html")
    assert "The losses look reversed" in (tmp_path / "page.html").read_text(encoding="utf-8")
    given = canaries(tmp_path / "can.csv", [1.0 + i / 10 for i in range(12)])
    assert json.loads(call(capsys, given, "--references", references, "--json")[1])["looks_reversed"] is False


def test_a_claim_for_copies_that_no_canary_has_is_refused(tmp_path: Path, references: Path, capsys: Any) -> None:
    given = canaries(tmp_path / "can.csv", [0.5, 5.1], copies=8)
    code, _, err = call(capsys, given, "--references", references, "--group-claim", "4=9", "--delta", "1e-5")
    assert code == 64 and "names 4 copies and no canary has so many (they have 8)" in err
    assert call(capsys, given, "--references", references, "--group-claim", "8=9", "--delta", "1e-5")[0] == 0


@pytest.mark.parametrize("copies", [[1.5, 1], [0, 1], [np.nan, 1], [1, 1, 1]])
def test_copies_are_whole_numbers(copies: list[float]) -> None:
    with pytest.raises(InvalidEvidence, match="copies must hold one whole number >= 1"):
        exposure_report(["a", "b"], [1.0, 2.0], [3.0, 4.0], copies=copies)


def test_missing_cells_are_named(tmp_path: Path, references: Path, capsys: Any) -> None:
    path = tmp_path / "can.csv"
    for text, words in (
        ("id,loss\na,\n", "loss of id 'a' is empty"),
        ("id,loss\n,1\n", "has no id in its row 1"),
        ("id,loss\na,nan\n", "losses holds 1 NaN"),
        ("id;loss\na;1\n", "semicolons"),
        ('id,loss\na,"1,5"\n', "decimal comma"),
    ):
        path.write_text(text)
        code, out, err = call(capsys, path, "--references", references)
        assert code == 3 and out == "" and words in err and err.count("\n") == 1, text
