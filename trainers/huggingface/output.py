"""What a trainer returns in Hugging Face's form: how far it came, and what that cost."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from transformers.trainer_utils import TrainOutput

from dpaudit.privacy.ledger import Ledger
from dpaudit.privacy.rounding import upper_text
from dpaudit.trainers.target import spent


def logged_epsilon(ledger: Ledger, delta: float) -> float | None:
    """ε at δ of a ledger, rounded up to the digits that Hugging Face prints, so that no printed bound is too small.

    None where nothing is counted, where the accountant refuses, or where there is no bound.
    """
    upper = spent(ledger, delta)
    return None if upper is None or math.isinf(upper) else float(upper_text(upper, 4))


def train_output(global_step: int, ledger: Ledger, delta: float) -> TrainOutput:
    """Steps, and ε at δ of every step that was counted.

    ``training_loss`` is NaN: the mean loss of private records is no release and stays in ``private_logs``. Neither is
    there a number of samples per second, which would tell the realised batch sizes.
    """
    metrics: dict[str, Any] = {"steps_counted": ledger.steps, "epsilon": spent(ledger, delta), "delta": delta}
    return TrainOutput(global_step, math.nan, metrics)


def weights_saved(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights in a saved model's folder, by its name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
