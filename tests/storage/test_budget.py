"""A share of the computing time ends what takes too long, and leaves the rest for what comes after."""

from __future__ import annotations

import math

import pytest

from dpaudit.storage.budget import Budget, OutOfTime, cpu_seconds, seconds_left, section, spending


def burn(seconds: float) -> None:
    start = cpu_seconds()
    while cpu_seconds() - start < seconds:
        math.sqrt(2.0)


def test_without_a_budget_nothing_ends() -> None:
    assert seconds_left() == math.inf
    with section():
        burn(0.05)


def test_a_section_gets_its_share_and_leaves_the_rest() -> None:
    budget = Budget(3.0)
    with spending(budget):
        for _ in range(2):
            with pytest.raises(OutOfTime), section(0.05):
                burn(30.0)
        assert budget.cut
        assert 1.0 < budget.left < 2.9
        with section():
            pass


def test_all_of_it_is_a_section_as_well() -> None:
    start = cpu_seconds()
    with pytest.raises(OutOfTime), spending(Budget(0.1)):
        burn(5.0)
    assert cpu_seconds() - start < 2.0
    assert seconds_left() == math.inf
    burn(0.2)  # the timer is gone


def test_no_ordinary_handler_takes_it_for_a_failure() -> None:
    with pytest.raises(OutOfTime), spending(Budget(0.1)), section(1.0):
        while True:
            try:
                burn(0.01)
            except Exception:
                pass


def test_an_inner_section_does_not_outlive_the_outer() -> None:
    start = cpu_seconds()
    with pytest.raises(OutOfTime), spending(Budget(0.2)):
        while True:
            try:
                with section(0.9):
                    burn(5.0)
            except OutOfTime:
                burn(0.02)
    assert cpu_seconds() - start < 2.0
