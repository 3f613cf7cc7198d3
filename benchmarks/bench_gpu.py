"""What a private step costs on one GPU, beside the same model's AdamW step; one command, eight minutes at most.

    python benchmarks/bench_gpu.py                        # -> results/gpu.json, with the GPU's name beside each number
    python benchmarks/bench_gpu.py --wheels DIR           # a folder of pure-Python wheels (opacus, peft): no install
    python benchmarks/bench_gpu.py --tiny --device cpu    # the same code on small shapes, as the tests run it

Needs torch and transformers, no network, and installs nothing. Sections run in order until the minutes are spent; what
did not fit is listed under ``skipped``. Times are medians of synchronised steps: forward, backward, noise and update.
"""

from __future__ import annotations

import argparse
import gc
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

GOALS = {"T=128": 1.15, "T=1024": 1.3, "batch": 0.95, "zeroth_order": 1.2}
PLAIN = "gpt2-small-untied"
"""What Opacus is timed on, in fp32: its ghost clipping refuses tied parameters."""
Made = tuple[nn.Module, Tensor]


class Clock:
    """The minutes that are left."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self.skipped: list[str] = []

    def has(self, seconds: float, what: str) -> bool:
        """Whether a section of about so many seconds still fits; otherwise it is noted."""
        fits = time.monotonic() + seconds < self._end
        if not fits:
            self.skipped.append(what)
        return fits


def make(name: str, *, batch: int, length: int, device: str, tiny: bool) -> Made:
    """A model of a public shape with random weights, and one batch of random tokens."""
    import transformers as t

    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 101}
    if name.startswith("gpt2"):
        sizes = {"gpt2-small": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20)}
        layers, width, heads = (2, 32, 2) if tiny else sizes[name.removesuffix("-untied")]
        config: Any = t.GPT2Config(
            n_layer=layers, n_embd=width, n_head=heads, n_positions=1024, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings="untied" not in name, **(small if tiny else {}),
        )  # fmt: skip
        model: Any = t.GPT2LMHeadModel(config)
    elif name == "roberta-large":
        layers, width, heads, inner = (2, 32, 2, 48) if tiny else (24, 1024, 16, 4096)
        config = t.RobertaConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=inner,
            max_position_embeddings=1030, hidden_dropout_prob=0, attention_probs_dropout_prob=0, num_labels=2,
            vocab_size=101 if tiny else 50265,
        )  # fmt: skip
        model = t.RobertaForSequenceClassification(config)
    elif name == "llama-1b":
        layers, width, heads, inner = (2, 32, 4, 48) if tiny else (16, 2048, 32, 8192)
        config = t.LlamaConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads // 4 or 1,
            intermediate_size=inner, vocab_size=101 if tiny else 128256, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = t.LlamaForCausalLM(config)
    else:
        layers, width, heads, inner = (2, 32, 2, 48) if tiny else (32, 2560, 32, 10240)
        config = t.OPTConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, ffn_dim=inner, dropout=0,
            word_embed_proj_dim=width, vocab_size=101 if tiny else 50272, max_position_embeddings=2048,
            bos_token_id=2, eos_token_id=2,
        )  # fmt: skip
        model = t.OPTForCausalLM(config)
    vocabulary = model.config.vocab_size
    return model.to(device).train(), torch.randint(5, vocabulary, (batch, length), device=device)


def losses(model: Any, ids: Tensor, *, bf16: bool) -> Tensor:
    """(B,) losses: the mean next-token loss of each row, or a class."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        logits = model(input_ids=ids).logits
    if logits.dim() == 2:
        return nn.functional.cross_entropy(logits.float(), ids[:, 0] % 2, reduction="none")
    each = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(1)


def adamw(model: nn.Module, ids: Tensor, *, bf16: bool) -> Callable[[], None]:
    """The ordinary step."""
    updates = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=ids.is_cuda)

    def step() -> None:
        losses(model, ids, bf16=bf16).mean().backward()
        updates.step()
        updates.zero_grad(set_to_none=True)

    return step


def ghost(model: nn.Module, ids: Tensor, *, bf16: bool, lean: bool = False) -> Callable[[], None]:
    """The private step of the loop: clip, sum, noise once, DP-AdamW."""
    from dpaudit.trainers import DPOptimizer, GhostClipping, NoiseSource, OptimizerSettings, noisy_mean

    parameters = [p for p in model.parameters() if p.requires_grad]
    updates = DPOptimizer(parameters, OptimizerSettings(algorithm="adamw", learning_rate=1e-5))
    clipper, noise, size = GhostClipping(model, 0.1, lean=lean), NoiseSource(), float(len(ids))

    def step() -> None:
        totals = clipper.clipped_sum(losses(model, ids, bf16=bf16)).totals(parameters)
        updates.receive(noisy_mean(totals, noise=noise, noise_std=0.1, normaliser=size), 0.1 / size)
        updates.step()

    return step


def opacus(mode: str) -> Callable[..., Callable[[], None]]:
    """Opacus, where it can be imported; its own noise."""

    def prepare(model: nn.Module, ids: Tensor, *, bf16: bool) -> Callable[[], None]:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        from bench_training import opacus as steps

        if bf16:
            raise RuntimeError("only in fp32")
        return steps(mode)(model, {"input_ids": ids})

    return prepare


STEPS: dict[str, Callable[..., Callable[[], None]]] = {
    "adamw": adamw,
    "dpaudit": ghost,
    "dpaudit lean": lambda m, i, bf16: ghost(m, i, bf16=bf16, lean=True),
    "opacus ghost": opacus("ghost"),
    "opacus hooks": opacus("hooks"),
}


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def median_seconds(step: Callable[[], Any], device: str, *, rounds: int = 5, warm: int = 2) -> float:
    """Median of synchronised calls."""
    found = []
    for number in range(warm + rounds):
        begun = time.perf_counter()
        step()
        wait(device)
        if number >= warm:
            found.append(time.perf_counter() - begun)
    return statistics.median(found)


def measured(prepare: Callable[..., Callable[[], None]], made: Made, device: str, bf16: bool) -> dict[str, Any]:
    """Seconds and peak memory of one kind of step; or why there are none."""
    try:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(prepare(*made, bf16=bf16), device)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
        return {"seconds": seconds, "peak_gib": peak}
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # another library's refusal is a result too
        return {"failed": f"{type(error).__name__}: {str(error)[:160]}"}
    finally:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def steps(clock: Clock, device: str, tiny: bool) -> list[dict[str, Any]]:
    """(a) Step time and memory, each beside AdamW's."""
    cases = [
        (name, length, bf16, 8 if length < 1024 else 4)
        for bf16 in (True, False)
        for name in ("gpt2-small", "llama-1b", "gpt2-small-untied", "gpt2-medium", "roberta-large", "gpt2-large")
        if not (bf16 and name == PLAIN)
        for length in ((16,) if tiny else (128, 1024, 512))
    ]
    rows = []
    for name, length, bf16, batch in cases:
        if not clock.has(1 if tiny else 12, f"step {name} T={length} {'bf16' if bf16 else 'fp32'}"):
            continue
        row: dict[str, Any] = {"model": name, "length": length, "dtype": "bf16" if bf16 else "fp32", "batch": batch}
        kinds = [k for k in STEPS if "opacus" not in k or name == PLAIN]
        for kind in kinds:
            made = make(name, batch=batch, length=length, device=device, tiny=tiny)
            row[kind] = measured(STEPS[kind], made, device, bf16)
            del made
        base = row["adamw"].get("seconds")
        row["ratio"] = {k: row[k]["seconds"] / base for k in kinds if base and "seconds" in row[k]}
        rows.append(row)
    return rows


def fits(name: str, kind: str, *, size: int, length: int, device: str, tiny: bool) -> bool:
    """Whether two steps of a batch fit into memory."""
    made = make(name, batch=size, length=length, device=device, tiny=tiny)
    try:
        step = STEPS[kind](*made, bf16=True)
        step()
        step()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        del made
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def largest_batch(clock: Clock, device: str, tiny: bool) -> list[dict[str, Any]]:
    """(b) The largest physical batch at T = 512, to one eighth."""
    rows = []
    for name in ("gpt2-small", "llama-1b"):
        if not clock.has(1 if tiny else 60, f"largest batch {name}"):
            continue
        shape: dict[str, Any] = {"length": 16 if tiny else 512, "device": device, "tiny": tiny}
        row: dict[str, Any] = {"model": name, "length": shape["length"]}
        for kind in ("adamw", "dpaudit", "dpaudit lean"):
            low = 1
            while low < (2 if tiny else 1024) and fits(name, kind, size=2 * low, **shape):
                low *= 2
            for eighth in () if tiny else (4, 2, 1):
                more = low + max(1, low * eighth // 8)
                low = more if fits(name, kind, size=more, **shape) else low
            row[kind] = low
        row["ratio"] = row["dpaudit"] / row["adamw"]
        rows.append(row)
    return rows


def zeroth_order(clock: Clock, device: str, tiny: bool) -> dict[str, Any] | None:
    """(c) A zeroth-order step of one direction against its two forwards, OPT-2.7B shape."""
    from dpaudit.trainers.zeroth_order.coordinates import trainable_parameters
    from dpaudit.trainers.zeroth_order.directions import Directions
    from dpaudit.trainers.zeroth_order.perturb import BitCache, perturbation
    from dpaudit.trainers.zeroth_order.step import apply_update, loss_differences

    if not clock.has(1 if tiny else 40, "zeroth order"):
        return None
    model, ids = make("opt-2.7b", batch=8, length=16 if tiny else 256, device=device, tiny=tiny)
    model.eval()
    parameters, directions, cache = trainable_parameters(model), Directions(run="bench"), BitCache(0)
    perturb = perturbation(model, parameters, directions, cache=cache)
    clipped, counter = [(ids, len(ids))], iter(range(10**6))

    def loss(m: nn.Module, batch: Tensor) -> Tensor:
        return losses(m, batch, bf16=False)

    @torch.no_grad()
    def step() -> None:
        number = next(counter)
        loss_differences(model, clipped, loss, perturb, step=number, directions=range(1), scale=1e-3)
        apply_update(parameters, directions, [1e-6], step=number, learning_rate=1e-6, cache=cache)

    @torch.no_grad()
    def forwards() -> None:
        loss(model, ids).cpu(), loss(model, ids).cpu()

    seconds, base = median_seconds(step, device, rounds=3), median_seconds(forwards, device, rounds=3)
    return {"model": "opt-2.7b", "seconds": seconds, "forwards": base, "ratio": seconds / base}


def noise(device: str, tiny: bool) -> dict[str, Any]:
    """(d) Secret Gaussian noise, coordinates a second, beside torch.randn."""
    from dpaudit.trainers import NoiseSource

    count, source = 2**12 if tiny else 2**28, NoiseSource()
    ours = median_seconds(lambda: source.sample((count,), 1.0, device), device, rounds=3)
    plain = median_seconds(lambda: torch.randn(count, device=device), device, rounds=3)
    return {"coordinates_per_second": count / ours, "randn": count / plain}


def exactness(device: str) -> dict[str, float]:
    """(e) The clipped sum against one backward pass for each example, in fp32."""
    from dpaudit.trainers import GhostClipping

    model, ids = make("gpt2-small", batch=6, length=24, device=device, tiny=True)
    gradients = []
    for i in range(len(ids)):
        grads = torch.autograd.grad(losses(model, ids[i : i + 1], bf16=False).sum(), list(model.parameters()))
        gradients.append([g.double() for g in grads])
    norms = torch.stack([torch.stack([g.norm() for g in row]).norm() for row in gradients])
    bound = float(norms.median())
    with GhostClipping(model, bound) as clipper:
        found = clipper.clipped_sum(losses(model, ids, bf16=False))
    wrong = right = 0.0
    for k, total in enumerate(found.totals(list(model.parameters()))):
        wanted = torch.stack([min(1.0, bound / float(n)) * row[k] for n, row in zip(norms, gradients)]).sum(0)
        wrong, right = wrong + float((total - wanted).square().sum()), right + float(wanted.square().sum())
    return {
        "sum_relative_error": (wrong / right) ** 0.5,
        "norm_relative_error": float(((found.norms.double() - norms) / norms).abs().max()),
    }


def examined(clock: Clock, device: str, tiny: bool) -> dict[str, Any] | None:
    """(f) The examiner on the loop's step, on this device."""
    from dpaudit.attacks import FirstOrderAdapter, examine
    from dpaudit.trainers import OptimizerSettings, PrivacyPlan, train

    if not clock.has(1 if tiny else 45, "examiner"):
        return None
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).to(device)
    records = [(torch.randn(8), int(i % 3)) for i in range(24)]
    plan = PrivacyPlan(
        delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=24,
        expected_batch_size=6, steps=20, clipping_norm=0.5, noise_multiplier=1.0,
    )  # fmt: skip
    adapter = FirstOrderAdapter(
        train, model, records, plan=plan, optimizer=OptimizerSettings(algorithm="sgd", learning_rate=1.0),
        collate=lambda rows: {"x": torch.stack([r[0] for r in rows]), "y": torch.tensor([r[1] for r in rows])},
        loss_fn=lambda m, b: nn.functional.cross_entropy(m(b["x"]), b["y"], reduction="none"),
    )  # fmt: skip
    result = examine(adapter, plan, budget="60 steps" if tiny else 30.0)
    return {"findings": [str(f.name) for f in result.findings], "tests": len(result.tests)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run every section, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--wheels", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "gpu.json")
    asked = parser.parse_args(arguments)
    if asked.wheels is not None:
        sys.path[:0] = [str(path) for path in sorted(asked.wheels.glob("*.whl"))]
    clock, device, tiny = Clock(asked.minutes - 0.3), asked.device, asked.tiny
    result: dict[str, Any] = {
        "schema": "dpaudit.bench_gpu/1",
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else "cpu: no GPU at hand, no number of these counts",
        "torch": torch.__version__,
        "tiny": tiny,
        "goals": GOALS,
        "exactness": exactness(device),
        "noise": noise(device, tiny),
        "examiner": examined(clock, device, tiny),
        "zeroth_order": zeroth_order(clock, device, tiny),
        "steps": steps(clock, device, tiny),
        "largest_batch": largest_batch(clock, device, tiny),
        "skipped": clock.skipped,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("steps",)}))
    return result


if __name__ == "__main__":
    main()
