"""Matrix products of a private step by torch's routine (MKL) and by oneDNN, shape by shape, on one thread.

    python benchmarks/bench_products.py                # prints, and writes results/products_cpu.json

For each shape of the models in bench_training.py: the forward product, its data gradient and its weight gradient. Both
routines run in turn in one process; a figure is the median over rounds of the ratio of CPU times. ``chosen`` is the one
that dpaudit takes on this processor; its ratio to torch's should nowhere be above 1.02.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import torch
from torch import Tensor

from dpaudit.trainers.ghost import products

SHAPES = {  # rows, inputs, outputs of a linear layer
    "GPT-2, queries, keys, values": (2048, 384, 1152),
    "GPT-2, attention output": (2048, 384, 384),
    "GPT-2, first of the block": (2048, 384, 1536),
    "GPT-2, second of the block": (2048, 1536, 384),
    "GPT-2, head": (2048, 384, 8192),
    "BERT, attention": (2048, 256, 256),
    "BERT, first of the block": (2048, 256, 1024),
    "BERT, second of the block": (2048, 1024, 256),
}
RESULTS = pathlib.Path(__file__).parent / "results" / "products_cpu.json"
Product = Callable[[], Tensor]


def ways(rows: int, inputs: int, outputs: int) -> dict[str, tuple[Product, Product]]:
    """By product: torch's way and oneDNN's."""
    x, weight, gradient = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    return {
        "forward": (lambda: torch.mm(x, weight.mT), lambda: products._onednn(x, weight)),
        "data gradient": (lambda: torch.mm(gradient, weight), lambda: products._onednn(gradient, weight.mT)),
        "weight gradient": (lambda: torch.mm(gradient.mT, x), lambda: products._onednn(gradient.mT, x.mT)),
    }


def ratio(one: Product, other: Product, rounds: int) -> float:
    """Median ratio of the CPU times of ``other`` and ``one``, in turn."""
    found = []
    for number in range(rounds + 1):
        seconds = []
        for action in (one, other) if number % 2 else (other, one):
            start = time.process_time()
            action()
            seconds.append(time.process_time() - start)
        first, second = seconds if number % 2 else seconds[::-1]
        found.append(second / first)
    return statistics.median(found[1:])  # the first round warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="one file a processor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    takes_onednn = products.has_onednn()
    rows: list[dict[str, Any]] = []
    for name, shape in SHAPES.items():
        for product, (mkl, onednn) in ways(*shape).items():
            found = ratio(mkl, onednn, options.rounds)
            rows.append(
                {
                    "layer": name,
                    "product": product,
                    "onednn_over_torch": round(found, 3),
                    "chosen_over_torch": round(found, 3) if takes_onednn else 1.0,
                }
            )
            print(f"{name:30} {product:16} oneDNN {found:.2f} of torch's time")
    chosen = "oneDNN" if takes_onednn else "torch's"
    worst = max(row["chosen_over_torch"] for row in rows)
    print(f"chosen: {chosen}; at most {worst:.2f} of torch's time")
    stored = {
        "processor": f"{machine.processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "commit": machine.commit(),
        "load": machine.load(),
        "torch": torch.__version__,
        "rounds": options.rounds,
        "chosen": chosen,
        "rows": rows,
    }
    options.out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
