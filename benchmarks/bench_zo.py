"""One zeroth-order step against its bare forward passes: CPU time and peak memory, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/bench_zo.py [--rounds 15] [--out benchmarks/results/zo_FILE.json]
    python benchmarks/bench_zo.py --models minilm smollm2   # real weights, from packages (make .venv/.models)

Everything that is compared runs interleaved in one process; a ratio is the median of the per-round ratios of CPU time.
Targets: a step costs at most 1.05 times its 2P forward passes plus drawing its directions twice at the generator's bare
speed; peak memory above the weights at most 1.05 times that of inference. Rows of models that were left out stay. Times
are taken with the allocator's settings of dpaudit's commands, which keep freed memory; DPAUDIT_ALLOCATOR=plain leaves
it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor, nn

from dpaudit.privacy.stage import Clip
from dpaudit.runs.allocator import keep_freed_memory
from dpaudit.trainers.noise import NoiseSource
from dpaudit.trainers.tasks.losses import causal_lm_losses, token_losses
from dpaudit.trainers.zeroth_order.coordinates import trainable_parameters
from dpaudit.trainers.zeroth_order.directions import DirectionKind, Directions
from dpaudit.trainers.zeroth_order.perturb import BitCache, perturbation
from dpaudit.trainers.zeroth_order.step import apply_update, clip_differences, loss_differences, release

CACHE = 0  # bytes of random bits that a step may keep; a cache saves draws and costs memory


def gpt2() -> tuple[nn.Module, Any, Callable[[nn.Module, Any], Tensor]]:
    """6 layers of width 384, 8192 tokens, 16 x 128."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=6, n_embd=384, n_head=6, vocab_size=8192, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    batch = torch.randint(0, 8192, (16, 128))
    return GPT2LMHeadModel(config).eval(), batch, lambda m, b: causal_lm_losses(m, b)


def bert() -> tuple[nn.Module, Any, Callable[[nn.Module, Any], Tensor]]:
    """6 layers of width 256, 8192 tokens, 32 x 64, masked-language loss."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=6, hidden_size=256, num_attention_heads=4, intermediate_size=1024, vocab_size=8192
    )
    batch = torch.randint(0, 8192, (32, 64))
    return BertForMaskedLM(config).eval(), batch, lambda m, b: token_losses(m(input_ids=b).logits, b)


def minilm() -> tuple[nn.Module, Any, Callable[[nn.Module, Any], Tensor]]:
    """The 22 million weights of all-MiniLM-L6-v2 as a classifier, 32 x 48."""
    from bench_training import MINILM, losses, make

    model, batch = make(MINILM)
    return model.eval(), batch["input_ids"], lambda m, b: losses(m, {**batch, "input_ids": b})


def smollm2() -> tuple[nn.Module, Any, Callable[[nn.Module, Any], Tensor]]:
    """The 135 million weights of SmolLM2, 4 x 64."""
    from bench_training import SMOLLM, make

    model, batch = make(SMOLLM)
    return model.eval(), batch["input_ids"], lambda m, b: causal_lm_losses(m, b)


MODELS = {"gpt2": gpt2, "bert": bert, "minilm": minilm, "smollm2": smollm2}


class Bench:
    """The three things that are compared, on one model."""

    def __init__(self, name: str, kind: DirectionKind, directions: int) -> None:
        self.model, self.batch, self.loss = MODELS[name]()
        self.count = directions
        self.parameters = trainable_parameters(self.model)
        self.directions = Directions(run="bench", kind=kind)
        self.cache = BitCache(CACHE)
        self.perturb = perturbation(self.model, self.parameters, self.directions, cache=self.cache)
        self.noise, self.number = NoiseSource(), 0

    def step(self) -> None:
        """One private step, as the training loop takes it."""
        self.number += 1
        found, _ = loss_differences(
            self.model,
            [(self.batch, len(self.batch))],
            self.loss,
            self.perturb,
            step=self.number,
            directions=range(self.count),
            scale=1e-3,
        )
        clipped = clip_differences(found, 30.0, Clip.JOINT)
        released = release(clipped, noise_std=30.0, normaliser=16.0, noise=self.noise)
        apply_update(self.parameters, self.directions, released, step=self.number, learning_rate=1e-7, cache=self.cache)

    @torch.no_grad()
    def forwards(self) -> None:
        """2P bare forward passes with their losses."""
        for _ in range(2 * self.count):
            self.loss(self.model, self.batch)

    def draws(self) -> None:
        """Every direction drawn twice, at the generator's bare speed."""
        for p in list(range(self.count)) * 2:
            for name, parameter in self.parameters.items():
                stream = self.directions.stream(step=self.number, direction=p, tensor=name)
                for _ in stream.blocks(parameter.numel()):
                    pass


def cpu(action: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(name: str, kind: DirectionKind, directions: int, rounds: int) -> dict[str, Any]:
    """Median ratios and minima of interleaved rounds."""
    bench = Bench(name, kind, directions)
    parts = {"step": bench.step, "forwards": bench.forwards, "draws": bench.draws}
    for action in parts.values():
        action()
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for number in range(rounds):
        order = list(parts)[number % 3 :] + list(parts)[: number % 3]
        for part in order:
            seconds[part].append(cpu(parts[part]))
    rows = list(zip(seconds["step"], seconds["forwards"], seconds["draws"], strict=True))
    least = {part: min(values) for part, values in seconds.items()}
    return {
        "model": name,
        "distribution": kind.value,
        "directions": directions,
        "rounds": rounds,
        "parameters": sum(p.numel() for p in bench.parameters.values()),
        "step_over_forwards_and_two_draws": statistics.median(s / (f + d) for s, f, d in rows),
        "step_over_forwards": statistics.median(s / f for s, f, _ in rows),
        "ratio_of_minima_over_forwards_and_two_draws": least["step"] / (least["forwards"] + least["draws"]),
        "ratio_of_minima_over_forwards": least["step"] / least["forwards"],
        "cpu_seconds_minimum": least,
    }


def peak_memory(name: str, part: str, kind: DirectionKind) -> float:
    """MiB of peak resident memory above what the loaded model holds (run in a process of its own)."""
    bench = Bench(name, kind, 1)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    base = _status("VmRSS")
    getattr(bench, part)()
    return (_status("VmHWM") - base) / 1024


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


def memory(name: str, kind: DirectionKind) -> dict[str, Any]:
    """Peak memory of a step against inference, a process each.

    glibc keeps freed blocks of up to 32 MiB in its heap, which makes resident memory depend on the order of sizes by
    tens of MiB; with a fixed threshold freed blocks go back at once and the peak is that of live memory.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    found = {}
    for part in ("forwards", "step"):
        command = [sys.executable, __file__, "--peak", name, part, kind.value]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[part] = float(done.stdout.split()[-1])
    return {
        "model": name,
        "distribution": kind.value,
        "inference_mib": found["forwards"],
        "step_mib": found["step"],
        "ratio": found["step"] / found["forwards"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=["gpt2", "bert"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zo_cpu.json")
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "PART", "DISTRIBUTION"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(peak_memory(options.peak[0], options.peak[1], DirectionKind(options.peak[2])))
        return
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    kept = {part: [r for r in known.get(part, []) if r["model"] not in options.models] for part in ("time", "memory")}
    cases = [(name, kind, p) for name in options.models for kind in DirectionKind for p in (1, 4)]
    memories = [memory(name, kind) for name in options.models for kind in DirectionKind]
    keeps = keep_freed_memory()
    # Four directions take four times as long, and average over four times as many passes.
    times = [
        measure(*case, max(3, options.rounds // case[2]))
        for case in cases
        if case[2] == 1 or case[0] in ("gpt2", "bert")
    ]
    result = {
        "schema": "dpaudit.bench_zo/1",
        "torch": torch.__version__,
        "machine": machine.processor(),
        "commit": machine.commit(),
        "load": machine.load(),
        "threads": 1,
        "keeps_freed_memory": keeps,
        "cache_bytes": CACHE,
        "time": kept["time"] + times,
        "memory": kept["memory"] + memories,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in times:
        print(
            f"{row['model']:5} {row['distribution']:11} P={row['directions']}"
            f"  over forwards + 2 draws {row['step_over_forwards_and_two_draws']:.3f}"
            f"  over forwards {row['step_over_forwards']:.3f}"
        )
    for row in memories:
        print(f"{row['model']:5} {row['distribution']:11} peak memory over inference {row['ratio']:.3f}")


if __name__ == "__main__":
    main()
