"""An honest run, one that deserves its verdict, and one that leaks: release folders to forge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.certificates import certificate_run as run
from tests.certificates.forgery import Forgery, scores_of

CONFIG = "c" * 64


def exposed(forgery: Forgery) -> None:
    """Give the certificate the exposure that its scores have."""
    import pandas as pd

    from dpaudit.auditing import Scores
    from dpaudit.auditing.exposure_summary import exposure_summary

    rows = forgery.body["audit"]["canaries"]
    table = pd.read_parquet(forgery.folder / "scores.parquet").set_index("id")["score"]
    ids = [row[0] for row in rows]
    scores = Scores(ids, [table[i] for i in ids], [row[1] for row in rows])
    forgery.body["exposure"] = exposure_summary(scores, copies=1)


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest run of 400 canaries without a control: inconclusive."""
    base = tmp_path_factory.mktemp("base")
    provenance = {"dpaudit": "0.1.0", "commit": "0" * 40, "dirty": False, "config_sha256": CONFIG}
    run.release(base / "plain", provenance=provenance)
    forgery = Forgery(base / "plain", base / "release")
    stage = {"sampling": "none", "sampling_probability": 1.0, "noise_multiplier": 1.6, "steps": 1}
    forgery.body["ledger"]["stages"][0].update(stage, expected_batch_size=3000.0)
    forgery.account()
    forgery.write_ledger()
    forgery.write_scores(scores_of(forgery, 0.62))
    forgery.audit_again()
    exposed(forgery)
    assert forgery.seal().verify().exit_code == 2
    return forgery.folder


@pytest.fixture(scope="session")
def deserved(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with enough controls: consistent, and deservedly so."""
    forgery = Forgery(honest, tmp_path_factory.mktemp("deserved") / "release")
    forgery.write_control(400, 40.0, runs=20)
    forgery.audit_again()
    assert forgery.seal().verify().exit_code == 0
    return forgery.folder


@pytest.fixture(scope="session")
def convicted(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that leaks: the declared mechanism is refuted, while the primary bound is still below the claim."""
    forgery = Forgery(honest, tmp_path_factory.mktemp("convicted") / "release")
    for shift in np.arange(1.0, 4.0, 0.1):
        forgery.write_scores(scores_of(forgery, float(shift)))
        forgery.audit_again()
        if forgery.result["verdict"] == "violated":
            break
    assert forgery.result["primary"]["epsilon_lower_at_verdict"] < 2.9
    exposed(forgery)
    assert forgery.seal().verify().exit_code == 1
    return forgery.folder


@pytest.fixture
def new(tmp_path: Path) -> Callable[[Path], Forgery]:
    made: list[int] = []

    def copy(release: Path) -> Forgery:
        made.append(1)
        return Forgery(release, tmp_path / f"forged{len(made)}")

    return copy
