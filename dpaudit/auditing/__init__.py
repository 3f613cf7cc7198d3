"""Audit statistics: pure functions of scores, coins and counts. Higher score = member, everywhere."""

from dpaudit.auditing.audit import audit as audit
from dpaudit.auditing.control import Control as Control
from dpaudit.auditing.control import control_power as control_power
from dpaudit.auditing.design import canaries_needed as canaries_needed
from dpaudit.auditing.design import design as design
from dpaudit.auditing.energy import ReleaseEnergy as ReleaseEnergy
from dpaudit.auditing.energy import energy_test as energy_test
from dpaudit.auditing.exposure import rank_sum_test as rank_sum_test
from dpaudit.auditing.exposure_report import ExposureReport as ExposureReport
from dpaudit.auditing.exposure_report import exposure_report as exposure_report
from dpaudit.auditing.extraction import candidate_epsilon_lower as candidate_epsilon_lower
from dpaudit.auditing.f_dp import f_dp_epsilon_lower as f_dp_epsilon_lower
from dpaudit.auditing.f_dp import f_dp_p_value as f_dp_p_value
from dpaudit.auditing.findings import finding_from_sequence as finding_from_sequence
from dpaudit.auditing.findings import finding_from_step as finding_from_step
from dpaudit.auditing.guess import guess as guess
from dpaudit.auditing.guess import pair_scores as pair_scores
from dpaudit.auditing.independent import independent_epsilon_lower as independent_epsilon_lower
from dpaudit.auditing.independent import profile_test as profile_test
from dpaudit.auditing.one_run import snj_ceiling as snj_ceiling
from dpaudit.auditing.one_run import snj_epsilon_lower as snj_epsilon_lower
from dpaudit.auditing.one_run import snj_p_value as snj_p_value
from dpaudit.auditing.plan import AlphaSplit as AlphaSplit
from dpaudit.auditing.plan import AuditPlan as AuditPlan
from dpaudit.auditing.rates import cp_epsilon_lower as cp_epsilon_lower
from dpaudit.auditing.rates import gdp_epsilon_lower as gdp_epsilon_lower
from dpaudit.auditing.result import AuditResult as AuditResult
from dpaudit.auditing.result import Bound as Bound
from dpaudit.auditing.roc import auc_summary as auc_summary
from dpaudit.auditing.roc import tpr_at_fpr as tpr_at_fpr
from dpaudit.auditing.sequential import SequentialTest as SequentialTest
from dpaudit.auditing.sequential import sequential_noise_test as sequential_noise_test
from dpaudit.auditing.steps import StepBound as StepBound
from dpaudit.auditing.steps import step_means_bound as step_means_bound
from dpaudit.auditing.steps import step_noise_bound as step_noise_bound
from dpaudit.auditing.xiang import xiang_mu_lower as xiang_mu_lower
from dpaudit.privacy.finding import Finding as Finding

__all__ = [
    "AlphaSplit",
    "AuditPlan",
    "AuditResult",
    "Bound",
    "Control",
    "ExposureReport",
    "Finding",
    "ReleaseEnergy",
    "SequentialTest",
    "StepBound",
    "auc_summary",
    "audit",
    "canaries_needed",
    "candidate_epsilon_lower",
    "control_power",
    "cp_epsilon_lower",
    "design",
    "energy_test",
    "exposure_report",
    "f_dp_epsilon_lower",
    "f_dp_p_value",
    "finding_from_sequence",
    "finding_from_step",
    "gdp_epsilon_lower",
    "guess",
    "independent_epsilon_lower",
    "pair_scores",
    "profile_test",
    "rank_sum_test",
    "sequential_noise_test",
    "snj_ceiling",
    "snj_epsilon_lower",
    "snj_p_value",
    "step_means_bound",
    "step_noise_bound",
    "tpr_at_fpr",
    "xiang_mu_lower",
]
