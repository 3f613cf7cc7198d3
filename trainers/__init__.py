"""Private training of language models: plan, Poisson sampling, ghost clipping, noise, optimizers, tasks.

A plan is the single source of what runs, what is counted and what is claimed. ``train`` is the whole loop;
``GhostClipping`` with ``noisy_mean`` and ``DPOptimizer`` is the bare step for loops of one's own.
"""

from typing import TYPE_CHECKING, Any

from dpaudit.trainers.clipping import AdaptiveFlat as AdaptiveFlat
from dpaudit.trainers.clipping import Automatic as Automatic
from dpaudit.trainers.clipping import Flat as Flat
from dpaudit.trainers.clipping import PerLayer as PerLayer
from dpaudit.trainers.distributed.replicated import ShardSampler as ShardSampler
from dpaudit.trainers.distributed.replicated import distributed_options as distributed_options
from dpaudit.trainers.ghost.clipper import GhostClipping as GhostClipping
from dpaudit.trainers.huggingface.arguments import PrivacyArguments as PrivacyArguments
from dpaudit.trainers.huggingface.losses import per_example_losses as per_example_losses
from dpaudit.trainers.loop import StepReport as StepReport
from dpaudit.trainers.loop import TrainingResult as TrainingResult
from dpaudit.trainers.loop import train as train
from dpaudit.trainers.noise import Noise as Noise
from dpaudit.trainers.noise import NoiseSource as NoiseSource
from dpaudit.trainers.noise import NoNoise as NoNoise
from dpaudit.trainers.noise import noise_statement as noise_statement
from dpaudit.trainers.optimizers import DPOptimizer as DPOptimizer
from dpaudit.trainers.optimizers import OptimizerSettings as OptimizerSettings
from dpaudit.trainers.parameters import head_parameters as head_parameters
from dpaudit.trainers.parameters import trained_parameters as trained_parameters
from dpaudit.trainers.plan import PrivacyPlan as PrivacyPlan
from dpaudit.trainers.preflight.check import PreflightReport as PreflightReport
from dpaudit.trainers.preflight.check import preflight as preflight
from dpaudit.trainers.preflight.check import preflight_losses as preflight_losses
from dpaudit.trainers.preflight.schema import generated_batch as generated_batch
from dpaudit.trainers.preflight.sources import CollatedRecords as CollatedRecords
from dpaudit.trainers.rows import one_loss_per_record as one_loss_per_record
from dpaudit.trainers.sampling import FullSampler as FullSampler
from dpaudit.trainers.sampling import PoissonSampler as PoissonSampler
from dpaudit.trainers.sampling import Sampler as Sampler
from dpaudit.trainers.sampling import ScriptedSampler as ScriptedSampler
from dpaudit.trainers.sampling import TruncatedPoissonSampler as TruncatedPoissonSampler
from dpaudit.trainers.sampling import sampler_for as sampler_for
from dpaudit.trainers.state import frozen_state as frozen_state
from dpaudit.trainers.step import ClippedSum as ClippedSum
from dpaudit.trainers.step import Clipper as Clipper
from dpaudit.trainers.step import PrivateStep as PrivateStep
from dpaudit.trainers.step import noisy_mean as noisy_mean
from dpaudit.trainers.step import trainable as trainable
from dpaudit.trainers.stopping import TrainingStopped as TrainingStopped
from dpaudit.trainers.tasks.losses import causal_lm_losses as causal_lm_losses
from dpaudit.trainers.tasks.losses import classification_losses as classification_losses
from dpaudit.trainers.tasks.losses import pad_tokens as pad_tokens
from dpaudit.trainers.tasks.losses import sequence_classification_losses as sequence_classification_losses
from dpaudit.trainers.tasks.losses import token_losses as token_losses
from dpaudit.trainers.tasks.metrics import charged_mean as charged_mean
from dpaudit.trainers.tasks.metrics import corpus_bleu as corpus_bleu
from dpaudit.trainers.tasks.metrics import corpus_rouge_l as corpus_rouge_l
from dpaudit.trainers.tasks.metrics import perplexity as perplexity
from dpaudit.trainers.tasks.metrics import rouge_l as rouge_l
from dpaudit.trainers.tasks.tables import TableRecord as TableRecord
from dpaudit.trainers.tasks.tables import generated_tables as generated_tables
from dpaudit.trainers.tasks.text import Infilling as Infilling
from dpaudit.trainers.tasks.text import complete as complete
from dpaudit.trainers.tasks.text import encode_dialogue as encode_dialogue
from dpaudit.trainers.tasks.text import encode_pair as encode_pair
from dpaudit.trainers.tasks.text import encode_table as encode_table
from dpaudit.trainers.tasks.text import linearise_table as linearise_table
from dpaudit.trainers.tasks.text import pad_labelled as pad_labelled
from dpaudit.trainers.zeroth_order.directions import DirectionKind as DirectionKind
from dpaudit.trainers.zeroth_order.directions import Directions as Directions
from dpaudit.trainers.zeroth_order.directions import DirectionStream as DirectionStream
from dpaudit.trainers.zeroth_order.distributed import OneProcess as OneProcess
from dpaudit.trainers.zeroth_order.distributed import TorchWorld as TorchWorld
from dpaudit.trainers.zeroth_order.log import ZOLog as ZOLog
from dpaudit.trainers.zeroth_order.log import ZOLogWriter as ZOLogWriter
from dpaudit.trainers.zeroth_order.log import read_zo_log as read_zo_log
from dpaudit.trainers.zeroth_order.pruning import MaskRule as MaskRule
from dpaudit.trainers.zeroth_order.pruning import pruning_mask as pruning_mask
from dpaudit.trainers.zeroth_order.stages import ZOPlan as ZOPlan
from dpaudit.trainers.zeroth_order.stages import ZOStage as ZOStage
from dpaudit.trainers.zeroth_order.stages import aggzo as aggzo
from dpaudit.trainers.zeroth_order.stages import dpzero as dpzero
from dpaudit.trainers.zeroth_order.stages import dpzo_laplace as dpzo_laplace
from dpaudit.trainers.zeroth_order.stages import mezo as mezo
from dpaudit.trainers.zeroth_order.stages import zoso as zoso
from dpaudit.trainers.zeroth_order.tasks import answer_losses as answer_losses
from dpaudit.trainers.zeroth_order.tasks import fixed_length as fixed_length
from dpaudit.trainers.zeroth_order.tasks import masked_prompt_losses as masked_prompt_losses
from dpaudit.trainers.zeroth_order.tasks import option_losses as option_losses
from dpaudit.trainers.zeroth_order.train import ZOReport as ZOReport
from dpaudit.trainers.zeroth_order.train import ZOResult as ZOResult
from dpaudit.trainers.zeroth_order.train import replay as replay
from dpaudit.trainers.zeroth_order.train import zo_train as zo_train

if TYPE_CHECKING:
    from dpaudit.trainers.huggingface.trainer import DPTrainer as DPTrainer
    from dpaudit.trainers.huggingface.zo_trainer import ZerothOrderArguments as ZerothOrderArguments
    from dpaudit.trainers.huggingface.zo_trainer import ZOTrainer as ZOTrainer

# transformers' Trainer takes seconds to import, so what needs it is loaded when it is asked for.
_LATE = {"DPTrainer": "trainer", "ZerothOrderArguments": "zo_trainer", "ZOTrainer": "zo_trainer"}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        import importlib

        return getattr(importlib.import_module(f"dpaudit.trainers.huggingface.{_LATE[name]}"), name)
    raise AttributeError(f"module 'dpaudit.trainers' has no attribute {name!r}")
