"""What a collator does to one record beside another is seen before the first step, on every training path."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from dpaudit import MemoryJournal
from dpaudit.privacy.errors import InvalidValue, PrivacyRefusal
from dpaudit.trainers import (
    CollatedRecords,
    Directions,
    DPTrainer,
    PrivacyArguments,
    ZerothOrderArguments,
    ZOTrainer,
    pad_tokens,
    preflight,
    train,
    zo_train,
)
from dpaudit.trainers.huggingface.losses import per_example_losses
from dpaudit.trainers.noise import NoNoise
from dpaudit.trainers.preflight.check import preflight_losses
from dpaudit.trainers.sampling import ScriptedSampler
from dpaudit.trainers.tasks.losses import token_losses
from dpaudit.trainers.zeroth_order.stages import ZOStage
from tests.trainers.ghost.test_families import build
from tests.trainers.padded import batch_of
from tests.trainers.tiny_lm import PLAN, RECORDS, TinyLM, losses

Collate = Callable[[list[Any]], Any]


def group_texts(rows: list[list[int]]) -> dict[str, Tensor]:
    """Concatenates and cuts back into as many rows."""
    stream = [token for row in rows for token in row]
    width = -(-len(stream) // len(rows))
    return pad_tokens([stream[at * width : (at + 1) * width] for at in range(len(rows))])


def shuffled(rows: list[list[int]]) -> dict[str, Tensor]:
    batch = pad_tokens(rows)
    order = torch.randperm(len(rows))
    return {k: v[order] for k, v in batch.items()}


def mixed_up(rows: list[list[int]]) -> dict[str, Tensor]:
    """Labels of one record with the tokens of another."""
    batch = pad_tokens(rows)
    return {**batch, "labels": batch["labels"].roll(1, 0)}


def to_the_shortest(rows: list[list[int]]) -> dict[str, Tensor]:
    return pad_tokens(rows, length=min(map(len, rows)))


def deduplicated(rows: list[list[int]]) -> dict[str, Tensor]:
    kept = [list(row) for row in dict.fromkeys(map(tuple, rows))]
    return pad_tokens((kept * len(rows))[: len(rows)])


def without_marks(rows: list[list[int]]) -> dict[str, Tensor]:
    """Padding is content: no mask, and labels on it."""
    batch = pad_tokens(rows)
    return {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}


def kept_only(rows: list[list[int]], keep: Callable[[list[int]], bool]) -> dict[str, Tensor]:
    """Drops rows, and repeats others in their place."""
    kept = [row for row in rows if keep(row)] or rows[:1]
    return pad_tokens((kept * len(rows))[: len(rows)])


class Remembers:
    """Puts the last record of the batch before into the next one."""

    def __init__(self) -> None:
        self.last = [1]

    def __call__(self, rows: list[list[int]]) -> dict[str, Tensor]:
        before, self.last = self.last, list(rows[-1])
        return pad_tokens([before + row for row in rows])


COUPLED: dict[str, Collate] = {
    "group_texts": group_texts,
    "sorted": lambda rows: pad_tokens(sorted(rows, key=len)),
    "shuffled": shuffled,
    "mixed up": mixed_up,
    "to the shortest": to_the_shortest,
    "deduplicated": deduplicated,
    "without marks": without_marks,
    "windows": lambda rows: pad_tokens([r[at : at + 3] for r in rows for at in range(0, len(r), 3)]),
    "packed": lambda rows: pad_tokens([[token for row in rows for token in row]]),
    "neighbour as prompt": lambda rows: pad_tokens([[*rows[i - 1], *row] for i, row in enumerate(rows)]),
    "remembers": Remembers(),
    "refills for short rows": lambda rows: kept_only(rows, lambda row: len(row) > 3),
    "refills for rows of the data's length": lambda rows: kept_only(rows, lambda row: len(row) > 5 or len(row) < 3),
}


@pytest.mark.parametrize("name", COUPLED)
def test_a_collator_that_couples_records_is_refused_before_the_first_step(name: str) -> None:
    def not_drawn(records: Any) -> None:
        raise AssertionError("a record was drawn")

    class Journal(MemoryJournal):
        def count(self) -> None:
            raise AssertionError("a step was counted")

    common: dict[str, Any] = {"collate": COUPLED[name], "loss_fn": losses, "journal": Journal()}
    with pytest.raises(PrivacyRefusal) as first:
        train(TinyLM(), RECORDS, PLAN, **common)
    with pytest.raises(PrivacyRefusal) as second:
        stage = ZOStage(plan=PLAN, learning_rate=1e-3, scale=1e-3)
        zo_train(TinyLM(), RECORDS, stage, directions=Directions(run="collators"), **common)
    for refused in (first, second):
        assert "\n" not in str(refused.value)


def own_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """A loss of one's own that knows nothing of padding on the left."""
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    if logits.ndim == 2:
        return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    return token_losses(logits[:, :-1], batch["labels"][:, 1:])


# family, side, mask, default loss: whether the padding stays out of other records' losses
PADDING: list[tuple[str, str, bool, bool, bool]] = [
    ("gpt2", "right", True, True, True),
    ("gpt2", "right", False, True, True),
    ("gpt2", "left", True, True, True),
    ("gpt2", "left", False, True, False),
    ("gpt2", "left", True, False, False),
    ("llama", "left", True, True, True),
    ("llama", "left", True, False, False),
    ("bert", "right", True, True, True),
    ("bert", "right", True, False, True),
    ("bert", "right", False, True, False),
    ("bert", "left", True, True, True),
    ("bert", "left", True, False, False),
]


@pytest.mark.parametrize(("family", "side", "mask", "ours", "holds"), PADDING)
def test_padding_on_either_side_and_without_a_mask(family: str, side: str, mask: bool, ours: bool, holds: bool) -> None:
    record = {"input_ids": [5, 6, 7, 8], "labels": 1 if family == "bert" else [5, 6, 7, 8]}
    loss_fn = per_example_losses if ours else own_losses
    source = CollatedRecords([record, record], lambda rows: batch_of(rows, side=side, mask=mask))
    batch = batch_of(
        [record, {**record, "input_ids": [5, 6], "labels": 0 if family == "bert" else [5, 6]}], side=side, mask=mask
    )
    for given in (source, batch):
        model = build(family, torch.float32)
        if holds:
            assert preflight(model, given, loss_fn=loss_fn).independence < 1e-4
        elif mask or given is source or side == "right":
            with pytest.raises(PrivacyRefusal, match=r"when the (length|content|number)"):
                preflight(model, given, loss_fn=loss_fn)
            with pytest.raises(PrivacyRefusal, match=r"when the (length|content|number)"):
                preflight_losses(model.eval(), given, loss_fn=loss_fn)


def test_one_record_at_a_time_meets_no_other() -> None:
    record = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return batch_of(rows, side="left", mask=False)

    with pytest.raises(PrivacyRefusal, match="physical_batch_size=1"):
        preflight(build("gpt2", torch.float32), CollatedRecords([record], collate), loss_fn=own_losses)
    report = preflight(build("gpt2", torch.float32), CollatedRecords([record], collate, 1), loss_fn=own_losses)
    assert report.collator and report.sensitivity_over_bound <= 1 + 1e-4


def test_a_batch_that_shows_no_padding_is_tried_on_both_sides_unless_declared() -> None:
    model = build("bert", torch.float32)
    batch = batch_of([{"input_ids": [5, 6, 7, 8], "labels": 1}] * 2)
    with pytest.raises(PrivacyRefusal, match="padded on the left"):
        preflight(model, batch, loss_fn=own_losses)
    assert preflight(model, batch, loss_fn=own_losses, padding="right").padding == ("right",)
    assert preflight(model, batch, loss_fn=own_losses, padding="none").padding == ()
    assert preflight(model, batch, loss_fn=per_example_losses).padding == ("right", "left")
    with pytest.raises(InvalidValue, match="padding='up'"):
        preflight(model, batch, loss_fn=own_losses, padding="up")


def test_random_masking_is_no_coupling() -> None:
    class Masks:
        def __init__(self, draw: Callable[..., Any]) -> None:
            self.draw = draw

        def __call__(self, rows: list[list[int]]) -> dict[str, Tensor]:
            batch = pad_tokens(rows)
            covered = self.draw(batch["input_ids"].shape)
            return {**batch, "input_ids": batch["input_ids"].masked_fill(covered, 0)}

    for draw in (
        lambda shape: torch.rand(shape) < 0.15,
        lambda shape: torch.bernoulli(torch.full(shape, 0.15)).bool(),
    ):
        assert preflight(TinyLM(), CollatedRecords(RECORDS, Masks(draw)), loss_fn=losses).collator


def test_hugging_faces_masking_collator_passes() -> None:
    from transformers import DataCollatorForLanguageModeling

    from tests.trainers.tasks.test_tasks import tokenizer

    collate = DataCollatorForLanguageModeling(tokenizer(), mlm=True)
    source = CollatedRecords([{"input_ids": [2, 5, 6, 7, 3]}], collate)
    assert preflight(build("bert-mlm", torch.float32), source, loss_fn=per_example_losses).collator


# -- what records are made of ------------------------------------------------------------------------------------------
class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.users, self.out = nn.Embedding(50, 8), nn.Embedding(5, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, user: Tensor | None = None) -> Tensor:
        hidden = self.words(ids).mean(1)
        return self.out(hidden if user is None else hidden + self.users(user))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "key", ["labels", "outcome", *(pytest.param(k, marks=pytest.mark.slow) for k in ("label", "y", "target"))]
)
def test_labels_of_any_name_and_second_vocabularies_are_made_up(key: str) -> None:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = model(batch["input_ids"], batch.get("user"))
        return nn.functional.cross_entropy(logits, batch[key], reduction="none")

    for batch in (
        {"input_ids": torch.randint(0, 50, (4, 6)), key: torch.tensor([0, 1, 2, 0])},
        {
            "input_ids": torch.randint(0, 50, (4, 6)),
            "user": torch.tensor([0, 1, 2, 4]),
            key: torch.tensor([0, 1, 1, 0]),
        },
    ):
        assert preflight(Words(), batch, loss_fn=loss_fn, padding="none").independence < 1e-5
        with pytest.raises(PrivacyRefusal, match="length of the other examples"):
            preflight(Words(), batch, loss_fn=loss_fn)  # a mean over padding
        rows = [{k: v[i] for k, v in batch.items()} for i in range(4)]

        def stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

        assert preflight(Words(), CollatedRecords(rows, stack), loss_fn=loss_fn).collator  # which takes one length


def test_pairs_tuples_arrays_and_numbers_of_rows() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def pairs(rows: list[Any]) -> tuple[Tensor, Tensor]:
        return torch.stack([torch.as_tensor(r[0]) for r in rows]), torch.tensor([int(r[1]) for r in rows])

    def indexed(rows: list[int]) -> tuple[Tensor, Tensor]:
        return x[rows], y[rows]

    for records, collate, seen in (
        ([(a, int(b)) for a, b in zip(x, y, strict=True)], pairs, True),
        ([[a.numpy(), b.numpy()] for a, b in zip(x, y, strict=True)], pairs, True),
        ([(a.tolist(), b) for a, b in zip(x, y, strict=True)], pairs, True),
        (range(12), indexed, False),
    ):
        result = train(
            nn.Linear(5, 3),
            records,  # type: ignore[arg-type]
            PLAN,
            collate=collate,
            loss_fn=loss_fn,
            journal=MemoryJournal(),
            sampler=ScriptedSampler([[0, 1, 2]]),
        )
        assert result.preflight is not None
        report = preflight(nn.Linear(5, 3), CollatedRecords(records, collate), loss_fn=loss_fn)  # type: ignore[arg-type]
        assert report.collator is seen
        with pytest.raises(PrivacyRefusal):
            train(
                nn.Linear(5, 3),
                records,  # type: ignore[arg-type]
                PLAN,
                collate=collate,
                loss_fn=lambda m, b: loss_fn(m, b) - loss_fn(m, b).mean(),
                journal=MemoryJournal(),
            )


def test_texts_go_through_the_tokenizer() -> None:
    from tests.trainers.tasks.test_tasks import gpt2, tokenizer

    encode = tokenizer()
    for side in ("right", "left"):
        encode.padding_side = side

        def collate(rows: list[dict[str, Any]]) -> Any:
            batch = encode([r["text"] for r in rows], padding=True, return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

        source = CollatedRecords([{"text": "the film is great"}], collate)
        assert preflight(gpt2(), source, loss_fn=per_example_losses).collator
        with pytest.raises(PrivacyRefusal):
            preflight(gpt2(), source, loss_fn=lambda m, b: per_example_losses(m, b) * len(b["labels"]))


def test_what_cannot_be_made_up_is_one_sentence_and_may_be_given() -> None:
    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"] - 7, reduction="none")

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"x": torch.stack([r["x"] for r in rows]), "y": torch.tensor([r["y"] for r in rows])}

    records = [{"x": torch.randn(5), "y": 7 + i % 3} for i in range(8)]
    common: dict[str, Any] = {"collate": collate, "loss_fn": loss_fn, "journal": MemoryJournal()}
    with pytest.raises(InvalidValue, match=r"no records could be made up.*IndexError.*made_up=True") as refused:
        train(nn.Linear(5, 3), records, PLAN, **common)
    assert "\n" not in str(refused.value)
    result = train(nn.Linear(5, 3), records, PLAN, preflight=records[:4], **common)
    assert result.preflight is not None and result.preflight.collator
    assert train(nn.Linear(5, 3), records, PLAN, preflight=False, **common).preflight is None
    common["loss_fn"] = lambda m, b: loss_fn(m, b) / len(b["y"])
    with pytest.raises(PrivacyRefusal, match="number of the other examples"):
        train(nn.Linear(5, 3), records, PLAN, preflight=records[:4], **common)


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = build("gpt2", torch.float32).train()
    model.transformer.h[0].eval()  # type: ignore[union-attr, index, operator]
    model.register_buffer("own", torch.ones(3))
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    record = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
    preflight(model, CollatedRecords([record], lambda rows: batch_of(rows)), loss_fn=per_example_losses)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(streams[0], torch.get_rng_state()) and random.getstate() == streams[2]
    assert (np.random.get_state()[1] == streams[1]).all()  # type: ignore[index]
    assert all(p.grad is None for p in model.parameters())


# -- the trainers of Hugging Face --------------------------------------------------------------------------------------
PRIVACY: dict[str, Any] = dict(
    delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=20,
    expected_batch_size=4, clipping_norm=0.5, noise_multiplier=1.0,
)  # fmt: skip
DICTS = [{"input_ids": row, "labels": list(row)} for row in RECORDS]


def trainer_of(kind: str, path: Any, collate: Collate, **arguments: Any) -> Any:
    args = TrainingArguments(
        str(path), max_steps=1, per_device_train_batch_size=4, save_strategy="no", report_to=[], disable_tqdm=True,
        use_cpu=True, remove_unused_columns=False, **arguments,
    )  # fmt: skip
    model = build("gpt2", torch.float32).eval()
    common: dict[str, Any] = {"train_dataset": DICTS, "data_collator": collate, "privacy": PrivacyArguments(**PRIVACY)}
    if kind == "first order":
        return DPTrainer(model, args, **common)
    return ZOTrainer(model, args, zeroth_order=ZerothOrderArguments(run_key="k"), noise=NoNoise(), **common)


@pytest.mark.parametrize("kind", ["first order", "zeroth order"])
def test_the_trainers_try_their_collator_first(tmp_path: Any, kind: str) -> None:
    def twice(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return batch_of([r for row in rows for r in (row, row)])

    def turned(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return batch_of(rows[::-1])

    for number, (collate, message) in enumerate(
        ((twice, "8 losses for 4 records"), (turned, r"gives its row another 'input_ids'"))
    ):
        trainer = trainer_of(kind, tmp_path / str(number), collate)
        modes = [m.training for m in trainer.model.modules()]
        with pytest.raises(PrivacyRefusal, match=message):
            trainer.train()
        assert trainer.ledger.steps == 0 and [m.training for m in trainer.model.modules()] == modes
    trainer = trainer_of(kind, tmp_path / "right", lambda rows: batch_of(rows, side="left"))
    trainer.train()
    assert trainer.ledger.steps == 1
