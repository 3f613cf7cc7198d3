import dataclasses
import math

import pytest

from dpaudit import Ledger, Relation
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.protocols import Calibratable
from dpaudit.privacy.stage import Sampling
from dpaudit.trainers import PrivacyPlan

BASE = dict(
    delta=1e-4,
    relation="add_or_remove_one",
    sampling="poisson",
    unit="record",
    public_size=4000,
    expected_batch_size=200.0,
    steps=100,
    clipping_norm=0.1,
    target_epsilon=3.0,
)


def plan(**changes):
    return PrivacyPlan(**{**BASE, **changes})


def test_q_and_normaliser_derive_from_public_numbers_alone():
    assert plan().sampling_probability == 200 / 4000
    assert plan().normaliser == 200
    assert plan(noise_multiplier=2.0).noise_std == pytest.approx(0.2)


def test_stage_and_ledger_say_what_the_plan_says():
    ledger = plan(noise_multiplier=1.5, max_records_per_unit=3).ledger()
    (stage,) = ledger.stages
    assert (stage.sampling_probability, stage.noise_multiplier, stage.steps) == (0.05, 1.5, 100)
    assert (stage.sampling, stage.public_size, stage.expected_batch_size) == (Sampling.POISSON, 4000, 200)
    assert (ledger.relation, ledger.unit, ledger.max_records_per_unit) == (Relation.ADD_OR_REMOVE_ONE, "record", 3)
    assert Ledger.from_dict(ledger.to_dict()) == ledger


def test_calibration_sets_sigma_and_keeps_the_target():
    waiting: Calibratable = plan()
    with pytest.raises(InvalidValue, match="calibrate the plan first"):
        waiting.ledger()
    done = waiting.with_noise_multiplier(0.8)
    assert (done.noise_multiplier, done.target_epsilon) == (0.8, 3.0)
    assert waiting.noise_multiplier is None


@pytest.mark.parametrize("name", ["delta", "relation", "sampling", "unit", "public_size", "steps", "clipping_norm"])
def test_no_silent_privacy_default(name):
    with pytest.raises(TypeError, match=name):
        PrivacyPlan(**{k: v for k, v in BASE.items() if k != name})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"delta": 0.0}, "delta=0.0"),
        ({"relation": "neighbour"}, "relation='neighbour'"),
        ({"sampling": "uniform"}, "sampling='uniform'"),
        ({"expected_batch_size": 5000}, "public_size=4000"),
        ({"sampling": "none"}, "expected_batch_size=200"),
        ({"target_epsilon": None}, "both missing"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"clipping": "magic"}, "clipping='magic'"),
        ({"clipping": "adaptive"}, "quantile_sigma"),
        ({"quantile_sigma": 10.0}, "quantile_sigma"),
        ({"steps": 0}, "steps=0"),
        ({"clipping_norm": 0.0}, "clipping_norm=0.0"),
        ({"sampling": "truncated_poisson"}, "max_batch"),
    ],
)
def test_bad_plans_are_refused_in_one_sentence(changes, says):
    with pytest.raises(InvalidValue) as caught:
        plan(**changes)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_plan_is_frozen_and_infinite_c_is_for_faults_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().steps = 1
    assert plan(clipping_norm=math.inf, noise_multiplier=0.0).noise_std == 0


def test_public_names_resolve_and_the_heavy_ones_wait():
    import subprocess
    import sys

    code = "import sys, dpaudit.trainers as t; print('transformers.trainer' in sys.modules, t.train, t.GhostClipping)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False")
    import dpaudit.trainers as trainers

    assert {trainers.DPTrainer.__name__, trainers.ZOTrainer.__name__} == {"DPTrainer", "ZOTrainer"}
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = trainers.Trainer
