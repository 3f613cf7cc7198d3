"""The examiner convicts planted faults by the name of their cause, and lets correct steps go."""

import json
import math
import random
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dpaudit.accounting import epsilon_upper
from dpaudit.attacks import ExamPlan, LoopAdapter, NotExamined, examine
from dpaudit.attacks.examiner.causes import CAUSES
from dpaudit.attacks.examiner.examine import _budget, examine_stages, read_budget
from dpaudit.attacks.examiner.noise import _coordinates, _level, _steps, _worth
from dpaudit.attacks.examiner.statistics import (
    autocorrelation,
    binomial_two_sided,
    cosine_two_sided,
    excluded_shrink,
    lag_p_values,
)
from dpaudit.attacks.examiner.values import ExamFinding, by_root_cause, found
from dpaudit.privacy.errors import InvalidValue
from tests.faults import catalogue, examine_case, held_out, held_out_2
from tests.faults._innocents import INNOCENTS
from tests.faults._plain import PlainLoop
from tests.faults._problems import first_order, zeroth_order

FAULTS = [*catalogue(), *held_out(), *held_out_2()]
BUDGET = "500 steps"
"""Evidence is counted in steps, so that no machine's speed decides what a test sees."""


def _first_of_each_cause() -> set[str]:
    """One fault for each due finding and each group of tests that finds it; the rest run with the slow suite."""
    first: dict[tuple[str, str], str] = {}
    for fault in FAULTS:
        if fault.steps <= 1000:
            first.setdefault((fault.expected, fault.group), fault.name)
    return set(first.values())


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=[] if f.name in _first_of_each_cause() else [pytest.mark.slow], id=f.name) for f in FAULTS],
)
def test_a_planted_fault_is_convicted_by_name(fault):
    result = examine_case(fault.build(1), budget=f"{fault.steps // 3} steps", groups=(fault.group,))
    assert result.names[:1] == (fault.expected,), [f.text for f in result.findings]
    finding = result.findings[0]
    assert finding.text.startswith(CAUSES[fault.expected])
    assert finding.deterministic or finding.p_value <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_convicted_in_19_of_20_seeds(fault):
    named = [examine_case(fault.build(seed), budget=fault.budget).names[:1] == (fault.expected,) for seed in range(20)]
    assert sum(named) >= 19


@pytest.mark.parametrize("name", ["plain loop", pytest.param("first order", marks=pytest.mark.slow), "zeroth order"])
def test_an_innocent_goes_free(name):
    result = examine_case(INNOCENTS[name](0), budget=BUDGET)
    assert not result.findings and not result.violated
    assert result.alpha <= 1e-3 and {test.group for test in result.tests} >= {"replay", "noise", "sampler", "ledger"}
    json.dumps(result.to_dict())


@pytest.mark.parametrize("build", [first_order, zeroth_order])
def test_a_short_run_with_a_target_goes_free(build):
    """More steps than planned are run to measure the step; that they miss the plan's target convicts nobody."""
    bare = build(0, steps=2)[1]
    upper = epsilon_upper(bare.ledger(), delta=bare.delta)
    adapter, made = build(0, steps=2, target_epsilon=1.001 * upper)
    result = examine(adapter, ExamPlan.read(made), budget="60 steps")
    assert "step_failed" not in result.names and not result.violated


@pytest.mark.slow
def test_200_innocents_get_at_most_2_findings():
    found_in = [
        (name, seed)
        for seed in range(20)
        for name, build in INNOCENTS.items()
        if examine_case(build(seed), budget=BUDGET).findings
    ]
    assert len(found_in) <= 2, found_in


def test_without_a_clean_step_sensitivity_is_measured_from_pairs():
    loop = PlainLoop(0)
    loop.noise_multiplier = 0.5
    adapter = loop.adapter()
    del adapter.clean
    assert not examine_case_of(adapter, loop).findings
    loop.clip = lambda gradient: [g.nan_to_num(0, 0, 0) for g in gradient]
    assert examine_case_of(adapter, loop).names[:1] == ("sensitivity",)


def examine_case_of(adapter, loop):
    return examine(adapter, loop.plan(), budget=BUDGET, groups=("replay",))


class Repeatable(PlainLoop):
    """Noise from a fixed seed that goes on through restarts, so that the test sees the same run every time."""

    def restart(self):
        super().restart()
        self.secret = self.fixed = getattr(self, "fixed", torch.Generator().manual_seed(11))


def test_the_step_audit_bounds_mu_from_below(monkeypatch):
    coins = random.Random(5)
    monkeypatch.setattr("dpaudit.attacks.examiner.step_audit.secrets.randbits", coins.getrandbits)
    result = audited(Repeatable(3))
    assert result.tests[-1].evidence.startswith("438 steps")
    assert 0.2 < result.mu_lower < 1.0 and result.epsilon_lower > 0
    loud = type("Loud", (Repeatable,), {"noise_std": 0.1 * 0.5})(3)
    result = examine(loud.adapter(), loud.plan(), budget="500 steps", groups=("step_audit",))
    assert result.names == ("step_audit",) and result.mu_lower > 1.5


def audited(loop):
    from tests.faults import Case

    return examine_case(Case(loop.adapter(), loop.plan()), budget="500 steps", groups=("step_audit",))


def test_a_budget_of_seconds_is_kept_and_every_group_has_its_part():
    seconds = 3.0
    loop = PlainLoop(0)
    loop.step = slowed(loop.step, 0.005)
    begun = time.process_time()
    result = examine(loop.adapter(), loop.plan(), budget=seconds)
    assert time.process_time() - begun < 1.15 * seconds + 0.3  # and the first step, before the budget
    assert {test.group for test in result.tests} == {"replay", "noise", "sampler", "ledger", "step_audit"}


def slowed(step, seconds):
    def working(indices):
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass
        step(indices)

    return working


def test_what_does_not_fit_the_budget_is_said_to_be_untested():
    loop = PlainLoop(0)
    loop.step = slowed(loop.step, 0.08)
    result = examine(loop.adapter(), loop.plan(), budget=1)
    untested = " ".join(result.untested)
    assert "noise: 10 steps" in untested and "replay: its part of the budget" in untested
    assert "step-level audit: 40 steps" in untested and "noise" not in {test.group for test in result.tests}


def test_stages_share_the_budget_and_the_false_alarms():
    loops = [PlainLoop(0), PlainLoop(1)]
    loops[1].noise = lambda total, indices: [torch.zeros_like(t) for t in total]
    result = examine_stages([(loop.adapter(), loop.plan()) for loop in loops], budget="1200 steps")
    assert result.names == ("noise_missing",) and result.findings[0].detail["stage"] == 1
    assert result.alpha <= 1e-3 and any(test.name == "noise_scale (stage 0)" for test in result.tests)


def test_a_step_that_raises_on_ordinary_records_is_refused_and_no_finding():
    loop = PlainLoop(0)

    def burst(indices):
        raise RuntimeError("burst")

    adapter = LoopAdapter(loop.model, burst, loop.draw, size=60, clean_step=burst)
    with pytest.raises(NotExamined, match="burst"):
        examine(adapter, loop.plan(), budget=BUDGET)


def test_the_examiner_leaves_weights_and_global_randomness_as_they_were():
    loop = PlainLoop(0)
    before = [p.detach().clone() for p in loop.model.parameters()]
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.randn(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    examine(loop.adapter(), loop.plan(), budget=BUDGET, groups=("replay", "ledger"))
    assert torch.equal(torch.randn(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])
    assert all(torch.equal(p, q) for p, q in zip(loop.model.parameters(), before, strict=True))


def test_only_the_name_of_a_finding_is_public():
    finding = found("sensitivity", "record 17 moves the sum by 3.2 C", records=(17,), measured=3.2)
    assert "17" not in json.dumps(finding.public()) and "17" in finding.text


def test_root_causes_come_first_and_notes_last():
    first, second, note = (
        ExamFinding(name=n, status=s, claim="step function", text="")
        for n, s in (("unclipped", "violated"), ("noise_scale", "violated"), ("noise_scale_high", "note"))
    )
    assert by_root_cause([note, second, first, second]) == (first, second, note)


def test_budgets_are_times():
    assert _budget("400 steps") == (400.0, True) and _budget("1min") == (60.0, False)
    assert read_budget("90s") == 90 and read_budget("2 min") == 120 and read_budget(5) == 5
    for bad in ("soon", "0s", -1, "nan", "5 steps", "some steps"):
        with pytest.raises(InvalidValue, match="budget"):
            _budget(bad)


def test_a_plan_without_noise_or_bound_is_refused():
    stage = PlainLoop(0).stage()
    import dataclasses

    with pytest.raises(InvalidValue, match="noise_multiplier"):
        ExamPlan(stage=dataclasses.replace(stage, noise_multiplier=0.0), normaliser=1.0)
    with pytest.raises(InvalidValue, match="clipping_norm"):
        ExamPlan(stage=dataclasses.replace(stage, clipping_norm=None), normaliser=1.0)
    with pytest.raises(InvalidValue, match="stage"):
        ExamPlan.read(object())


def test_the_lag_bound_holds_and_still_convicts():
    rng = np.random.default_rng(0)
    smallest = []
    for _ in range(200):
        rows = rng.standard_normal((4, 200))
        lags = np.arange(1, 200)
        smallest.append(lag_p_values(autocorrelation(rows)[lags], 4 * (200 - lags), 199).min())
    assert np.mean(np.asarray(smallest) <= 0.1) <= 0.1
    half = rng.standard_normal((4, 100))
    rows = np.concatenate([half, half], axis=1)
    assert lag_p_values(autocorrelation(rows)[100:101], np.array([400]), 199).min() < 1e-4
    naive = [np.sum(rows[:, : 200 - lag] * rows[:, lag:]) for lag in range(200)]
    assert np.allclose(autocorrelation(rows), naive)


def test_an_angle_between_directions_has_its_exact_law():
    rng = np.random.default_rng(1)
    for d in (2, 5, 40):
        drawn = rng.standard_normal((20_000, d))
        cosines = np.abs(drawn[:, 0]) / np.linalg.norm(drawn, axis=1)
        for c in (0.1, 0.4):
            assert cosine_two_sided(c, d) == pytest.approx(np.mean(cosines >= c), abs=0.015)


def test_a_scale_that_changes_over_time_is_no_dependence():
    mistaken = 0
    for seed in range(10):
        rows = np.random.default_rng(seed).standard_normal((120, 60)) * 0.9 ** np.arange(120)[:, None]
        level = _level(rows)
        assert np.allclose(np.square(level[:60]).mean(axis=1), 1)
        assert not list(_steps(rows, level, 1e-3)) and not list(_coordinates(level, 1e-3))
        mistaken += bool(list(_coordinates(rows, 1e-3)))
    assert mistaken >= 3  # without the steps brought to one length
    rows[1::2] = rows[::2]
    assert [f.name for f in _steps(rows, _level(rows), 1e-3)] == ["noise_repeated"]


def test_tests_of_noise_raise_few_false_alarms():
    rng = np.random.default_rng(3)
    alarms = np.zeros(2)
    for _ in range(60):
        rows = rng.standard_normal((40, 30))
        level = _level(rows)
        alarms += bool(list(_coordinates(level, 0.1))), bool(list(_steps(rows, level, 0.1)))
    assert (alarms <= 21).all()  # each holds two tests: at most 0.2 of 60, and three deviations


def test_heavy_tails_make_a_value_worth_less_for_a_mean_square():
    rng = np.random.default_rng(4)
    assert _worth(rng.standard_normal((40, 50)), 1e-4) == 1.0
    assert _worth(rng.uniform(-1, 1, (400, 50)), 1e-4) == 1.0
    assert 0.3 < _worth(rng.laplace(size=(400, 50)), 1e-4) < 0.55  # 2 / (6 - 1), less for rows of one length
    assert _worth(np.zeros((40, 50)), 1e-4) == 1.0


def test_p_values_against_direct_sums():
    weights = [math.comb(10, k) * 0.3**k * 0.7 ** (10 - k) for k in range(11)]
    for k in range(11):
        assert binomial_two_sided(k, 10, 0.3) == pytest.approx(min(1, 2 * min(sum(weights[: k + 1]), sum(weights[k:]))))
    assert 0.96 < excluded_shrink(20_000, 4e-5) < 0.98


def test_the_command_examines_a_function(tmp_path, monkeypatch):
    from dpaudit.cli.examine import command

    (tmp_path / "mine.py").write_text(
        "from tests.faults._plain_faults import FAULTS\n"
        "def broken():\n"
        "    case = next(f for f in FAULTS if f.name == 'clip-batch-mean').build(0)\n"
        "    return case.adapter, case.plan\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["mine:broken", "--budget", BUDGET, "--json"])
    value = json.loads(done.output)
    assert done.exit_code == 1 and value["schema"] == "dpaudit.examine/1" and value["verdict"] == "violated"
    assert value["findings"][0]["name"] == "clipped_after_averaging" and value["findings"][0]["detail"]["records"]


def test_the_command_explains_a_name():
    from dpaudit.cli.examine import command

    done = CliRunner().invoke(command, ["--explain", "clipped_after_averaging", "--json"])
    assert done.exit_code == 0 and "clip_grad_norm_" in json.loads(done.output)["text"]
    assert isinstance(CliRunner().invoke(command, ["--explain", "nothing"]).exception, InvalidValue)
    assert CliRunner().invoke(command, []).exit_code == 2  # a usage error, which the program maps to 64


def test_the_command_refuses_a_mistake_of_the_adapter(tmp_path, monkeypatch):
    from dpaudit.cli.examine import command

    (tmp_path / "typo.py").write_text(
        "from tests.faults._plain import PlainLoop\n"
        "from dpaudit.attacks import LoopAdapter\n"
        "def adapter():\n"
        "    loop = PlainLoop(0)\n"
        "    step = lambda indices: loop.no_such_method()\n"
        "    return LoopAdapter(loop.model, step, loop.draw, size=60, clean_step=step), loop.plan()\n"
        "def raises():\n"
        "    raise KeyError('data')\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["typo:adapter", "--budget", BUDGET])
    assert isinstance(done.exception, NotExamined) and "no_such_method" in str(done.exception)
    done = CliRunner().invoke(command, ["typo:raises", "--budget", BUDGET])
    assert isinstance(done.exception, InvalidValue) and "KeyError" in str(done.exception)


def test_the_command_refuses_what_it_cannot_load():
    from dpaudit.cli.examine import command

    for source in ("nothing", "no.such.module:step", "json:dumps_nothing"):
        done = CliRunner().invoke(command, [source])
        assert isinstance(done.exception, InvalidValue)


def test_opacus_as_its_users_run_it():
    pytest.importorskip("opacus")
    from tests.faults._opacus import opacus_case

    usual = examine_case(opacus_case(0, entropy=False), budget=BUDGET)
    assert set(usual.names) == {"non_finite", "normaliser_data_size", "noise_public_seed", "sampling_public_seed"}
    careful = examine_case(opacus_case(0, entropy=True, known_faults=False), budget=BUDGET)
    assert careful.names == ()
