"""Shadow models on engines that people have, and what killed workers cost."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from dpaudit.attacks import train_shadows
from dpaudit.attacks.scores.fan_out import run_each
from dpaudit.privacy.errors import InvalidValue
from tests import ROOT


def mean_of_members(members: np.ndarray, seed: int) -> np.ndarray:
    """A toy model: the mean of noisy members; its signal is the distance of each record to it."""
    rng = np.random.default_rng(seed)
    values = np.arange(len(members)) + rng.normal(size=len(members))
    return -np.abs(values - values[members].sum() / max(1, members.sum()))


def dying(folder: str, every: int, members: np.ndarray, seed: int) -> np.ndarray:
    """The same; one seed in ``every`` kills its worker the first time, as the system's memory guard does."""
    ran = Path(folder) / str(seed)
    if seed % every == 0 and not ran.exists():
        ran.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mean_of_members(members, seed)


def failing(members: np.ndarray, seed: int) -> np.ndarray:
    raise OSError("the task's own trouble")


def shadows(task: Callable[..., Any], count: int = 6, **options: Any) -> Any:
    return train_shadows(task, 8, n_shadows=count, rng=np.random.default_rng(3), **options)


def test_a_folder_keeps_every_shadow_and_trains_none_twice(tmp_path: Path) -> None:
    seen: list[int] = []

    def counted(members: np.ndarray, seed: int) -> np.ndarray:
        seen.append(seed)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return mean_of_members(members, seed)

    with pytest.raises(KeyboardInterrupt):
        shadows(counted, folder=tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("0*.npy")}
    assert len(times) == 3
    # Another generator: memberships and seeds of the folder hold.
    kept = train_shadows(counted, 8, n_shadows=6, rng=np.random.default_rng(99), folder=tmp_path)
    plain = shadows(mean_of_members)
    assert np.array_equal(kept.signals, plain.signals) and np.array_equal(kept.members, plain.members)
    assert len(seen) == 7 and len(set(seen)) == 6
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_a_folder_of_other_shadows_is_refused(tmp_path: Path) -> None:
    shadows(mean_of_members, folder=tmp_path)
    with pytest.raises(InvalidValue, match="holds 6 shadows of 8 records trained by 'mean_of_members'"):
        shadows(functools.partial(dying, str(tmp_path), 10), folder=tmp_path)
    with pytest.raises(InvalidValue, match="the call is for 7 of 8"):
        shadows(mean_of_members, count=7, folder=tmp_path)
    (tmp_path / "000002.npy").write_bytes(b"cut")
    with pytest.raises(InvalidValue, match=r"000002\.npy cannot be read .* remove it"):
        shadows(mean_of_members, folder=tmp_path)


def test_what_the_task_raises_ends_the_run_at_once() -> None:
    with pytest.raises(OSError, match="the task's own trouble"), joblib.parallel_config("threading", n_jobs=2):
        shadows(failing)


def test_a_backend_that_always_fails_is_given_up_after_three_fruitless_attempts() -> None:
    attempts: list[int] = []

    class Broken(joblib.parallel.ThreadingBackend):
        def start_call(self) -> None:
            attempts.append(1)
            raise OSError("no worker left")

    joblib.register_parallel_backend("broken", Broken)
    with joblib.parallel_config(backend="broken", n_jobs=2), pytest.raises(OSError, match="no worker left"):
        run_each(abs, {0: (1,)}, lambda number, result: None)
    assert len(attempts) == 3


@contextmanager
def dask_cluster() -> Iterator[None]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield


@contextmanager
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    register_ray()
    try:
        with joblib.parallel_config("ray", n_jobs=2):
            yield
    finally:
        ray.shutdown()


@contextmanager
def processes() -> Iterator[None]:
    with joblib.parallel_config("loky", n_jobs=2):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("engine, every", [(processes, 101), (dask_cluster, 101), (ray_cluster, 301)])
def test_a_thousand_shadows_survive_killed_workers(tmp_path: Path, engine: Any, every: int) -> None:
    plain = train_shadows(mean_of_members, 8, n_shadows=1000, rng=np.random.default_rng(3))
    killed, kept = tmp_path / "killed", tmp_path / "kept"
    killed.mkdir()
    task = functools.partial(dying, str(killed), every)
    with engine():
        found = train_shadows(task, 8, n_shadows=1000, rng=np.random.default_rng(3), folder=kept)
    assert np.array_equal(found.signals, plain.signals)
    assert len(list(killed.iterdir())) == (7 if every == 101 else 2)  # workers died: that many seeds kill
    assert len(list(kept.glob("0*.npy"))) == 1000


DRIVER = """
import sys, time, numpy as np, joblib
from dpaudit.attacks import train_shadows
from tests.attacks.scores.test_fan_out import mean_of_members

def slowly(members, seed):
    time.sleep(0.002)
    return mean_of_members(members, seed)

train_shadows(slowly, 8, n_shadows=1000, rng=np.random.default_rng(3), folder=sys.argv[1])
print("done")
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    kept, command = tmp_path / "kept", [sys.executable, "-c", DRIVER, str(tmp_path / "kept")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    times: dict[Path, int] = {}
    for least in (50, 300, 600):
        driver = subprocess.Popen(command, env=environment)
        while len(list(kept.glob("0*.npy"))) < least:
            assert driver.poll() is None
            time.sleep(0.02)
        driver.kill()
        driver.wait()
        assert all(path.stat().st_mtime_ns == then for path, then in times.items())
        times = {path: path.stat().st_mtime_ns for path in kept.glob("0*.npy")}
        assert len(times) < 1000
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "done\n"
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    plain = train_shadows(mean_of_members, 8, n_shadows=1000, rng=np.random.default_rng(3))
    rows = np.stack([np.load(path) for path in sorted(kept.glob("0*.npy"))])
    assert np.array_equal(rows, plain.signals)
