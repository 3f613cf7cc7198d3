"""What a measurement was taken on: the processor by family and model, and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def processor() -> str:
    """Name of the processor with its family and model, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    return f"{fields.get('model name')} (family {fields.get('cpu family')}, model {fields.get('model')})"


def commit(checkout: Path = Path(__file__).parents[1]) -> str:
    """Short name of a checkout's commit."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()


def load() -> float:
    """Processes that wanted the processor in the last quarter of an hour."""
    return round(os.getloadavg()[2], 1)
