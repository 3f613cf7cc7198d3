"""Certificates: build them, amend and sign them, verify them, and make them for runs of other libraries.

Importing this module imports neither torch nor any accountant.
"""

from dpaudit._amendments import Amendment as Amendment
from dpaudit._amendments import amend as amend
from dpaudit._amendments import read_amendments as read_amendments
from dpaudit._certificate import CertificateEvidence as CertificateEvidence
from dpaudit._certificate import Claim as Claim
from dpaudit._certificate import build_certificate as build_certificate
from dpaudit._certificate import certificate_bytes as certificate_bytes
from dpaudit._certificate_model import json_schema as json_schema
from dpaudit._dsse import envelope_path as envelope_path
from dpaudit._dsse import key_id as key_id
from dpaudit._dsse import new_key_pair as new_key_pair
from dpaudit._dsse import sign as sign
from dpaudit._events import from_event as from_event
from dpaudit._events import from_opacus as from_opacus
from dpaudit._events import from_triples as from_triples
from dpaudit._events import to_event as to_event
from dpaudit._import_runs import Canaries as Canaries
from dpaudit._import_runs import certify_run as certify_run
from dpaudit._import_runs import read_manifest as read_manifest
from dpaudit._import_runs import write_manifest as write_manifest
from dpaudit._import_runs import write_plan as write_plan
from dpaudit._journal import DiskJournal as DiskJournal
from dpaudit._journal import JournalRecord as JournalRecord
from dpaudit._journal import read_journal as read_journal
from dpaudit._policy import Policy as Policy
from dpaudit._policy import read_policy as read_policy
from dpaudit._privacy_json import privacy_json as privacy_json
from dpaudit._verify import Certificate as Certificate
from dpaudit._verify import read_certificate as read_certificate
from dpaudit._verify import verify_certificate as verify_certificate
from dpaudit._verify_report import Step as Step
from dpaudit._verify_report import VerificationReport as VerificationReport
