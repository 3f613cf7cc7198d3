"""Evaluation mode inside a block; afterwards every module has its own earlier mode again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model and its modules into evaluation mode inside the block.

    ``model.train(before)`` afterwards would not do: it gives every module the mode of the outermost one, so that a
    layer that was frozen in evaluation mode, such as a batch norm, would train from then on.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
