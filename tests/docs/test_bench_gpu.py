"""The GPU benchmark runs from end to end on small shapes, on a CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import pytest

from tests import ROOT


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "benchmarks" / "bench_gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module
    spec.loader.exec_module(module)
    return module


def test_the_clipped_sum_of_the_benchmark_is_the_definition():
    found = loaded().exactness("cpu")
    assert found["sum_relative_error"] <= 1e-6 and found["norm_relative_error"] <= 1e-6


def test_a_section_that_does_not_fit_is_listed():
    clock = loaded().Clock(0.0)
    assert not clock.has(1, "largest batch llama-1b") and clock.skipped == ["largest batch llama-1b"]


@pytest.mark.slow
def test_every_section_runs_on_small_shapes(tmp_path):
    result = loaded().main(["--tiny", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"] == result["steps"]
    assert len(result["steps"]) == 11 and not result["skipped"] and result["examiner"]["findings"] == []
    for row in result["steps"]:
        assert row["ratio"]["dpaudit"] > 0 and row["ratio"]["dpaudit lean"] > 0
        for kind in ("opacus ghost", "opacus hooks"):
            assert "seconds" in row.get(kind, {"seconds": 1})
