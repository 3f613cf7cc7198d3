"""Certificates: build them, amend and sign them, verify them, and make them for runs of other libraries.

Importing this module imports neither torch nor any accountant: what it lists is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    # A certificate: read it, make it for a run of any library, say it in another form.
    "Claim",
    "Limits",
    "certify_run",
    "export",
    "json_schema",
    "privacy_json",
    "read_certificate",
    # The evidence of such a run.
    "Canaries",
    "DiskJournal",
    "canary_id",
    "commit_in_run",
    "commitment",
    "manifest",
    "read_journal",
    "read_manifest",
    "write_control",
    "write_manifest",
    "write_plan",
    # Who vouches for it, since when, and what was learnt later.
    "amend",
    "attach_timestamp",
    "new_key_pair",
    "sign_file",
    "timestamp_request",
]

if TYPE_CHECKING:
    from dpaudit.certificates.amendments import amend as amend
    from dpaudit.certificates.control_file import write_control as write_control
    from dpaudit.certificates.forms import export as export
    from dpaudit.certificates.import_run import certify_run as certify_run
    from dpaudit.certificates.import_run import read_manifest as read_manifest
    from dpaudit.certificates.import_run import write_manifest as write_manifest
    from dpaudit.certificates.import_run import write_plan as write_plan
    from dpaudit.certificates.in_run_loop import commit_in_run as commit_in_run
    from dpaudit.certificates.short_record import privacy_json as privacy_json
    from dpaudit.certificates.sign import new_key_pair as new_key_pair
    from dpaudit.certificates.sign import sign_file as sign_file
    from dpaudit.certificates.statement import json_schema as json_schema
    from dpaudit.certificates.timestamp import attach_timestamp as attach_timestamp
    from dpaudit.certificates.timestamp import timestamp_request as timestamp_request
    from dpaudit.certificates.verify.verify import read_certificate as read_certificate
    from dpaudit.privacy.canaries import Canaries as Canaries
    from dpaudit.privacy.claim import Claim as Claim
    from dpaudit.storage.commitment import canary_id as canary_id
    from dpaudit.storage.commitment import commitment as commitment
    from dpaudit.storage.commitment import manifest as manifest
    from dpaudit.storage.confined import Limits as Limits
    from dpaudit.storage.journal import DiskJournal as DiskJournal
    from dpaudit.storage.journal import read_journal as read_journal

_MODULES = {
    "amend": "certificates.amendments",
    "write_control": "certificates.control_file",
    "export": "certificates.forms",
    "certify_run": "certificates.import_run",
    "read_manifest": "certificates.import_run",
    "write_manifest": "certificates.import_run",
    "write_plan": "certificates.import_run",
    "commit_in_run": "certificates.in_run_loop",
    "privacy_json": "certificates.short_record",
    "new_key_pair": "certificates.sign",
    "sign_file": "certificates.sign",
    "json_schema": "certificates.statement",
    "attach_timestamp": "certificates.timestamp",
    "timestamp_request": "certificates.timestamp",
    "read_certificate": "certificates.verify.verify",
    "Canaries": "privacy.canaries",
    "Claim": "privacy.claim",
    "canary_id": "storage.commitment",
    "commitment": "storage.commitment",
    "manifest": "storage.commitment",
    "Limits": "storage.confined",
    "DiskJournal": "storage.journal",
    "read_journal": "storage.journal",
}
"""Where each name lies."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"dpaudit.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'dpaudit.certificates' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
