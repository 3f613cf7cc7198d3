"""Functions that are called in the confined process: answers, errors, and every way of going beyond the limits."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import pytest

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.storage.budget import OutOfTime, section
from dpaudit.storage.confined import Limits, call

SMALL = Limits(seconds=0.5, megabytes=200)


def echo(value: Any) -> Any:
    print("noise that must not reach the answer")
    return value


def refuse(text: str) -> None:
    raise InvalidValue(text)


def break_down() -> None:
    raise TypeError("a fault")


def spin() -> None:
    while True:
        pass


def spin_in_a_section() -> str:
    try:
        with section():
            spin()
    except OutOfTime:
        return "cut"
    return "never"


def spin_in_c() -> int:
    return len(str(7 ** (10**8)))  # one call of minutes that no Python code interrupts


def swell() -> int:
    return len(bytearray(2**30))


def die() -> None:
    os.abort()


def process_id() -> int:
    return os.getpid()


def test_values_and_errors_come_back() -> None:
    value = {"a": [1, 2.5, None, "ε \udc80"], "b": {}}
    assert call(echo, {"value": value}, SMALL) == value
    with pytest.raises(InvalidValue, match="x=1 is wrong"):
        call(refuse, {"text": "x=1 is wrong"}, SMALL)
    with pytest.raises(RuntimeError, match="TypeError: a fault") as caught:
        call(break_down, {}, SMALL)
    assert "break_down" in caught.value.__notes__[0]


def test_the_process_is_kept_and_is_not_this_one() -> None:
    first = call(process_id, {}, SMALL)
    assert first == call(process_id, {}, SMALL) != os.getpid()


def test_a_section_that_is_cut_answers_and_the_process_makes_room() -> None:
    first = call(process_id, {}, SMALL)
    assert call(spin_in_a_section, {}, SMALL) == "cut"
    assert call(process_id, {}, SMALL) != first


@pytest.mark.parametrize("function", [spin, swell, die])
def test_beyond_the_limits_is_one_sentence(function: Any) -> None:
    with pytest.raises(InvalidEvidence, match="not recomputed and supports nothing"):
        call(function, {}, SMALL)
    assert call(echo, {"value": 1}, SMALL) == 1


def test_a_single_call_of_c_is_ended_by_the_system() -> None:
    started = time.process_time()
    with pytest.raises(InvalidEvidence, match="supports nothing"):
        call(spin_in_c, {}, SMALL)
    assert time.process_time() - started < 1


def test_a_forked_child_gets_a_process_of_its_own() -> None:
    parent = call(process_id, {}, SMALL)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, str(call(process_id, {}, SMALL)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reader, 100)) != parent
    assert call(process_id, {}, SMALL) == parent


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"seconds": math.nan}, {"seconds": math.inf}, {"megabytes": -1}])
def test_limits_are_positive(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidValue):
        Limits(**bad)  # type: ignore[arg-type]
