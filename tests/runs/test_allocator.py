"""Commands that run models keep freed memory; a user's process and a user's own choice are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest
from click.testing import CliRunner

from dpaudit.cli import COMMANDS, common, main
from dpaudit.runs import allocator
from tests import ROOT

TIMES = 5
BYTES, TENSOR = "b'x' * 2**26", "torch.ones(2**24)"
"""64 MiB each; the first needs no import."""
COUNT = """
import resource

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def make():
    for _ in range({times}):
        {block}

make()  # torch's blocks are aligned and rarely fit in the hole of one of their size: at first memory is taken anew
make()
before = faults()
make()
print(told, faults() - before)
"""
TELL = "from dpaudit.runs.allocator import keep_freed_memory\ntold = keep_freed_memory()\n"
LIBRARY = """
import dpaudit, dpaudit.cli.common, dpaudit.cli.certify, dpaudit.runs.certify, dpaudit.runs.follower
from dpaudit import certify, examine, train
from dpaudit.attacks import examine as examine_step
from dpaudit.trainers import DPOptimizer, GhostClipping, preflight
told = False
"""


def counted(first: str, block: str = BYTES, **env: str) -> tuple[bool, int]:
    """In a process of its own: what ``first`` says was told, and page faults of making a block five times."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "DPAUDIT_", "LD_PRELOAD"))}
    program = first + COUNT.format(times=TIMES, block=block)
    variables = {**kept, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    told, faults = done.stdout.split()
    return told == "True", int(faults)


@cache
def untold() -> int:
    """Page faults where nothing was changed."""
    return counted("told = False\n")[1]


@pytest.fixture
def on_glibc() -> None:
    if not allocator._on_glibc():
        pytest.skip("another C library than glibc")
    if untold() < 10 * TIMES:
        pytest.skip("this system does not count page faults, or takes none here")


@pytest.mark.usefixtures("on_glibc")
@pytest.mark.parametrize("block", [TENSOR, "b'x' * 2**28"], ids=["tensor", "above the padding"])
def test_freed_memory_serves_the_next_block(block: str) -> None:
    told, faults = counted(f"{'import torch' * (block == TENSOR)}\n{TELL}", block)
    assert told
    assert faults * 20 < untold()


@pytest.mark.usefixtures("on_glibc")
def test_a_library_leaves_its_users_process_alone() -> None:
    assert counted(LIBRARY)[1] * 2 > untold()


@pytest.mark.usefixtures("on_glibc")
@pytest.mark.parametrize(
    "chosen",
    [
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"MALLOC_ARENA_MAX": "2"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
        {allocator.SWITCH: "plain"},
    ],
    ids=lambda chosen: next(iter(chosen)),
)
def test_what_the_user_chose_stands(chosen: dict[str, str]) -> None:
    told, faults = counted(TELL, **chosen)
    assert not told
    assert faults * 2 > untold()


@pytest.mark.parametrize("fault", [OSError("no dynamic loading"), AttributeError("mallopt"), ImportError("_ctypes")])
def test_nothing_fails_where_the_function_is_missing(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def refuse(name: str | None) -> None:
        raise fault

    undecided(monkeypatch)
    monkeypatch.setattr(allocator, "_on_glibc", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize("system", ["darwin", "win32", "linux"])
def test_other_systems_and_libraries_are_not_asked(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    undecided(monkeypatch)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "confstr", unknown, raising=False)  # what musl answers
    assert allocator.keep_freed_memory() is False


def test_a_release_of_glibc_that_refuses_large_thresholds_is_given_32_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    taken: list[tuple[int, int]] = []

    class Old:
        def __init__(self, name: None) -> None: ...

        def mallopt(self, parameter: int, value: int) -> int:
            if parameter == allocator._MMAP_THRESHOLD and value > 2**25:
                return 0
            taken.append((parameter, value))
            return 1

    undecided(monkeypatch)
    monkeypatch.setattr(allocator, "_on_glibc", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", Old)
    assert allocator.keep_freed_memory()
    assert taken == [(-3, 2**25), (-1, -1), (-2, 2**26)]


def test_the_commands_that_run_models_keep_memory_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(common, "keep_freed_memory", lambda: calls.append(name))
    arguments = {
        "attack": ["missing", "--canaries", __file__, "--out", "scores.csv"],
        "certify": ["missing.toml"],
        "examine": ["missing.toml"],
        "train": ["missing.toml", "--out", "missing"],
        "account": ["--stage", "q=0.01,sigma=1,steps=10", "--delta", "1e-5"],
        "audit": ["missing.csv", "--claimed-epsilon", "1", "--delta", "1e-5"],
        "verify": ["missing.json"],
    }
    assert set(arguments) <= set(COMMANDS)
    for name, given in arguments.items():
        CliRunner().invoke(main, [name, *given])
    assert calls == ["attack", "certify", "examine", "train"]


def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the environment of the tests chose."""
    for name in [*os.environ]:
        if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", allocator.SWITCH):
            monkeypatch.delenv(name)
