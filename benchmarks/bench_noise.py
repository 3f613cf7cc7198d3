"""CPU time of the noise of a step, as a ratio to torch.randn and to an in-place ``Tensor.normal_``.

    python benchmarks/bench_noise.py        # -> results/noise_cpu.json

One thread, its CPU time. The four ways run in turn, in rounds; the figure is the median over rounds. ``fill`` writes
into memory that is there, as ``normal_`` does; ``sample`` makes its tensor, as ``randn`` does.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import torch

from dpaudit.trainers import NoiseSource
from dpaudit.trainers.normals import Normals
from dpaudit.trainers.words import BytesWords, openssl_bytes

SIZES = (1, 256, 4_096, 16_384, 1 << 18, 1 << 20, 4_000_000)
RESULTS = pathlib.Path(__file__).parent / "results" / "noise_cpu.json"
ROUNDS = 15


def measure(size: int) -> dict[str, float]:
    """Microseconds a call, by way."""
    source, secure, normals = NoiseSource(), NoiseSource(secure=True), Normals(BytesWords(openssl_bytes))
    generator, place = torch.Generator(), torch.empty(size)
    ways: dict[str, Callable[[], object]] = {
        "normal_": lambda: place.normal_(0.0, 0.3, generator=generator),
        "fill": lambda: normals.fill(place.numpy(), 0.3),
        "randn": lambda: torch.randn((size,), generator=generator),
        "sample": lambda: source.sample((size,), 0.3),
        "secure": lambda: secure.sample((size,), 0.3),
    }
    calls = max(1, min(400, 400_000 // size))
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, call in ways.items():
            begun = time.thread_time_ns()
            for _ in range(calls):
                call()
            found[way].append((time.thread_time_ns() - begun) / calls / 1e3)
    return {way: round(statistics.median(times), 2) for way, times in found.items()}


def main() -> None:
    """Measure every size, print and write the table."""
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        times = measure(size)
        row = {
            "values": size,
            "microseconds": times,
            "fill_over_normal_": round(times["fill"] / times["normal_"], 2),
            "sample_over_randn": round(times["sample"] / times["randn"], 2),
            "secure_over_randn": round(times["secure"] / times["randn"], 2),
        }
        rows.append(row)
        print(row)
    about = {"machine": machine.processor(), "commit": machine.commit(), "load": machine.load()}
    RESULTS.write_text(json.dumps({**about, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
