"""Certificates: build them, amend and sign them, verify them, and make them for runs of other libraries.

Importing this module imports neither torch nor any accountant.
"""

from dpaudit.accounting.events import from_event as from_event
from dpaudit.accounting.events import from_opacus as from_opacus
from dpaudit.accounting.events import from_triples as from_triples
from dpaudit.certificates.amend import Amendment as Amendment
from dpaudit.certificates.amend import amend as amend
from dpaudit.certificates.amend import read_amendments as read_amendments
from dpaudit.certificates.control_file import write_control as write_control
from dpaudit.certificates.export import contract_paragraph as contract_paragraph
from dpaudit.certificates.export import registry_entry as registry_entry
from dpaudit.certificates.import_run import certify_run as certify_run
from dpaudit.certificates.import_run import read_manifest as read_manifest
from dpaudit.certificates.import_run import write_manifest as write_manifest
from dpaudit.certificates.import_run import write_plan as write_plan
from dpaudit.certificates.in_run_loop import commit_in_run as commit_in_run
from dpaudit.certificates.policy import Policy as Policy
from dpaudit.certificates.policy import read_policy as read_policy
from dpaudit.certificates.privacy_json import privacy_json as privacy_json
from dpaudit.certificates.sign import envelope_path as envelope_path
from dpaudit.certificates.sign import key_id as key_id
from dpaudit.certificates.sign import new_key_pair as new_key_pair
from dpaudit.certificates.sign import sign as sign
from dpaudit.certificates.sign import sign_file as sign_file
from dpaudit.certificates.statement import Statement as Statement
from dpaudit.certificates.statement import json_schema as json_schema
from dpaudit.certificates.timestamp import attach_timestamp as attach_timestamp
from dpaudit.certificates.timestamp import check_timestamp as check_timestamp
from dpaudit.certificates.timestamp import timestamp_request as timestamp_request
from dpaudit.certificates.verify.report import VerificationReport as VerificationReport
from dpaudit.certificates.verify.verify import read_certificate as read_certificate
from dpaudit.certificates.verify.verify import verify_certificate as verify_certificate
from dpaudit.privacy.canaries import Canaries as Canaries
from dpaudit.privacy.claim import Claim as Claim
from dpaudit.storage.commitment import canary_id as canary_id
from dpaudit.storage.commitment import commitment as commitment
from dpaudit.storage.commitment import manifest as manifest
from dpaudit.storage.confined import Limits as Limits
from dpaudit.storage.journal import DiskJournal as DiskJournal
from dpaudit.storage.journal import read_journal as read_journal

__all__ = [
    "Amendment",
    "Canaries",
    "Claim",
    "DiskJournal",
    "Limits",
    "Policy",
    "Statement",
    "VerificationReport",
    "amend",
    "attach_timestamp",
    "canary_id",
    "certify_run",
    "check_timestamp",
    "commit_in_run",
    "commitment",
    "contract_paragraph",
    "envelope_path",
    "from_event",
    "from_opacus",
    "from_triples",
    "json_schema",
    "key_id",
    "manifest",
    "new_key_pair",
    "privacy_json",
    "read_amendments",
    "read_certificate",
    "read_journal",
    "read_manifest",
    "read_policy",
    "registry_entry",
    "sign",
    "sign_file",
    "timestamp_request",
    "verify_certificate",
    "write_control",
    "write_manifest",
    "write_plan",
]
