"""Every error ends with one sentence and a code; those of a fault are no verdict's."""

from __future__ import annotations

import pytest

from dpaudit.privacy.endings import INTERNAL, STOPPED, TRACEBACK, ending
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue, RunInterrupted, StorageFailed
from dpaudit.privacy.verdict import Verdict


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (InvalidValue("q=2 is above 1."), "q=2 is above 1.", 64),
        (InvalidEvidence("changed."), "changed.", 3),
        (RunInterrupted("saved.", 15), "saved.", 143),
        (StorageFailed("x cannot be written: full."), "x cannot be written: full.", 64),
        (KeyboardInterrupt(), "stopped before it finished", STOPPED),
        (PermissionError(13, "Permission denied", "a.csv"), "cannot read or write 'a.csv': Permission denied", 64),
        (OSError("odd"), "cannot read or write: odd; check the path.", 64),
        (MemoryError(), "there is not enough memory", INTERNAL),
        (TypeError("first\nsecond"), "a fault in dpaudit (TypeError: first); nothing was decided.", INTERNAL),
        (ValueError(), "a fault in dpaudit (ValueError: ); nothing was decided.", INTERNAL),
    ],
    ids=repr,
)
def test_sentence_and_code(error: BaseException, sentence: str, code: int) -> None:
    said, found = ending(error)
    assert said.startswith(sentence) and said.endswith(".") and "\n" not in said
    assert found == code
    assert (TRACEBACK in said) == (code == INTERNAL and not isinstance(error, MemoryError))


def test_a_fault_or_a_stop_has_no_code_of_a_verdict() -> None:
    assert not {INTERNAL, STOPPED} & {verdict.exit_code for verdict in Verdict}
