"""The page of measured costs and the README's table are what the committed results say."""

from __future__ import annotations

import json
import subprocess
import sys

from tests import ROOT

TABLES = ROOT / "benchmarks" / "speed_tables.py"


def test_tables_are_current() -> None:
    done = subprocess.run([sys.executable, str(TABLES), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_ratio_is_to_the_faster_of_two_ordinary_steps() -> None:
    paths = sorted((ROOT / "benchmarks" / "results").glob("training_cpu_*.json"))
    assert len(paths) >= 2
    for path in paths:
        for model, rows in json.loads(path.read_text())["time"].items():
            ordinary = [row["ratio"] for name, row in rows.items() if name.startswith("non-private")]
            assert len(ordinary) == 2 and min(ordinary) == 1.0, (path.name, model)
