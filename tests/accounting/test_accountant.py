"""Accountants, built in and from plug-ins, as one kind of thing: what they take, refuse, and say."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit import DpauditError, Guarantee, InvalidValue, Ledger, Relation, Stage, UnsupportedStage
from dpaudit.accounting import Accountant, Bounds, account, compare
from dpaudit.accounting.account import replies
from dpaudit.accounting.accountant import Question
from dpaudit.accounting.registry import BUILT_IN, accountant
from dpaudit.accounting.tuning import Tuning


def ledger(*stages: tuple[float, float, int], relation: str = "add_or_remove_one", **more: Any) -> Ledger:
    made = [
        Stage(sampling_probability=q, noise_multiplier=s, steps=t, **({"sampling": "poisson"} | more))
        for q, s, t in stages
    ]
    return Ledger(stages=tuple(made), relation=Relation.parse(relation))


SMALL = ledger((0.1, 3.0, 20))


def told(made: Ledger, delta: float, group_size: int) -> Guarantee:
    """A plug-in of the plain kind."""
    return Guarantee(
        accountant="told", version="1", delta=delta, relation=made.relation, epsilon_upper=4.0, rigorous=True
    )


class Mine(Accountant[None]):
    """A plug-in of the full kind, which takes an assumption and nothing else."""

    name = "mine"
    version = "7"
    options = frozenset({"assume"})

    def prepare(self, question: Question) -> None:
        if question.ledger.steps > 1000:
            raise UnsupportedStage("accountant 'mine' refuses more than 1000 steps; use accountant 'prv'.")

    def bounds(self, question: Question, prepared: None) -> Bounds:
        return Bounds(upper=float(question.ledger.steps), notes=question.assume)


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {"told": told, "mine": Mine, "one": Mine()}

    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Any:
            if isinstance(found[self.name], Exception):
                raise found[self.name]
            return found[self.name]

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry(name) for name in found])
    return found


@pytest.mark.parametrize(
    "option", [{"tuning": "geometric:10"}, {"assume": ("shuffle_fixed_schedule",)}, {"rtol": 1e-3}]
)
def test_a_plug_in_that_cannot_take_an_option_refuses_and_never_drops_it(
    plug_ins: dict[str, Any], option: dict[str, Any]
) -> None:
    (name,) = option
    with pytest.raises(UnsupportedStage, match=f"accountant 'told' cannot take {name}="):
        account(SMALL, delta=1e-5, accountants=("told",), **option)
    if name == "assume":
        (found,) = account(SMALL, delta=1e-5, accountants=("mine",), **option)
        assert found.assumption == "shuffle_fixed_schedule"
    else:
        with pytest.raises(UnsupportedStage, match=f"accountant 'mine' cannot take {name}="):
            account(SMALL, delta=1e-5, accountants=("mine",), **option)


def test_plug_ins_and_built_in_ones_are_the_same_kind_of_thing(plug_ins: dict[str, Any]) -> None:
    for name in (*BUILT_IN, "told", "mine", "one"):
        made = accountant(name)
        assert isinstance(made, Accountant) and made.version is not None
    found = account(SMALL, delta=1e-5, accountants=("told", "mine", "one"), group_size=2)
    assert [g.epsilon_upper for g in found] == [4.0, 20.0, 20.0]
    assert [g.version for g in found] == ["1", "7", "7"] and found[1].group_size == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda made, delta, group: 3.0, "returned float"),
        (lambda made, delta, group: told(made, delta * 2, group), "answered for delta="),
        (lambda made, delta, group: told(ledger((1.0, 1.0, 1), relation="zero_out"), delta, group), "relation="),
    ],
)
def test_a_plug_in_that_answers_another_question_is_refused(plug_ins: dict[str, Any], answer: Any, words: str) -> None:
    plug_ins["told"] = answer
    with pytest.raises(UnsupportedStage, match=words):
        account(SMALL, delta=1e-5, accountants=("told",))


def test_one_refusal_or_broken_plug_in_does_not_discard_the_other_answers(plug_ins: dict[str, Any]) -> None:
    plug_ins["broken"] = ImportError("no such module")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = replies(ledger((0.1, 3.0, 2000)), delta=1e-11, accountants=("pld", "prv", "broken", "mine"))
    assert [reply.guarantee is None for reply in found] == [True, False, True, True]
    assert "refuses delta=1e-11" in str(found[0].refused) and "no such module" in str(found[2].refused)
    row = found[0].to_dict()
    assert row["epsilon_upper"] is None and row["rigorous"] is False and set(row) == set(found[1].to_dict())
    with pytest.raises(UnsupportedStage, match="refuses delta"):
        account(SMALL, delta=1e-11, accountants=("prv", "pld"))
    with pytest.raises(InvalidValue, match="accountant 'moments' is unknown"):
        replies(SMALL, delta=1e-5, accountants=("prv", "moments"))
    with pytest.raises(InvalidValue, match="asks nobody"):
        replies(SMALL, delta=1e-5, accountants=())


LEDGERS = st.builds(
    lambda stages, relation, mechanism, sampling: ledger(
        *[(1.0 if sampling == "none" else q, s, t) for q, s, t in stages],
        relation=relation,
        mechanism=mechanism,
        sampling=sampling,
        max_batch=40,
        public_size=200,
    ),
    st.lists(st.tuples(st.floats(1e-4, 1.0), st.floats(0.5, 9.0), st.integers(1, 40)), min_size=1, max_size=2),
    st.sampled_from(["add_or_remove_one", "zero_out", "replace_one"]),
    st.sampled_from(["gaussian", "laplace"]),
    st.sampled_from(["poisson", "none", "shuffle", "without_replacement", "truncated_poisson"]),
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True)
@given(LEDGERS, st.sampled_from(BUILT_IN), st.sampled_from([1e-3, 1e-6, 1e-12]), st.sampled_from([None, "log:3"]))
def test_what_is_said_to_be_supported_is_what_is_answered(
    made: Ledger, name: str, delta: float, tuning: str | None
) -> None:
    question = Question(ledger=made, delta=delta, tuning=Tuning.parse(tuning) if tuning else None)
    refused = accountant(name).supports(question)
    try:
        found = accountant(name).epsilon(question)
    except UnsupportedStage as error:
        assert refused == str(error)
    else:
        assert refused is None
        assert found.rigorous is (name != "gdp-clt")


@pytest.mark.parametrize("name", BUILT_IN)
def test_supports_agrees_with_epsilon(name: str) -> None:
    for made in (SMALL, ledger((0.1, 3.0, 20), relation="replace_one"), ledger((0.1, 3.0, 20), mechanism="laplace")):
        question = Question(ledger=made, delta=1e-6)
        refused = accountant(name).supports(question)
        (found,) = replies(made, delta=1e-6, accountants=(name,))
        assert refused == found.refused


@pytest.mark.parametrize("sigma", [1e-300, 1e-160, 1e-3, 0.05, 1e30, 1e300])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_accountant_answers_or_refuses_at_the_ends_of_the_floats(name: str, sigma: float) -> None:
    for made in (ledger((1.0, sigma, 3)), ledger((0.2, sigma, 3)), ledger((0.2, sigma, 10**6))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (found,) = replies(made, delta=1e-5, accountants=(name,))
        if found.guarantee is None:
            assert found.refused and found.refused.endswith(".")
        else:
            value = found.guarantee.epsilon_upper if name != "gdp-clt" else found.guarantee.epsilon_estimate
            assert value is not None and value >= 0


@pytest.mark.parametrize(
    ("made", "delta"),
    [
        (ledger((1.0, 1.0, 1), mechanism="laplace", sampling="none"), 1e-9),
        (ledger((0.5, 0.1, 1)), 1e-5),
        (ledger((0.00034, 4.0, 10_000)), 1e-60),
    ],
)
def test_gaussian_dp_ends_at_any_delta_and_covers_the_interval(made: Ledger, delta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prv, gdp = account(made, delta=delta, accountants=("prv", "gdp"))
    assert prv.epsilon_lower is not None and gdp.epsilon_upper is not None
    assert prv.epsilon_lower <= gdp.epsilon_upper < math.inf
    assert gdp.seconds < 20


def test_work_is_bounded_and_refused_by_its_size() -> None:
    wide = replies(ledger((1.0, 1e-3, 10**6)), delta=1e-5, accountants=("pld",))[0].refused
    assert wide is not None and "points of its grid" in wide and "use accountant 'prv'" in wide
    long = replies(ledger((0.2, 0.5, 1_000_000)), delta=1e-5, accountants=("pld",))[0].refused
    assert long is not None and "composed loss" in long
    many = ledger(*[(0.01, 1 + i / 1000, 1) for i in range(401)])
    refused = replies(many, delta=1e-5, accountants=("rdp",))[0].refused
    assert refused is not None and "401 distinct sampled stages" in refused


def test_orders_that_do_not_converge_are_left_out_without_a_word(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        (found,) = account(ledger((0.2, 1.0, 50)), delta=1e-5, accountants=("rdp",))
    assert found.epsilon_upper is not None and found.epsilon_upper < 20
    assert "converge" not in capfd.readouterr().err and not caplog.records
    logging.getLogger("absl").warning("of somebody else")  # the silence ends with the call
    assert "of somebody else" in caplog.text


def test_comparison_keeps_refusals_as_rows_and_fails_only_where_nobody_answers() -> None:
    found = compare(SMALL, delta=1e-11, accountants=("prv", "pld"))
    assert [row.accountant for row in found.rows] == ["prv", "pld"]
    assert found.rows[1].guarantee is None and "refuses delta" in found.rows[1].remark
    assert found.to_dict()["results"][1]["refused"] == found.rows[1].remark
    with pytest.raises(DpauditError, match="refuses delta"):
        compare(SMALL, delta=1e-11, accountants=("pld",))


def test_an_unattained_bound_is_never_called_tight() -> None:
    made = ledger((0.05, 2.0, 40), sampling="shuffle", relation="zero_out")
    remarks = {row.accountant: row.remark for row in compare(made, delta=1e-5, accountants=("prv", "pld")).rows}
    assert "tight" not in remarks["pld"] and "truth" not in remarks["pld"].replace(
        "how near to the truth is not known", ""
    )


def test_what_is_no_ledger_is_named_with_what_makes_one() -> None:
    from dpaudit import InvalidValue

    for wrong in ("q=0.01,sigma=1.0,steps=10", [(1.0, 0.1, 10)], None):
        with pytest.raises(InvalidValue, match=r"must be a Ledger; make one of dpaudit\.Ledger"):
            account(wrong, delta=1e-5)  # type: ignore[arg-type]
