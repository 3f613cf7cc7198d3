"""Row 9: peak memory of zeroth-order and first-order steps, by model size.

Each method runs one step on a GPT-2 of random weights in a forked process of its own; what is reported is the peak of
that process (VmHWM) above the memory it was forked with, weights included. On a GPU: the allocator's peak.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit import MemoryJournal
from dpaudit.trainers import Directions, OptimizerSettings, aggzo, causal_lm_losses, train, zo_train
from findings.jobs import Job, Options, named, seeded
from findings.privacy import planned

SIZES = {"2M": (2, 128, 8192), "11M": (4, 256, 32000), "45M": (8, 512, 40000), "124M": (12, 768, 50257)}
BATCH, LENGTH = 8, 64
METHODS = ("forward", "zeroth order", "dp-adam", "adamw", "per-example gradients")


def gpt2(size: str) -> Any:
    """Random weights of a shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, width, vocabulary = SIZES.get(size, (1, 32, 64))
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=LENGTH, n_embd=width, n_layer=layers, n_head=max(1, width // 64),
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def step_of(method: str, model: Any, ids: list[list[int]], device: str) -> Callable[[], Any]:
    """One step of a method; every private one goes through the library's own loop."""

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor(rows, device=device)}

    def losses(m: nn.Module, batch: Any) -> Tensor:
        return causal_lm_losses(m, batch["input_ids"])

    plan = planned(len(ids), batch=len(ids), steps=1, clipping_norm=1.0, epsilon=None).with_noise_multiplier(1.0)
    common = {"collate": collate, "loss_fn": losses, "physical_batch_size": len(ids), "preflight": False}
    if method == "zeroth order":
        stages = aggzo(plan, learning_rate=1e-6, scale=1e-3)
        return lambda: zo_train(
            model, ids, stages, journal=MemoryJournal(), directions=Directions(run="memory"), **common
        )
    if method == "dp-adam":
        return lambda: train(model, ids, plan, journal=MemoryJournal(), optimizer=OptimizerSettings(), **common)
    batch = collate(ids)
    if method == "forward":
        return torch.no_grad()(lambda: losses(model, batch))
    if method == "adamw":
        optimizer = torch.optim.AdamW(model.parameters())

        def ordinary() -> None:
            losses(model, batch).mean().backward()
            optimizer.step()

        return ordinary

    def every_gradient() -> list[list[Tensor]]:  # what hooks hold: one gradient for each example
        each = losses(model, batch)
        return [list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)) for loss in each]

    return every_gradient


def peak_of(method: str, size: str, device: str) -> float:
    """MiB at the peak of one step."""
    model = gpt2(size).to(device)
    ids = torch.randint(1, 60, (BATCH, LENGTH)).tolist()
    step = step_of(method, model, ids, device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    step()
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}; this row needs Linux.")


def _child(method: str, size: str, pipe: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    begun = _status("VmRSS")
    pipe.send(peak_of(method, size, "cpu") - begun)


def measured(method: str, size: str, options: Options) -> dict[str, Any]:
    """One process, one step."""
    if options.device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
        found = peak_of(method, size, options.device)
    else:
        import transformers.models.gpt2.modeling_gpt2  # noqa: F401  before the fork, so that its pages are the parent's

        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(method, size, theirs))
        child.start()
        theirs.close()
        try:
            found = ours.recv()
        except EOFError:
            raise RuntimeError(f"{method} on {size} ended without a figure (out of memory?)") from None
        finally:
            child.join()
    layers, width, vocabulary = SIZES.get(size, (1, 32, 64))
    weights = 4 * (vocabulary * width + LENGTH * width + layers * (12 * width**2 + 13 * width) + 2 * width) / 2**20
    return {"peak_mib": found, "weights_mib": weights, "batch": BATCH, "length": LENGTH}


def jobs(options: Options) -> Iterable[Job]:
    """The smallest model first; per-example gradients of the largest would take 4 GB and are left out."""
    sizes = tuple(SIZES) if options.steps is None else ("trial",)
    return seeded(
        lambda seed, m=method, s=size: Job(9, named(method=f"'{m}'", size=s), seed, lambda: measured(m, s, options))
        for size in sizes
        for method in METHODS
        if (method, size) != ("per-example gradients", "124M")
    )
