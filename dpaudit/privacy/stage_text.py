"""A stage in one line of text, such as ``q=0.01,sigma=1.0,steps=1000``."""

from __future__ import annotations

from typing import Any

from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.stage import Sampling, Stage

KEYS: dict[str, tuple[str, type]] = {
    "q": ("sampling_probability", float),
    "sigma": ("noise_multiplier", float),
    "steps": ("steps", int),
    "sampling": ("sampling", str),
    "directions": ("releases_per_step", int),
    "clip": ("clip", str),
    "mechanism": ("mechanism", str),
    "max_batch": ("max_batch", int),
    "public_size": ("public_size", int),
    "quantile_sigma": ("quantile_sigma", float),
}
REQUIRED = ("q", "sigma", "steps")


def number(text: str) -> float:
    """Read a number or a fraction of two.

    >>> number("256/60000")
    0.004266666666666667

    Raises
    ------
    ValueError
        The text is neither, or divides by zero.
    """
    above, slash, below = text.partition("/")
    if not slash:
        return float(text)
    if float(below) == 0:
        raise ValueError(f"{text!r} divides by zero")
    return float(above) / float(below)


def parse_stage(text: str) -> tuple[Stage, bool]:
    """Read ``"q=0.01,sigma=1.0,steps=1000"``; the flag says that sampling was left out and means poisson.

    >>> parse_stage("q=256/60000,sigma=1,steps=10")[0].sampling_probability
    0.004266666666666667
    """
    fields: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in KEYS:
            raise InvalidValue(f"stage {text!r} has the key {key!r}; known keys are {', '.join(KEYS)}.")
        name, kind = KEYS[key]
        if name in fields:
            raise InvalidValue(f"stage {text!r} gives {key} twice; give it once.")
        try:
            fields[name] = number(value) if kind is float else kind(value)
        except ValueError:
            raise InvalidValue(f"stage {text!r} has {key}={value!r}, which is not a valid {kind.__name__}.") from None
    for key in REQUIRED:
        if KEYS[key][0] not in fields:
            raise InvalidValue(f"stage {text!r} lacks {key}; write q=...,sigma=...,steps=....")
    defaulted = "sampling" not in fields
    fields.setdefault("sampling", Sampling.POISSON)
    return Stage(**fields), defaulted
