"""Steps in foreign styles: correct ones convict nobody, broken ones are named by their cause first."""

import dataclasses

import pytest

from dpaudit.attacks import NotExamined, examine
from tests.faults import examine_case
from tests.faults._foreign import Style, case_of
from tests.faults._foreign_broken import FAULTS, LATER
from tests.faults._foreign_correct import correct

CORRECT = correct()
BROKEN = {fault.name: fault for fault in (*FAULTS, *LATER)}
QUICK = ("foreign-unclipped-momentum", "foreign-batch-clip-raises", "foreign-batch-clip-fixed")
"""Broken steps of the default run: an optimizer's gradients, a step that raises on empty draws, one fixed size."""


@pytest.mark.parametrize("name", ["Adam", "fixed sizes", "dropout", "decay by hand", "fresh directions"])
def test_a_correct_step_convicts_nobody(name):
    assert not examine_case(CORRECT[name](0), budget="150 steps").violated


@pytest.mark.parametrize("name", QUICK)
def test_a_broken_step_is_named_by_its_cause(name):
    fault = BROKEN[name]
    result = examine_case(fault.build(0), budget="120 steps", groups=(fault.group,))
    assert result.names[:1] == (fault.expected,) and result.violated


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_step_convicts_nobody_in_20_seeds(name):
    assert not any(examine_case(CORRECT[name](seed), budget="500 steps").violated for seed in range(20))


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_step_is_named_first_in_19_of_20_seeds(name):
    fault = BROKEN[name]
    named = [examine_case(fault.build(seed), budget=fault.budget).names[:1] == (fault.expected,) for seed in range(20)]
    assert sum(named) >= 19


@pytest.mark.parametrize("factor", [10.0, 0.25])
def test_a_wrong_rate_or_normaliser_is_refused_and_no_finding(factor):
    case = case_of(Style(name="units", grads="vmap"), 0)
    plan = dataclasses.replace(case.plan, normaliser=case.plan.normaliser * factor)
    with pytest.raises(NotExamined, match="other units"):
        examine(case.adapter, plan, budget="150 steps", groups=("replay", "noise"))
