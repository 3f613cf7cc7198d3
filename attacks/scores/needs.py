"""Names of the attacks, and what each needs beside the audited model and its canaries. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one attack needs, and which canaries it can score.

    Attributes
    ----------
    base : bool
        The model before fine-tuning.
    references : int
        At least so many models that were never trained on these records.
    population : bool
        Records outside the audit.
    neighbours : bool
        Perturbed texts of every record.
    causal : bool
        A causal language model, since it scores tokens.
    paired : bool
        Whether it compares two labels, where a coin chose between them.
    """

    base: bool = False
    references: int = 0
    population: bool = False
    neighbours: bool = False
    causal: bool = False
    paired: bool = False


ATTACKS: dict[str, Needs] = {
    "loss": Needs(paired=True),
    "loss-drop": Needs(base=True, paired=True),
    "loss-residual": Needs(base=True, paired=True),
    "neighbourhood": Needs(causal=True, neighbours=True),
    "zlib": Needs(),
    "min-k": Needs(causal=True),
    "min-k++": Needs(causal=True),
    "grad-norm": Needs(),
    "lira-offline": Needs(references=2),
    "rmia-offline": Needs(references=1, population=True),
}
"""Every attack by its name. A further one is a line here and its function in :mod:`.score_model`."""
