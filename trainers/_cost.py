"""Which way to a linear layer's per-example norm is cheapest, in time and in memory.

For one layer use with a: (B, T, d) and b: (B, T, p), in fp32 words:

========  ==============================  ==============  ======================================
strategy  extra work                      extra memory    final sum
========  ==============================  ==============  ======================================
GRAM      f·2T²(d+p) B flops, f ≈ 0.6-1    2T² B           weighted GEMM aᵀ diag(c) b
KEEP      3dp B words moved               dp B            weighted sum of the kept G_i (no GEMM)
DISCARD   2Tdp B flops + dp B words       dp · chunk      weighted GEMM
========  ==============================  ==============  ======================================

The published rule (Bu et al. 2210.00038), Gram iff 2T² <= pd, looks at space alone. Here both count, and the choice
is made anew for every call, so it follows the sequence length.
"""

from __future__ import annotations

import enum
import itertools
from functools import lru_cache

#: Flops a core does in the time it moves one fp32 word to or from main memory (a balance measured on CPUs and GPUs
#: between 30 and 80; only the order of magnitude matters).
FLOPS_PER_WORD = 40.0


class Strategy(enum.Enum):
    """How |G_i|² of a linear layer is found."""

    GRAM = "gram"
    KEEP = "keep"
    DISCARD = "discard"


@lru_cache(maxsize=256)
def blocks_of(length: int) -> tuple[slice, ...]:
    """Slices that cut ``length`` positions into equal blocks; only block pairs I <= J of a Gram are computed."""
    count = 1 if length < 64 else 2 if length < 256 else 4
    edges = [round(i * length / count) for i in range(count + 1)]
    return tuple(slice(lo, hi) for lo, hi in itertools.pairwise(edges))


def choose(batch: int, length: int, inputs: int, outputs: int, *, keep_words: float, exact: bool = False) -> Strategy:
    """The cheapest strategy for one layer use.

    Parameters
    ----------
    batch, length, inputs, outputs : int
        B, T, d and p.
    keep_words : float
        Words of memory that per-example gradients of this layer may take until the end of the backward pass; 0 in
        the memory-lean mode.
    exact : bool
        Never choose GRAM: its terms cancelled too much for this batch.
    """
    count = len(blocks_of(length))
    gram = (count + 1) / (2 * count) * 2.0 * length**2 * (inputs + outputs)
    keep = 3.0 * inputs * outputs * FLOPS_PER_WORD
    discard = 2.0 * length * inputs * outputs + inputs * outputs * FLOPS_PER_WORD
    if batch * inputs * outputs <= keep_words and keep < (discard if exact else min(gram, discard)):
        return Strategy.KEEP
    return Strategy.GRAM if gram <= discard and not exact else Strategy.DISCARD
