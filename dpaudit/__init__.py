"""dpaudit: make "this model was fine-tuned with differential privacy" checkable.

Every command is a function here: :func:`init`, :func:`certify`, :func:`train`, :func:`attack`, :func:`audit`,
:func:`account`, :func:`calibrate`, :func:`compare`, :func:`examine`, :func:`exposure`, :func:`bundle` and
:func:`verify`. They, and the sub-packages, are loaded when they are first asked for, so that importing dpaudit imports
neither torch nor transformers. The privacy language lives here too: stages, ledgers, guarantees, errors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dpaudit._version import __version__ as __version__
from dpaudit.privacy import parts as _parts
from dpaudit.privacy.errors import DpauditError as DpauditError
from dpaudit.privacy.errors import InvalidEvidence as InvalidEvidence
from dpaudit.privacy.errors import InvalidValue as InvalidValue
from dpaudit.privacy.errors import PrivacyRefusal as PrivacyRefusal
from dpaudit.privacy.errors import PrivacyWarning as PrivacyWarning
from dpaudit.privacy.errors import RunInterrupted as RunInterrupted
from dpaudit.privacy.errors import StorageFailed as StorageFailed
from dpaudit.privacy.errors import UnsupportedModel as UnsupportedModel
from dpaudit.privacy.errors import UnsupportedStage as UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee as Guarantee
from dpaudit.privacy.ledger import Ledger as Ledger
from dpaudit.privacy.protocols import MemoryJournal as MemoryJournal
from dpaudit.privacy.stage import Relation as Relation
from dpaudit.privacy.stage import Stage as Stage
from dpaudit.privacy.verdict import Verdict as Verdict

__all__ = [
    # What a command does: one function each.
    "AttackOptions",
    "account",
    "attack",
    "audit",
    "bundle",
    "calibrate",
    "certify",
    "compare",
    "examine",
    "exposure",
    "init",
    "train",
    "verify",
    # What ran and what is proven of it: the values that every room takes and returns.
    "Guarantee",
    "Ledger",
    "Relation",
    "Stage",
    "Verdict",
    # Where the steps of a loop of one's own are counted.
    "MemoryJournal",
    # What is raised: DpauditError is the base of all errors.
    "DpauditError",
    "InvalidEvidence",
    "InvalidValue",
    "PrivacyRefusal",
    "PrivacyWarning",
    "RunInterrupted",
    "StorageFailed",
    "UnsupportedModel",
    "UnsupportedStage",
    "__version__",
]

if TYPE_CHECKING:
    from dpaudit.accounting.account import account as account
    from dpaudit.accounting.compare import compare as compare
    from dpaudit.certificates.bundle import bundle as bundle
    from dpaudit.certificates.verify.confined import verify_certificate as verify
    from dpaudit.runs.attack import AttackOptions as AttackOptions
    from dpaudit.runs.attack import attack as attack
    from dpaudit.runs.audit import audit as audit
    from dpaudit.runs.calibrate import calibrate as calibrate
    from dpaudit.runs.certify import certify as certify
    from dpaudit.runs.examine import examine as examine
    from dpaudit.runs.exposure import exposure as exposure
    from dpaudit.runs.init import init as init
    from dpaudit.runs.train import train as train

_VERBS = {
    "AttackOptions": ("runs.attack", "AttackOptions"),
    "account": ("accounting.account", "account"),
    "attack": ("runs.attack", "attack"),
    "audit": ("runs.audit", "audit"),
    "bundle": ("certificates.bundle", "bundle"),
    "calibrate": ("runs.calibrate", "calibrate"),
    "certify": ("runs.certify", "certify"),
    "compare": ("accounting.compare", "compare"),
    "examine": ("runs.examine", "examine"),
    "exposure": ("runs.exposure", "exposure"),
    "init": ("runs.init", "init"),
    "train": ("runs.train", "train"),
    "verify": ("certificates.verify.confined", "verify_certificate"),
}
"""Function of each command, and what else is loaded late: its module and its name there."""
_PACKAGES = ("accounting", "attacks", "auditing", "certificates", "reports", "trainers")

_parts.bind(
    {
        "write_atomically": "dpaudit.storage.files:write_atomically",
        "read_json": "dpaudit.storage.readers:read_json",
        "open_journal": "dpaudit.storage.journal:DiskJournal",
        "read_ledger": "dpaudit.storage.journal:read_ledger",
        "calibrate": "dpaudit.accounting:calibrate",
        "refuse_missed_target": "dpaudit.accounting.target:refuse_missed_target",
        "replies": "dpaudit.accounting.account:replies",
    }
)


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        module, function = _VERBS[name]
        return getattr(importlib.import_module(f"dpaudit.{module}"), function)
    if name in _PACKAGES:
        return importlib.import_module(f"dpaudit.{name}")
    raise AttributeError(f"module 'dpaudit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_VERBS, *_PACKAGES})
