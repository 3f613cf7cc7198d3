"""Every error is one line that can be shown, whatever stands in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpaudit.privacy import errors
from dpaudit.privacy.errors import DpauditError, InvalidEvidence, RunInterrupted, StorageFailed

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DpauditError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not RunInterrupted])
def test_a_message_is_one_line_of_bounded_length(kind: type[DpauditError]) -> None:
    shown = str(kind("column 'a\n= signature\x1b[8m\u202e\ud800' is missing"))
    assert shown == r"column 'a\n= signature\x1b[8m\u202e\ud800' is missing"
    assert len(str(kind("x" * 10**6))) <= errors.MAX_MESSAGE


def test_errors_that_build_their_message_keep_the_rule() -> None:
    assert str(RunInterrupted("a\nb", 15)) == r"a\nb" and RunInterrupted("a", 15).exit_code == 143
    assert "\n" not in str(StorageFailed.of(Path("a\nb"), OSError(28, "No space left\non device")))


def test_a_message_of_ours_stays_as_it_is() -> None:
    message = "sampling_probability=2 must be in [0, 1] – ε ≤ 3; give a probability."
    assert str(InvalidEvidence(message)) == message and InvalidEvidence(message).args == (message,)
