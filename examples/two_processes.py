"""One private run in two processes, to its certificate.

    accelerate launch --multi_gpu --num_processes 2 examples/two_processes.py RUN

``--multi_gpu`` starts two processes on a machine without GPUs too (``--cpu`` starts one), and so does ``torchrun
--nproc-per-node 2``. With ``--use_fsdp --fsdp_version 2`` on GPUs the model is sharded. The first process makes
canaries and coins, counts every step, and writes; every process draws from its own records and clips its own examples.
"""

import argparse
import lzma
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from dpaudit.attacks import canary_losses, flip_coins, inserted, new_token_canaries, residual_scores, write_secret
from dpaudit.auditing import design
from dpaudit.certificates import Canaries, Claim, certify_run, write_plan
from dpaudit.trainers import DPTrainer, PrivacyArguments, noise_statement, pad_tokens

HERE = Path(__file__).resolve().parent
EPSILON, DELTA, RELATION, UNIT = 3.0, 1e-5, "add_or_remove_one", "paragraph"
LENGTH, CLIPPING_NORM = 32, 0.5


def main(run: Path, records: int, canaries: int, steps: int) -> None:
    arguments = TrainingArguments(
        str(run / "trainer"), max_steps=steps, learning_rate=1e-3, lr_scheduler_type="constant", logging_steps=10,
        per_device_train_batch_size=64, save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    first = arguments.process_index == 0
    release, private = run / "release", run / "private"
    tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
    model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32)

    # 1. The first process makes the canaries, flips the coins and freezes the plan; all processes learn of them.
    told = [None, None, None]
    if first:
        release.mkdir(parents=True)
        reserved = [f"<canary_{i:04d}>" for i in range(canaries)]
        made = new_token_canaries(
            tokenizer, canaries, reserved_tokens=reserved, rng=np.random.default_rng(), length=12, max_length=LENGTH
        )
        coins = flip_coins(canaries)
        secret = write_secret(private / "canaries.secret.parquet", made, coins, os.urandom(32), copies=1)
        plan = design(
            canaries, EPSILON, DELTA, relation=RELATION, unit=UNIT, attack="loss-residual",
            coin_commitment=secret.commitment,
        )  # fmt: skip
        told = [made, coins, write_plan(release / "audit_plan.json", plan)]
    if dist.is_initialized():
        dist.broadcast_object_list(told, src=0)
    made, coins, plan_digest = told

    # 2. The records: real ones, then the canaries whose coin is 1; the same list in every process.
    texts = lzma.open(HERE / "data" / "austen_private.txt.xz", "rt", encoding="utf-8").read().splitlines()[:records]
    end = tokenizer.eos_token_id
    rows = [[end, *tokenizer(text, add_special_tokens=False)["input_ids"], end][:LENGTH] for text in texts]
    data = [{"input_ids": row, "labels": row} for row in rows]
    data += inserted(made, coins, copies=1, supervise="scored")

    def collate(batch):
        padded = pad_tokens([row["input_ids"] for row in batch], pad=tokenizer.pad_token_id)
        labels = torch.full_like(padded["input_ids"], -100)
        for i, row in enumerate(batch):
            labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
        return {**padded, "labels": labels}

    # 3. Train, as in one process.
    trainer = DPTrainer(
        model,
        arguments,
        privacy=PrivacyArguments(
            delta=DELTA, relation=RELATION, sampling="poisson", unit=UNIT, public_size=records + canaries // 2,
            expected_batch_size=records / 10, clipping_norm=CLIPPING_NORM, target_epsilon=EPSILON,
        ),
        audit_plan_sha256=plan_digest,
        train_dataset=data,
        data_collator=collate,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(release / "model"))
    if not first:
        return

    # 4. The first process scores the saved model and certifies.
    tokenizer.save_pretrained(release / "model")
    (release / "ledger.jsonl").write_bytes((run / "trainer" / "privacy" / "ledger.jsonl").read_bytes())
    saved = AutoModelForCausalLM.from_pretrained(release / "model", dtype=torch.float32)
    scores = residual_scores(canary_losses(saved, made), canary_losses(base, made))
    pd.DataFrame({"id": secret.ids, "score": scores}).to_parquet(release / "scores.parquet", index=False)
    certificate = certify_run(
        release,
        claim=Claim(epsilon=EPSILON, delta=DELTA, relation=RELATION, unit=UNIT, max_records_per_unit=1),
        mechanism={
            "algorithm": "DP-AdamW (dpaudit DPTrainer)",
            "clipping_norm": CLIPPING_NORM,
            "normaliser": trainer.plan.normaliser,
            **noise_statement(),
        },
        trust_model="central: the processes of one operator see the records",
        release_scope="last iterate",
        canaries=Canaries(ids=secret.ids, coins=tuple(int(c) for c in coins), copies=secret.copies, nonce=secret.nonce),
        run_status=trainer.status,
        reproduction=f"accelerate launch --multi_gpu --num_processes {arguments.world_size} two_processes.py RUN",
    )
    print("verdict:", certificate.predicate.verdict.name, "processes:", arguments.world_size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    for name, default in (("records", 2000), ("canaries", 1000), ("steps", 110)):
        parser.add_argument(f"--{name}", type=int, default=default)
    main(**vars(parser.parse_args()))
