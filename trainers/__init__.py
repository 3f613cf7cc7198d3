"""Private training of language models: plan, Poisson sampling, ghost clipping, noise, optimizers, tasks.

A plan is the single source of what runs, what is counted and what is claimed. ``train`` is the whole loop;
``GhostClipping`` with ``noisy_mean`` and ``DPOptimizer`` is the bare step for loops of one's own.
"""

from typing import TYPE_CHECKING, Any

from dpaudit.trainers.clipping import AdaptiveFlat as AdaptiveFlat
from dpaudit.trainers.clipping import Automatic as Automatic
from dpaudit.trainers.clipping import Flat as Flat
from dpaudit.trainers.clipping import PerLayer as PerLayer
from dpaudit.trainers.distributed.checkpoint import load_sharded as load_sharded
from dpaudit.trainers.distributed.checkpoint import save_sharded as save_sharded
from dpaudit.trainers.distributed.replicated import distributed_options as distributed_options
from dpaudit.trainers.ghost.clipper import GhostClipping as GhostClipping
from dpaudit.trainers.huggingface.arguments import PrivacyArguments as PrivacyArguments
from dpaudit.trainers.loop import train as train
from dpaudit.trainers.noise import NoiseSource as NoiseSource
from dpaudit.trainers.noise import noise_statement as noise_statement
from dpaudit.trainers.optimizers import DPOptimizer as DPOptimizer
from dpaudit.trainers.optimizers import OptimizerSettings as OptimizerSettings
from dpaudit.trainers.parameters import trained_parameters as trained_parameters
from dpaudit.trainers.plan import PrivacyPlan as PrivacyPlan
from dpaudit.trainers.preflight.check import preflight as preflight
from dpaudit.trainers.preflight.sources import CollatedRecords as CollatedRecords
from dpaudit.trainers.preflight.units import preflight_units as preflight_units
from dpaudit.trainers.rows import one_loss_per_record as one_loss_per_record
from dpaudit.trainers.sampling import PoissonSampler as PoissonSampler
from dpaudit.trainers.sampling import sampler_for as sampler_for
from dpaudit.trainers.step import noisy_mean as noisy_mean
from dpaudit.trainers.step import trainable as trainable
from dpaudit.trainers.tasks.losses import causal_lm_losses as causal_lm_losses
from dpaudit.trainers.tasks.losses import pad_tokens as pad_tokens
from dpaudit.trainers.tasks.losses import sequence_classification_losses as sequence_classification_losses
from dpaudit.trainers.tasks.metrics import charged_mean as charged_mean
from dpaudit.trainers.tasks.text import Infilling as Infilling
from dpaudit.trainers.tasks.text import pad_labelled as pad_labelled
from dpaudit.trainers.units import bound_records as bound_records
from dpaudit.trainers.witness import ReleaseRecorder as ReleaseRecorder
from dpaudit.trainers.zeroth_order.directions import Directions as Directions
from dpaudit.trainers.zeroth_order.log import ZOLogWriter as ZOLogWriter
from dpaudit.trainers.zeroth_order.log import read_zo_log as read_zo_log
from dpaudit.trainers.zeroth_order.stages import aggzo as aggzo
from dpaudit.trainers.zeroth_order.stages import dpzero as dpzero
from dpaudit.trainers.zeroth_order.stages import mezo as mezo
from dpaudit.trainers.zeroth_order.stages import zoso as zoso
from dpaudit.trainers.zeroth_order.train import zo_train as zo_train
from dpaudit.trainers.zeroth_order.weights import replay as replay

__all__ = [
    # Training with clipped gradients.
    "OptimizerSettings",
    "PrivacyPlan",
    "train",
    # The bare step, for loops of one's own.
    "DPOptimizer",
    "GhostClipping",
    "NoiseSource",
    "PoissonSampler",
    "ReleaseRecorder",
    "bound_records",
    "charged_mean",
    "noise_statement",
    "noisy_mean",
    "one_loss_per_record",
    "sampler_for",
    "trainable",
    "trained_parameters",
    # Clipping rules.
    "AdaptiveFlat",
    "Automatic",
    "Flat",
    "PerLayer",
    # Losses and collators of common tasks.
    "Infilling",
    "causal_lm_losses",
    "pad_labelled",
    "pad_tokens",
    "sequence_classification_losses",
    # Before the first step: is every contribution bounded?
    "CollatedRecords",
    "preflight",
    "preflight_units",
    # Training without gradients (zeroth order).
    "Directions",
    "ZOLogWriter",
    "aggzo",
    "dpzero",
    "mezo",
    "read_zo_log",
    "replay",
    "zo_train",
    "zoso",
    # Trainers of Hugging Face.
    "DPPreferenceTrainer",
    "DPTrainer",
    "PrivacyArguments",
    "ZOTrainer",
    "ZerothOrderArguments",
    # Several processes.
    "distributed_options",
    "load_sharded",
    "save_sharded",
]

if TYPE_CHECKING:
    from dpaudit.trainers.huggingface.preference_trainer import DPPreferenceTrainer as DPPreferenceTrainer
    from dpaudit.trainers.huggingface.trainer import DPTrainer as DPTrainer
    from dpaudit.trainers.huggingface.zo_trainer import ZerothOrderArguments as ZerothOrderArguments
    from dpaudit.trainers.huggingface.zo_trainer import ZOTrainer as ZOTrainer

# transformers' Trainer takes seconds to import, so what needs it is loaded when it is asked for.
_LATE = {
    "DPPreferenceTrainer": "preference_trainer",
    "DPTrainer": "trainer",
    "ZerothOrderArguments": "zo_trainer",
    "ZOTrainer": "zo_trainer",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        import importlib

        return getattr(importlib.import_module(f"dpaudit.trainers.huggingface.{_LATE[name]}"), name)
    raise AttributeError(f"module 'dpaudit.trainers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
