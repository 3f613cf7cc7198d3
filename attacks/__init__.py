"""Attacks on a trained model: canaries, fair coins, losses and membership scores (higher = member).

This room receives models and returns scores; bounds and verdicts are computed elsewhere from the scores alone.
"""

from dpaudit.attacks._canaries import Canary as Canary
from dpaudit.attacks._canaries import CanarySet as CanarySet
from dpaudit.attacks._canaries import Committed as Committed
from dpaudit.attacks._canaries import commit as commit
from dpaudit.attacks._canaries import inserted as inserted
from dpaudit.attacks._coins import Holdout as Holdout
from dpaudit.attacks._coins import draw_nonce as draw_nonce
from dpaudit.attacks._coins import flip_coins as flip_coins
from dpaudit.attacks._coins import hold_out as hold_out
from dpaudit.attacks._generators import high_temperature_canaries as high_temperature_canaries
from dpaudit.attacks._generators import label_flip_canaries as label_flip_canaries
from dpaudit.attacks._generators import new_token_canaries as new_token_canaries
from dpaudit.attacks._generators import prefix_suffix_canaries as prefix_suffix_canaries
from dpaudit.attacks._generators import random_token_canaries as random_token_canaries
from dpaudit.attacks._generators import template_canaries as template_canaries
from dpaudit.attacks._losses import TokenStatistics as TokenStatistics
from dpaudit.attacks._losses import canary_losses as canary_losses
from dpaudit.attacks._losses import sequence_losses as sequence_losses
from dpaudit.attacks._losses import token_statistics as token_statistics
from dpaudit.attacks._scores import loss_drop_scores as loss_drop_scores
from dpaudit.attacks._scores import loss_scores as loss_scores
from dpaudit.attacks._secret import Secret as Secret
from dpaudit.attacks._secret import read_open as read_open
from dpaudit.attacks._secret import read_secret as read_secret
from dpaudit.attacks._secret import write_secret as write_secret
