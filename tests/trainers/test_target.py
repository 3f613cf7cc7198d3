"""A target beside a noise multiplier, and a large δ, are judged before the first step on every road."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from dpaudit import MemoryJournal, PrivacyRefusal, PrivacyWarning
from dpaudit.accounting import account, calibrate
from dpaudit.trainers import NoiseSource, PrivacyArguments, PrivacyPlan, train
from dpaudit.trainers.huggingface.trainer import DPTrainer
from dpaudit.trainers.huggingface.zo_trainer import ZerothOrderArguments, ZOTrainer
from dpaudit.trainers.zeroth_order.directions import Directions
from dpaudit.trainers.zeroth_order.stages import dpzero
from dpaudit.trainers.zeroth_order.train import zo_train

CLAIM = dict(
    delta=1e-5, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=200,
    expected_batch_size=20, clipping_norm=1.0,
)  # fmt: skip
ROWS = [{"x": torch.ones(3) * i, "labels": torch.tensor(i % 2)} for i in range(6)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x, labels=None):
        return self.out(x)


def collate(rows):
    return {"x": torch.stack([r["x"] for r in rows]), "labels": torch.stack([r["labels"] for r in rows])}


def losses(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")


def by_train(path, claim, journal):
    plan = PrivacyPlan(**claim, steps=3)
    train(Net(), ROWS, plan, collate=collate, loss_fn=losses, journal=journal)


def by_zo_train(path, claim, journal):
    stages = dpzero(PrivacyPlan(**claim, steps=3), learning_rate=0.1, scale=0.1)
    zo_train(
        Net(), ROWS, stages, collate=collate, loss_fn=losses, journal=journal, directions=Directions(run="t")
    )  # fmt: skip


def hugging_face(path):
    return TrainingArguments(
        str(path), max_steps=3, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip


def by_dp_trainer(path, claim, journal):
    DPTrainer(
        Net(), hugging_face(path), privacy=PrivacyArguments(**claim), per_example_loss=losses, train_dataset=ROWS,
        data_collator=collate, journal=journal,
    ).train()  # fmt: skip


def by_zo_trainer(path, claim, journal):
    ZOTrainer(
        Net(), hugging_face(path), privacy=PrivacyArguments(**claim), per_example_loss=losses, train_dataset=ROWS,
        zeroth_order=ZerothOrderArguments(run_key="t", stages=2), data_collator=collate, journal=journal,
    ).train()  # fmt: skip


ROADS = [by_train, by_zo_train, by_dp_trainer, by_zo_trainer]


@pytest.mark.parametrize("road", ROADS)
def test_a_target_that_the_noise_multiplier_misses_is_refused_before_the_first_step(road, tmp_path):
    journal = MemoryJournal()
    with pytest.raises(PrivacyRefusal, match=r"epsilon <= [\d.]+ at delta=1e-5, above target_epsilon=3;.*calibrate"):
        road(tmp_path, {**CLAIM, "target_epsilon": 3.0, "noise_multiplier": 0.3}, journal)
    assert not journal.ledger_stages()


@pytest.mark.parametrize("road", ROADS)
def test_a_target_that_is_met_trains(road, tmp_path):
    journal = MemoryJournal()
    road(tmp_path, {**CLAIM, "target_epsilon": 3.0, "noise_multiplier": 3.0}, journal)
    assert sum(stage.steps for stage in journal.ledger_stages()) == 3


def test_a_calibrated_plan_meets_its_own_target():
    plan = PrivacyPlan(**CLAIM, steps=3, target_epsilon=1.5)
    train(Net(), ROWS, calibrate(plan), collate=collate, loss_fn=losses, journal=MemoryJournal())


def test_the_sentence_names_the_epsilon_that_an_accountant_gives():
    plan = PrivacyPlan(**CLAIM, steps=3, target_epsilon=0.5, noise_multiplier=1.0)
    (found,) = account(plan.ledger(), delta=1e-5)
    with pytest.raises(PrivacyRefusal) as error:
        train(Net(), ROWS, plan, collate=collate, loss_fn=losses, journal=MemoryJournal())
    said = float(str(error.value).split("epsilon <= ")[1].split()[0])
    assert found.epsilon_upper <= said <= found.epsilon_upper * 1.001


def test_a_plan_that_no_accountant_bounds_is_not_taken_to_meet_its_target():
    plan = PrivacyPlan(
        **{**CLAIM, "sampling": "truncated_poisson"}, steps=3, max_batch=25, target_epsilon=9.0, noise_multiplier=9.0
    )
    try:
        train(Net(), ROWS, plan, collate=collate, loss_fn=losses, journal=MemoryJournal())
    except PrivacyRefusal as error:
        assert "no accountant proves a bound" in str(error)
    else:
        assert min(g.epsilon_upper for g in account(plan.ledger(), delta=1e-5)) <= 9


@pytest.mark.parametrize("road", ROADS)
def test_a_delta_that_allows_publishing_a_record_is_warned_of_before_the_first_step(road, tmp_path, recwarn):
    class Counted(Exception):
        pass

    class Journal(MemoryJournal):
        def count(self):
            raise Counted

    with pytest.raises(Counted), pytest.warns(PrivacyWarning, match="delta=0.1 is not below 1/public_size=1/200"):
        road(tmp_path, {**CLAIM, "delta": 0.1, "noise_multiplier": 3.0}, Journal())


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("road", ROADS)
def test_secure_noise_reaches_the_source(road, secure, tmp_path, monkeypatch):
    made, real = [], NoiseSource.__init__

    def init(self, **options):
        real(self, **options)
        made.append(self.secure)

    monkeypatch.setattr(NoiseSource, "__init__", init)
    road(tmp_path, {**CLAIM, "noise_multiplier": 3.0, "secure_noise": secure}, MemoryJournal())
    assert set(made) == {secure}


def test_a_plan_keeps_secure_noise_through_calibration():
    plan = PrivacyPlan(**CLAIM, steps=3, target_epsilon=3.0, secure_noise=True)
    assert calibrate(plan).secure_noise and dataclasses.replace(plan, steps=4).secure_noise
