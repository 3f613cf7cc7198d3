"""Private training of language models: plan, Poisson sampling, ghost clipping, noise, optimizers, tasks.

A plan is the single source of what runs, what is counted and what is claimed. ``train`` is the whole loop;
``GhostClipping`` with ``noisy_mean`` and ``DPOptimizer`` is the bare step for loops of one's own.
"""

from typing import TYPE_CHECKING, Any

from dpaudit.trainers._clipping import AdaptiveFlat as AdaptiveFlat
from dpaudit.trainers._clipping import Automatic as Automatic
from dpaudit.trainers._clipping import Flat as Flat
from dpaudit.trainers._clipping import PerLayer as PerLayer
from dpaudit.trainers._directions import DirectionKind as DirectionKind
from dpaudit.trainers._directions import Directions as Directions
from dpaudit.trainers._directions import DirectionStream as DirectionStream
from dpaudit.trainers._distributed import ShardSampler as ShardSampler
from dpaudit.trainers._distributed import distributed_options as distributed_options
from dpaudit.trainers._ghost import GhostClipping as GhostClipping
from dpaudit.trainers._hf_arguments import PrivacyArguments as PrivacyArguments
from dpaudit.trainers._hf_losses import per_example_losses as per_example_losses
from dpaudit.trainers._loop import StepReport as StepReport
from dpaudit.trainers._loop import TrainingResult as TrainingResult
from dpaudit.trainers._loop import train as train
from dpaudit.trainers._noise import NoiseSource as NoiseSource
from dpaudit.trainers._noise import NoNoise as NoNoise
from dpaudit.trainers._optimizers import DPOptimizer as DPOptimizer
from dpaudit.trainers._optimizers import OptimizerSettings as OptimizerSettings
from dpaudit.trainers._parameters import head_parameters as head_parameters
from dpaudit.trainers._parameters import trained_parameters as trained_parameters
from dpaudit.trainers._plan import PrivacyPlan as PrivacyPlan
from dpaudit.trainers._preflight import PreflightReport as PreflightReport
from dpaudit.trainers._preflight import preflight as preflight
from dpaudit.trainers._preflight import preflight_losses as preflight_losses
from dpaudit.trainers._preflight_records import generated_batch as generated_batch
from dpaudit.trainers._pruning import MaskRule as MaskRule
from dpaudit.trainers._pruning import pruning_mask as pruning_mask
from dpaudit.trainers._sampling import FullSampler as FullSampler
from dpaudit.trainers._sampling import PoissonSampler as PoissonSampler
from dpaudit.trainers._sampling import Sampler as Sampler
from dpaudit.trainers._sampling import ScriptedSampler as ScriptedSampler
from dpaudit.trainers._sampling import TruncatedPoissonSampler as TruncatedPoissonSampler
from dpaudit.trainers._sampling import sampler_for as sampler_for
from dpaudit.trainers._step import ClippedSum as ClippedSum
from dpaudit.trainers._step import Clipper as Clipper
from dpaudit.trainers._step import Noise as Noise
from dpaudit.trainers._step import PrivateStep as PrivateStep
from dpaudit.trainers._step import noisy_mean as noisy_mean
from dpaudit.trainers._step import trainable as trainable
from dpaudit.trainers._tasks import causal_lm_losses as causal_lm_losses
from dpaudit.trainers._tasks import classification_losses as classification_losses
from dpaudit.trainers._tasks import pad_tokens as pad_tokens
from dpaudit.trainers._tasks import sequence_classification_losses as sequence_classification_losses
from dpaudit.trainers._tasks import token_losses as token_losses
from dpaudit.trainers._tasks_metrics import charged_mean as charged_mean
from dpaudit.trainers._tasks_metrics import corpus_bleu as corpus_bleu
from dpaudit.trainers._tasks_metrics import corpus_rouge_l as corpus_rouge_l
from dpaudit.trainers._tasks_metrics import perplexity as perplexity
from dpaudit.trainers._tasks_metrics import rouge_l as rouge_l
from dpaudit.trainers._tasks_tables import TableRecord as TableRecord
from dpaudit.trainers._tasks_tables import generated_tables as generated_tables
from dpaudit.trainers._tasks_text import Infilling as Infilling
from dpaudit.trainers._tasks_text import complete as complete
from dpaudit.trainers._tasks_text import encode_dialogue as encode_dialogue
from dpaudit.trainers._tasks_text import encode_pair as encode_pair
from dpaudit.trainers._tasks_text import encode_table as encode_table
from dpaudit.trainers._tasks_text import linearise_table as linearise_table
from dpaudit.trainers._tasks_text import pad_labelled as pad_labelled
from dpaudit.trainers._zo_distributed import OneProcess as OneProcess
from dpaudit.trainers._zo_distributed import TorchWorld as TorchWorld
from dpaudit.trainers._zo_log import ZOLog as ZOLog
from dpaudit.trainers._zo_log import ZOLogWriter as ZOLogWriter
from dpaudit.trainers._zo_log import read_zo_log as read_zo_log
from dpaudit.trainers._zo_stages import ZOPlan as ZOPlan
from dpaudit.trainers._zo_stages import ZOStage as ZOStage
from dpaudit.trainers._zo_stages import aggzo as aggzo
from dpaudit.trainers._zo_stages import dpzero as dpzero
from dpaudit.trainers._zo_stages import dpzo_laplace as dpzo_laplace
from dpaudit.trainers._zo_stages import mezo as mezo
from dpaudit.trainers._zo_stages import zoso as zoso
from dpaudit.trainers._zo_tasks import answer_losses as answer_losses
from dpaudit.trainers._zo_tasks import fixed_length as fixed_length
from dpaudit.trainers._zo_tasks import masked_prompt_losses as masked_prompt_losses
from dpaudit.trainers._zo_tasks import option_losses as option_losses
from dpaudit.trainers._zoso import ZOReport as ZOReport
from dpaudit.trainers._zoso import ZOResult as ZOResult
from dpaudit.trainers._zoso import replay as replay
from dpaudit.trainers._zoso import zo_train as zo_train

if TYPE_CHECKING:
    from dpaudit.trainers._hf import DPTrainer as DPTrainer
    from dpaudit.trainers._zo_hf import ZerothOrderArguments as ZerothOrderArguments
    from dpaudit.trainers._zo_hf import ZOTrainer as ZOTrainer

# transformers' Trainer takes seconds to import, so what needs it is loaded when it is asked for.
_LATE = {"DPTrainer": "_hf", "ZerothOrderArguments": "_zo_hf", "ZOTrainer": "_zo_hf"}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        import importlib

        return getattr(importlib.import_module(f"dpaudit.trainers.{_LATE[name]}"), name)
    raise AttributeError(f"module 'dpaudit.trainers' has no attribute {name!r}")
