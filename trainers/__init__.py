"""Private training of language models: plan, Poisson sampling, ghost clipping, noise, optimizers, tasks.

A plan is the single source of what runs, what is counted and what is claimed. ``train`` is the whole loop;
``GhostClipping`` with ``noisy_mean`` and ``DPOptimizer`` is the bare step for loops of one's own.
"""

from typing import TYPE_CHECKING, Any

from dpaudit.trainers._clipping import AdaptiveFlat as AdaptiveFlat
from dpaudit.trainers._clipping import Automatic as Automatic
from dpaudit.trainers._clipping import Flat as Flat
from dpaudit.trainers._clipping import PerLayer as PerLayer
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
from dpaudit.trainers._preflight_records import generated_batch as generated_batch
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

if TYPE_CHECKING:
    from dpaudit.trainers._hf import DPTrainer as DPTrainer


def __getattr__(name: str) -> Any:
    # transformers' Trainer takes seconds to import, so it is loaded when it is asked for.
    if name == "DPTrainer":
        from dpaudit.trainers._hf import DPTrainer

        return DPTrainer
    raise AttributeError(f"module 'dpaudit.trainers' has no attribute {name!r}")
