"""Neighbouring data sets, all randomness fixed and the sums drowned: the release is the same to the last byte.

The noise is made infinitely large by leaving the sums out of what it is added to. What the mechanism releases is then
independent of the records, and so is everything computed from it; every other trace of a record would show as a byte.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch

from dpaudit.runs.records import RawRecords, split_by_text
from tests.runs.run_helpers import EXAMPLES, run_cli, small_config, write_toml
from tests.runs.test_release import fixed_randomness

LINES = lzma.open(EXAMPLES / "data" / "austen_private.txt.xz", "rt").read().splitlines()[:70]
FRACTION = 0.2


def drown_the_sums(patch: pytest.MonkeyPatch) -> None:
    import dpaudit.trainers.release as first
    import dpaudit.trainers.zeroth_order.steps as zeroth

    noisy_mean, clip = first.noisy_mean, zeroth.clip_differences

    def drowned(totals: list[torch.Tensor], *, noise: Any, **options: Any) -> Any:
        if noise.is_test:  # the control adds none: its records are public stand-ins, and its scores are published
            return noisy_mean(totals, noise=noise, **options)
        return noisy_mean([torch.zeros_like(t) for t in totals], noise=noise, **options)

    patch.setattr(first, "noisy_mean", drowned)
    patch.setattr(zeroth, "clip_differences", lambda found, *rest: torch.zeros_like(clip(found, *rest)))
    # The commitment to the data is an HMAC under a key that is not released: to everybody else it is a random number.
    patch.setattr("dpaudit.runs.data_commitment.data_hmac", lambda key, private: "0" * 64)
    patch.setattr("secrets.randbits", lambda bits: 7)


def release_of(folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch, method: str) -> dict[str, bytes]:
    folder.mkdir()
    (folder / "private.txt").write_text("\n".join(lines) + "\n")
    config = small_config(
        data__path="private.txt",
        data__limit=None,
        data__heldout=None,
        data__heldout_fraction=FRACTION,
        privacy__method=method,
        privacy__steps=3,
        privacy__noise_multiplier=20.0,
        privacy__expected_batch_size=40,
        audit__holdout_fraction=0.3,
        run__checkpoints=2,
    )
    options = ["--control"]
    if method == "dp-zoso":
        config["zeroth_order"] = {"directions": 2, "clip": "joint", "stages": 2, "scale": 1e-3, "proximal": 1e-2}
        options = []
    with monkeypatch.context() as patch:
        fixed_randomness(patch)
        drown_the_sums(patch)
        done = run_cli("certify", write_toml(folder / "c.toml", config), "--out", folder / "run", *options)
    assert done.code == 2, done.error
    release = folder / "run" / "release"
    return {str(p.relative_to(release)): p.read_bytes() for p in release.rglob("*") if p.is_file()}


def private_index() -> int:
    """Position of a record that is private whatever the others are."""
    raw = RawRecords("x", tuple(LINES), None, tuple(map(str, range(len(LINES)))))
    private, _ = split_by_text(raw, FRACTION, 0)
    return LINES.index(private.texts[11])


@pytest.mark.parametrize("method", ["dp-adam", pytest.param("dp-zoso", marks=pytest.mark.slow)])
def test_one_record_changed_or_removed_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    at = private_index()
    other = next(t for t in (f"A dark night on moor {i}." for i in range(99)) if is_private(t))
    whole = release_of(tmp_path / "whole", LINES, monkeypatch, method)
    neighbours = {"changed": [*LINES[:at], other, *LINES[at + 1 :]], "removed": LINES[:at] + LINES[at + 1 :]}
    for name, lines in neighbours.items():
        near = release_of(tmp_path / name, lines, monkeypatch, method)
        assert set(near) == set(whole)
        assert [file for file in whole if whole[file] != near[file]] == [], differences(whole, near)
    trained = [trained_on(tmp_path / name) for name in ("whole", *neighbours)]
    assert trained[2] == trained[0] - 1  # the runs really trained on different records
    assert {"certificate.json", "report.html", "ledger.jsonl", "scores.parquet"} <= set(whole)


def trained_on(folder: Path) -> int:
    from dpaudit.attacks.holdout import read_holdout

    return len(read_holdout(folder / "run" / "private" / "holdout.secret.parquet")[0].kept)


def is_private(text: str) -> bool:
    raw = RawRecords("x", (text,), None, ("1",))
    return len(split_by_text(raw, FRACTION, 0)[0]) == 1


def differences(one: dict[str, bytes], two: dict[str, bytes]) -> list[Any]:
    found: list[Any] = []
    for name in one:
        if one[name] != two[name] and name.endswith(".json"):
            left, right = json.loads(one[name]), json.loads(two[name])
            found += [(name, k, left.get(k), right.get(k)) for k in left if left.get(k) != right.get(k)]
    return found
