"""The errors dpaudit raises, as a tree, and the exit code each one maps to.

    DpauditError                 64  a mistake the caller can mend
    ├── InvalidValue             64  an argument, key or column out of its bounds
    ├── UnsupportedStage         64  an accountant cannot treat this stage
    ├── UnsupportedModel         64  a parameter whose per-example gradient cannot be bounded
    ├── PrivacyRefusal           64  a request that would break the guarantee
    ├── StorageFailed            64  a file that cannot be written or locked: a full disk, a missing folder
    └── InvalidEvidence           3  a record, ledger, certificate or score file that does not hold

Every message is one sentence that names the thing, its value, the bound, and the next step.
"""

from __future__ import annotations


class DpauditError(Exception):
    """Base of every error dpaudit raises on purpose."""

    exit_code: int = 64


class InvalidValue(DpauditError, ValueError):
    """An argument, key or column is out of its bounds."""


class UnsupportedStage(DpauditError):
    """An accountant cannot treat a stage; the message names the stage and the remedy."""


class UnsupportedModel(DpauditError):
    """A trainable parameter's per-example gradient cannot be bounded; the message names it."""


class PrivacyRefusal(DpauditError):
    """The request would break the privacy guarantee; the message says how, and the remedy."""


class StorageFailed(DpauditError, OSError):
    """A file could not be written or locked: a full or failing disk, a missing folder, missing permissions.

    What was being written is not to be relied on; ``errno`` is the operating system's number, where it gave one.
    """


class InvalidEvidence(DpauditError):
    """Evidence (a record, ledger, certificate or score file) is missing, broken or was changed."""

    exit_code = 3
