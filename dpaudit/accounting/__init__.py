"""Accounting: certified upper bounds on ε from what a mechanism did. Pure functions of a ledger."""

from dpaudit.accounting._account import account as account
from dpaudit.accounting._account import epsilon_upper as epsilon_upper
from dpaudit.accounting._calibrate import budget as budget
from dpaudit.accounting._calibrate import calibrate as calibrate
from dpaudit.accounting._calibrate import calibrate_noise_multiplier as calibrate_noise_multiplier
from dpaudit.accounting._calibrate import calibrate_sampling_probability as calibrate_sampling_probability
from dpaudit.accounting._calibrate import calibrate_steps as calibrate_steps
from dpaudit.accounting._calibrate import stage_ledger as stage_ledger
from dpaudit.accounting._gdp import gaussian_delta as gaussian_delta
from dpaudit.accounting._gdp import gaussian_epsilon as gaussian_epsilon
from dpaudit.accounting._relations import charges as charges
from dpaudit.accounting._tuning import Tuning as Tuning
