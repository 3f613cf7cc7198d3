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
def strip_starts(length: int, onednn: bool) -> tuple[int, ...]:
    """Where to cut T positions into strips, T included; of a symmetric Gram only the upper triangle is computed.

    More strips save flops and cost calls. oneDNN is called once per example, so it gets fewer.

    >>> strip_starts(128, True)
    (0, 64, 128)
    """
    count = (1 if length < 128 else 2) if onednn else (1 if length < 16 else 2 if length < 128 else 4)
    return tuple(round(i * length / count) for i in range(count + 1))


def triangle(length: int) -> float:
    """Share of a full Gram's flops that the strips compute, (k+1)/2k for k strips."""
    count = len(strip_starts(length, False)) - 1
    return (count + 1) / (2 * count)


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
    gram = triangle(length) * 2.0 * length**2 * (inputs + outputs)
    keep = 3.0 * inputs * outputs * FLOPS_PER_WORD
    discard = 2.0 * length * inputs * outputs + inputs * outputs * FLOPS_PER_WORD
    if batch * inputs * outputs <= keep_words and keep < (discard if exact else min(gram, discard)):
        return Strategy.KEEP
    return Strategy.GRAM if gram <= discard and not exact else Strategy.DISCARD
