"""Audit statistics: pure functions of scores, coins and counts. Higher score = member, everywhere."""

from dpaudit.auditing.audit import audit as audit
from dpaudit.auditing.control import Control as Control
from dpaudit.auditing.design import design as design
from dpaudit.auditing.energy import energy_test as energy_test
from dpaudit.auditing.exposure_report import exposure_report as exposure_report
from dpaudit.auditing.extraction import candidate_epsilon_lower as candidate_epsilon_lower
from dpaudit.auditing.f_dp import f_dp_epsilon_lower as f_dp_epsilon_lower
from dpaudit.auditing.findings import finding_from_sequence as finding_from_sequence
from dpaudit.auditing.findings import finding_from_step as finding_from_step
from dpaudit.auditing.guess import guess as guess
from dpaudit.auditing.guess import pair_scores as pair_scores
from dpaudit.auditing.one_run import snj_epsilon_lower as snj_epsilon_lower
from dpaudit.auditing.plan import AuditPlan as AuditPlan
from dpaudit.auditing.rates import cp_epsilon_lower as cp_epsilon_lower
from dpaudit.auditing.rates import gdp_epsilon_lower as gdp_epsilon_lower
from dpaudit.auditing.sequential import sequential_noise_test as sequential_noise_test
from dpaudit.auditing.steps import step_noise_bound as step_noise_bound
from dpaudit.auditing.xiang import xiang_mu_lower as xiang_mu_lower
from dpaudit.privacy.finding import Finding as Finding
from dpaudit.privacy.scores import Scores as Scores

__all__ = [
    # An audit: its design, its plan, its result.
    "AuditPlan",
    "Control",
    "Finding",
    "Scores",
    "audit",
    "design",
    "exposure_report",
    "guess",
    "pair_scores",
    # Lower bounds from one run.
    "f_dp_epsilon_lower",
    "snj_epsilon_lower",
    "xiang_mu_lower",
    # Lower bounds from many runs, and from extraction.
    "candidate_epsilon_lower",
    "cp_epsilon_lower",
    "gdp_epsilon_lower",
    # Tests of a run's steps and releases.
    "energy_test",
    "finding_from_sequence",
    "finding_from_step",
    "sequential_noise_test",
    "step_noise_bound",
]
