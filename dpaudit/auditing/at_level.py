"""A test of the declared mechanism at a level, and the words in which every such test is told."""

from __future__ import annotations

import dataclasses

from dpaudit.privacy.rounding import upper_text

NOT_REFUTED = "The (epsilon, delta) claim itself is not thereby refuted."


@dataclasses.dataclass(frozen=True, slots=True)
class AtLevel:
    """A p-value beside the level at which it was decided beforehand to reject the declared mechanism."""

    p_value: float
    level: float

    @property
    def rejected(self) -> bool:
        """Whether the declared mechanism is rejected."""
        return self.p_value <= self.level

    @property
    def status(self) -> str:
        """Status of the finding: a rejected mechanism is a violation, and one that stands is a note."""
        return "violated" if self.rejected else "note"

    @property
    def verb(self) -> str:
        """What the evidence (in the plural) does to the mechanism."""
        return "contradict" if self.rejected else "do not contradict"

    @property
    def numbers(self) -> str:
        """P-value and level."""
        return f"p={upper_text(self.p_value, 3)}, level {self.level:g}"
