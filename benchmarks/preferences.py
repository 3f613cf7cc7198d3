"""Reward accuracy of private preference tuning (DPO) against private tuning on the chosen answers alone (SFT).

    python benchmarks/preferences.py

Generated preferences: after the first words of a sentence a rater prefers an answer in the style of one public text to
one in the style of another. Both methods have the same ε for a pair, the same steps and pairs a step, and the same
adapters on the small model of examples/model; DPO clips a pair as one, SFT its chosen answer. Accuracy is the share of
held-out pairs of which the chosen answer gained more over the model before training than the rejected one.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from dpaudit import MemoryJournal
from dpaudit.accounting import calibrate
from dpaudit.trainers import OptimizerSettings, PrivacyPlan, causal_lm_losses, train, trained_parameters
from dpaudit.trainers.tasks.preferences import (
    PreferenceCollator,
    dpo_losses,
    preference_records,
    reward_accuracy,
    with_reference_logps,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
PRIVATE, HELDOUT, BATCH, LENGTH = 600, 200, 48, 32


def sentences(name: str) -> list[list[str]]:
    """Words of the lines of a bundled text."""
    lines = lzma.open(EXAMPLES / "data" / name, "rt", encoding="utf-8").read().splitlines()
    return [words for line in lines if len(words := line.split()) >= 14]


def preferences(seed: int) -> list[dict[str, Any]]:
    """Pairs whose chosen answer goes on as the novels do and whose rejected one as the King James Bible does."""
    rng = random.Random(seed)
    novel, bible = sentences("austen_private.txt.xz"), sentences("kjv.txt.xz")
    rows = []
    for _ in range(PRIVATE + HELDOUT):
        start, chosen, rejected = rng.choice([*novel, *bible[:3000]]), rng.choice(novel), rng.choice(bible)
        rows.append(
            {
                "prompt": " ".join(start[:5]) + " ",
                "chosen": " ".join(chosen[3:12]),
                "rejected": " ".join(rejected[3:12]),
            }
        )
    return rows


def base() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(EXAMPLES / "model", dtype=torch.float32)


class Chosen:
    """Collates the chosen answers alone, a row each."""

    def __init__(self, collate: PreferenceCollator) -> None:
        self._collate = collate

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collate(records)
        return {k: v[0::2] for k, v in batch.items() if not k.startswith("ref_")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--beta", type=float, default=0.5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "model")
    plan = calibrate(
        PrivacyPlan(
            delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="preference", public_size=PRIVATE,
            expected_batch_size=BATCH, steps=given.steps, clipping_norm=1.0, clipping="automatic",
            target_epsilon=given.epsilon,
        )
    )  # fmt: skip
    collate = PreferenceCollator(tokenizer.eos_token_id)
    found: dict[str, list[float]] = {"dpo": [], "sft": []}
    for seed in range(given.seeds):
        records = preference_records(preferences(seed), tokenizer, max_length=LENGTH)
        records = with_reference_logps(base(), records, collate=collate)
        private, public = records[:PRIVATE], records[PRIVATE:]
        for method in found:
            begun = time.process_time()
            torch.manual_seed(seed)
            model = trained_parameters(base(), "lora", rank=8).train()
            losses = {
                "dpo": lambda model, batch: dpo_losses(model, batch, beta=given.beta),
                "sft": lambda model, batch: causal_lm_losses(model, **batch),
            }
            train(
                model,
                private,
                plan,
                collate=collate if method == "dpo" else Chosen(collate),
                loss_fn=losses[method],
                rows_per_record=2 if method == "dpo" else 1,
                journal=MemoryJournal(),
                physical_batch_size=32,
                optimizer=OptimizerSettings(learning_rate=given.rate),
                preflight=False,  # collator and losses are those of the tests
            )
            accuracy = reward_accuracy(model, public, collate=collate)
            found[method].append(accuracy)
            row = {"method": method, "epsilon": given.epsilon, "seed": seed, "reward_accuracy": accuracy}
            print(json.dumps({**row, "cpu_seconds": time.process_time() - begun}), flush=True)
    for method, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"epsilon {given.epsilon:g} {method}: accuracy {statistics.mean(values):.3f} (deviation {spread:.3f})")


if __name__ == "__main__":
    main()
