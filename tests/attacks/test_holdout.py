"""Holding real records out by fair coins, and the private file that remembers them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from dpaudit import InvalidEvidence, InvalidValue
from dpaudit.attacks import hold_out
from dpaudit.attacks.holdout import holdout_ids, read_holdout, unique_records, write_holdout


def test_hold_out_flips_a_fair_coin_for_each_candidate() -> None:
    chosen = hold_out(10_000, 0.1)
    assert len(chosen.candidates) == 2000 and len(np.unique(chosen.candidates)) == 2000
    assert abs(len(chosen.held_out) - 1000) < 6 * np.sqrt(500)
    assert len(chosen.kept) + len(chosen.held_out) == 10_000 and not set(chosen.kept) & set(chosen.held_out)
    assert len(hold_out(10, 0.5).candidates) == 10
    for bad in (0.0, 0.6, 0.01):  # none, more than a fair coin can, less than one candidate
        with pytest.raises(InvalidValue, match=f"holdout_fraction={bad}"):
            hold_out(10, bad)


def test_only_eligible_records_are_held_out() -> None:
    texts = [f"record {i // 2 if i < 50 else i}" for i in range(200)]
    single = unique_records(texts)
    assert single.tolist() == list(range(50, 200))
    chosen = hold_out(200, 0.3, eligible=single)
    assert len(chosen.candidates) == 120 and set(chosen.candidates) <= set(single.tolist())
    with pytest.raises(InvalidValue, match="asks for 160 candidates and 150 are eligible"):
        hold_out(200, 0.4, eligible=single)
    with pytest.raises(InvalidValue, match=r"must lie in \[0, 200\)"):
        hold_out(200, 0.1, eligible=[200])


def test_candidates_are_a_uniform_subset() -> None:
    counts = np.zeros(20)
    for seed in range(600):
        counts[hold_out(20, 0.25, generator=np.random.default_rng(seed)).candidates] += 1
    assert (abs(counts - 300) < 5 * np.sqrt(150)).all()


def test_holdout_file_round_trip(tmp_path: Path) -> None:
    texts = ["same" if i < 4 else f"record {i}" for i in range(60)]
    chosen = hold_out(60, 0.5)
    ids = holdout_ids(chosen, texts, bytes(32))
    assert len(set(ids)) == 60 and ids != holdout_ids(chosen, texts, bytes([1]) * 32)
    path = tmp_path / "private" / "holdout.parquet"
    write_holdout(path, chosen, ids)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    found, found_ids = read_holdout(path)
    assert found_ids == ids and found.n == 60 and found.coins.tolist() == chosen.coins.tolist()
    assert found.kept.tolist() == chosen.kept.tolist()
    with pytest.raises(InvalidValue, match="texts has 59 records"):
        holdout_ids(chosen, texts[1:], bytes(32))
    with pytest.raises(InvalidEvidence, match="cannot be read"):
        read_holdout(tmp_path / "absent.parquet")
