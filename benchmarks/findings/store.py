"""Finished runs, one JSON object a line; a run that is in the file is not run again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "findings.jsonl"
Key = tuple[int, str, int]


def finished(path: Path) -> list[dict[str, Any]]:
    """All runs of a file; none if it does not exist. A last line that a kill cut short is dropped."""
    if not path.exists():
        return []
    found: dict[Key, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            run = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.setdefault(key(run), run)  # of two calls at once that ran the same, the first counts
    return list(found.values())


def key(run: Mapping[str, Any]) -> Key:
    """What makes two runs the same."""
    return int(run["row"]), str(run["setting"]), int(run["seed"])


def append(path: Path, run: Mapping[str, Any]) -> None:
    """Add one finished run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or not path.read_bytes() or path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(dict(run), sort_keys=True) + "\n")


def machine(device: str) -> str:
    """Name of the processor, or of the accelerator, that a run was measured on."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {k.strip(): v.strip() for k, v in facts.items()}
    family = named.get("cpu family", "?")
    return f"{named.get('model name', platform.machine())} (family {family}), one thread"
