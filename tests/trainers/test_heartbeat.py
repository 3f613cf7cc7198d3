"""Life signs: at the beginning, once a minute, at the end; with the certified ε of what was counted."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from dpaudit import InvalidValue, Ledger, MemoryJournal, account
from dpaudit.trainers import PrivacyPlan, train
from dpaudit.trainers.heartbeat import Heartbeat
from dpaudit.trainers.target import spent

PLAN = PrivacyPlan(
    delta=1e-3, relation="add_or_remove_one", sampling="poisson", unit="row", public_size=40,
    expected_batch_size=8, steps=6, clipping_norm=1.0, noise_multiplier=1.5,
)  # fmt: skip


def test_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with caplog.at_level(logging.INFO, logger="dpaudit"):
        beat = Heartbeat(PLAN, PLAN.ledger, clock=lambda: now[0])
        for step in range(1, 6):
            now[0] += 25.0
            beat.step(step)
        beat.end(5)
    assert [re.sub(", epsilon.*", "", m) for m in caplog.messages[1:]] == ["step 3 of 6", "ended after step 5 of 6"]
    assert "q=0.2" in caplog.messages[0] and "sigma=1.5" in caplog.messages[0]


def test_nothing_is_accounted_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpaudit.trainers.heartbeat.spent", lambda *a: pytest.fail("accounted"))
    logging.getLogger("dpaudit.trainers").setLevel(logging.WARNING)
    try:
        Heartbeat(PLAN, PLAN.ledger).end(1)
    finally:
        logging.getLogger("dpaudit.trainers").setLevel(logging.NOTSET)


def test_a_training_run_tells_its_epsilon_and_the_journal_has_its_ledger(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(3, 2)
    journal = MemoryJournal(relation="add_or_remove_one", unit="row")
    with caplog.at_level(logging.INFO, logger="dpaudit"):
        train(
            model,
            [torch.randn(3) for _ in range(40)],
            PLAN,
            collate=torch.stack,
            loss_fn=lambda m, batch: m(batch).square().sum(1),
            journal=journal,
            preflight=False,
        )
    (guarantee,) = account(journal.ledger(), delta=1e-3)
    assert journal.ledger() == PLAN.ledger()
    told = re.search(r"ended after step 6 of 6, epsilon <= ([\d.]+)", caplog.text)
    assert told and guarantee.epsilon_upper is not None
    assert guarantee.epsilon_upper <= float(told[1]) < guarantee.epsilon_upper * 1.001


def test_a_journal_without_relation_says_how_to_make_one() -> None:
    journal = MemoryJournal()
    journal.begin(PLAN.stage(0))
    journal.count()
    with pytest.raises(
        InvalidValue, match=r'relation=None .* MemoryJournal\(relation="add_or_remove_one", unit="record"\)'
    ):
        journal.ledger()
    assert journal.ledger_stages()[0].steps == 1


def test_what_cannot_be_accounted_is_not_told() -> None:
    assert spent(Ledger(stages=(), relation=PLAN.relation), 1e-3) is None
    shuffled = PLAN.stage().to_dict() | {"sampling": "shuffle"}
    ledger = Ledger.from_dict(PLAN.ledger().to_dict() | {"stages": [shuffled]})
    assert spent(ledger, 1e-3) is None
