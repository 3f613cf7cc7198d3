"""Text of others keeps to its line and its direction wherever it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.privacy.text import printable


@pytest.mark.parametrize("text", ["", "model/a b.safetensors", "ε ≤ 3 – für 日本語 🙂", "\u00a0", "\u3000"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    "hidden",
    ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\ufeff", "\ud800"],
)
def test_what_has_no_shape_is_spelt(hidden: str) -> None:
    shown = printable(f"a{hidden}b")
    assert hidden not in shown and shown.startswith("a\\") and shown.endswith("b")
    assert printable(f"a{hidden}b", keep=hidden) == f"a{hidden}b"


@given(st.text(st.characters()))
def test_any_text_is_one_line_that_can_be_written(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert printable(shown) == shown
