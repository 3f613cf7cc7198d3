"""Values that are read by name say so to type checkers, and what they say is what they take."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

from dpaudit import Ledger, Stage
from dpaudit.certificates import Claim
from dpaudit.trainers import PrivacyPlan


def declared(kind: type) -> ast.arguments:
    """The arguments of the ``__init__`` that only type checkers see."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    assert len(found) == 1
    return found[0].args


@pytest.mark.parametrize("kind", [Stage, Ledger, Claim, PrivacyPlan])
def test_type_checkers_see_the_fields_with_their_defaults(kind: type) -> None:
    told, real = declared(kind), inspect.signature(kind).parameters
    assert [a.arg for a in told.kwonlyargs] == list(real)
    for argument, default in zip(told.kwonlyargs, told.kw_defaults, strict=True):
        actual = real[argument.arg].default
        assert (default is None) == (actual is inspect.Parameter.empty), argument.arg
        if isinstance(default, ast.Constant):
            assert default.value == actual


@pytest.mark.parametrize("kind", [Stage, Ledger, Claim, PrivacyPlan])
def test_enumerations_are_taken_as_text_too(kind: type) -> None:
    texts = {
        a.arg for a in declared(kind).kwonlyargs if a.annotation and "str" in ast.unparse(a.annotation).split(" | ")
    }
    named = {"sampling", "relation", "mechanism", "clip"} & set(inspect.signature(kind).parameters)
    assert named <= texts
