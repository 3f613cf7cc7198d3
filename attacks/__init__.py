"""Attacks on a trained model: canaries, fair coins, losses and membership scores (higher = member).

This room receives models and returns scores; bounds and verdicts are computed elsewhere from the scores alone. A module
is loaded when one of its names is asked for, so that the table of attacks can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    # Canaries and fair coins.
    "canary_losses",
    "flip_coins",
    "hold_out",
    "inserted",
    "label_flip_canaries",
    "label_substitution_canaries",
    "new_token_canaries",
    "random_token_canaries",
    "read_secret",
    "template_canaries",
    "write_secret",
    # Canaries that every step of the run itself observes.
    "InRunCanaries",
    "draw_in_run_canaries",
    # Scores: higher = member.
    "lira_offline_scores",
    "residual_scores",
    "score_model",
    "train_shadows",
    # Extraction of one of 2^b secrets.
    "draw_candidates",
    "guess_candidates",
    # The examination of a training step.
    "ExamPlan",
    "LossFactors",
    "NotExamined",
    "Role",
    "examine",
    "explain",
    # Adapters: how the examination drives a step of any library.
    "ArrayAdapter",
    "EngineAdapter",
    "FirstOrderAdapter",
    "LoopAdapter",
    "OpacusAdapter",
    "StepAdapter",
    "TrainerAdapter",
    "ZerothOrderAdapter",
]

if TYPE_CHECKING:
    from dpaudit.attacks.canaries.canary import inserted as inserted
    from dpaudit.attacks.canaries.coins import flip_coins as flip_coins
    from dpaudit.attacks.canaries.generate import label_flip_canaries as label_flip_canaries
    from dpaudit.attacks.canaries.generate import label_substitution_canaries as label_substitution_canaries
    from dpaudit.attacks.canaries.generate import new_token_canaries as new_token_canaries
    from dpaudit.attacks.canaries.generate import random_token_canaries as random_token_canaries
    from dpaudit.attacks.canaries.generate import template_canaries as template_canaries
    from dpaudit.attacks.canaries.in_run import InRunCanaries as InRunCanaries
    from dpaudit.attacks.canaries.in_run import draw_in_run_canaries as draw_in_run_canaries
    from dpaudit.attacks.canaries.secret import read_secret as read_secret
    from dpaudit.attacks.canaries.secret import write_secret as write_secret
    from dpaudit.attacks.examiner.adapter import Role as Role
    from dpaudit.attacks.examiner.adapter import StepAdapter as StepAdapter
    from dpaudit.attacks.examiner.adapters import FirstOrderAdapter as FirstOrderAdapter
    from dpaudit.attacks.examiner.adapters import ZerothOrderAdapter as ZerothOrderAdapter
    from dpaudit.attacks.examiner.array import ArrayAdapter as ArrayAdapter
    from dpaudit.attacks.examiner.causes import explain as explain
    from dpaudit.attacks.examiner.engines import EngineAdapter as EngineAdapter
    from dpaudit.attacks.examiner.engines import TrainerAdapter as TrainerAdapter
    from dpaudit.attacks.examiner.examine import examine as examine
    from dpaudit.attacks.examiner.footing import NotExamined as NotExamined
    from dpaudit.attacks.examiner.loop import LoopAdapter as LoopAdapter
    from dpaudit.attacks.examiner.loss_factors import LossFactors as LossFactors
    from dpaudit.attacks.examiner.opacus import OpacusAdapter as OpacusAdapter
    from dpaudit.attacks.examiner.plan import ExamPlan as ExamPlan
    from dpaudit.attacks.extraction import draw_candidates as draw_candidates
    from dpaudit.attacks.extraction import guess_candidates as guess_candidates
    from dpaudit.attacks.holdout import hold_out as hold_out
    from dpaudit.attacks.scores.functions import residual_scores as residual_scores
    from dpaudit.attacks.scores.losses import canary_losses as canary_losses
    from dpaudit.attacks.scores.score_model import score_model as score_model
    from dpaudit.attacks.scores.shadow import lira_offline_scores as lira_offline_scores
    from dpaudit.attacks.scores.shadow import train_shadows as train_shadows

_MODULES: dict[str, tuple[str, ...]] = {
    "canaries.canary": ("inserted",),
    "canaries.coins": ("flip_coins",),
    "canaries.generate": (
        "label_flip_canaries",
        "label_substitution_canaries",
        "new_token_canaries",
        "random_token_canaries",
        "template_canaries",
    ),
    "canaries.in_run": (
        "InRunCanaries",
        "draw_in_run_canaries",
    ),
    "canaries.secret": (
        "read_secret",
        "write_secret",
    ),
    "examiner.adapter": (
        "Role",
        "StepAdapter",
    ),
    "examiner.adapters": (
        "FirstOrderAdapter",
        "ZerothOrderAdapter",
    ),
    "examiner.array": ("ArrayAdapter",),
    "examiner.causes": ("explain",),
    "examiner.engines": (
        "EngineAdapter",
        "TrainerAdapter",
    ),
    "examiner.examine": ("examine",),
    "examiner.footing": ("NotExamined",),
    "examiner.loop": ("LoopAdapter",),
    "examiner.loss_factors": ("LossFactors",),
    "examiner.opacus": ("OpacusAdapter",),
    "examiner.plan": ("ExamPlan",),
    "extraction": (
        "draw_candidates",
        "guess_candidates",
    ),
    "holdout": ("hold_out",),
    "scores.functions": ("residual_scores",),
    "scores.losses": ("canary_losses",),
    "scores.score_model": ("score_model",),
    "scores.shadow": (
        "lira_offline_scores",
        "train_shadows",
    ),
}
"""Public names by the module that holds them."""
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dpaudit.attacks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dpaudit.attacks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
