"""The commands that write sibling pages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from click.testing import CliRunner

from dpaudit.cli import main
from tests.reports.test_pages import check_page


def test_exposure_writes_a_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [f"<b>{i}</b>" for i in range(20)]
    pd.DataFrame({"id": ids, "loss": rng.normal(size=20)}).to_csv(tmp_path / "c.csv", index=False)
    pd.DataFrame({"loss": rng.normal(size=200)}).to_csv(tmp_path / "r.csv", index=False)
    page = tmp_path / "exposure.html"
    command = [
        "exposure",
        str(tmp_path / "c.csv"),
        "--references",
        str(tmp_path / "r.csv"),
        "--out",
        str(page),
        "--json",
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["page"] == str(page)
    assert "<b>0</b>" in check_page(page.read_text()).text


def test_compare_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    stage = "q=0.05,sigma=2,steps=20"
    command = ["compare", "--stage", stage, "--delta", "1e-5", "--accountant", "gdp-clt", "--accountant", "prv"]
    result = CliRunner().invoke(main, [*command, "--out", str(page), "--json"])
    assert result.exit_code == 0, result.output
    assert "not a bound" in check_page(page.read_text()).text.lower()
