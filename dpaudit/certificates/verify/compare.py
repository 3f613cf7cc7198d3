"""Comparing stated values with recomputed ones: where they differ, and how much that weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dpaudit._version import __version__
from dpaudit.certificates.build import RULES
from dpaudit.certificates.statement import Predicate
from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, EQUAL, Step

TOLERANCE = 1e-6
"""Relative difference between two computations of one number that only differ in the machine."""


def written_here(body: Predicate) -> bool:
    """Whether this very version, with these rules and words, wrote the certificate.

    Only then are words, and numbers that a later version may compute better, compared to the letter. What decides a
    verdict is compared always.
    """
    verifier = body.verifier
    return bool(verifier.get("version") == __version__ and verifier.get("rules") == RULES)


def first_difference(stated: Any, fresh: Any, where: str) -> str:
    """Name of the first place where two plain values differ by more than rounding; "" where they do not."""
    if isinstance(stated, dict) and isinstance(fresh, dict):
        if stated.keys() != fresh.keys():
            odd = sorted(map(str, stated.keys() ^ fresh.keys()))[0]
            return f"{where} has other fields than the evidence gives ({odd[:60]})"
        return next((d for k in stated if (d := first_difference(stated[k], fresh[k], f"{where}.{k}"))), "")
    if isinstance(stated, list) and isinstance(fresh, list):
        if len(stated) != len(fresh):
            return f"{where} has {len(stated)} entries and the evidence gives {len(fresh)}"
        pairs = enumerate(zip(stated, fresh, strict=True))
        return next((d for i, (a, b) in pairs if (d := first_difference(a, b, f"{where}.{i}"))), "")
    if _number(stated) and _number(fresh):
        if abs(stated - fresh) <= TOLERANCE * abs(fresh) + 1e-15:
            return ""
        return f"{where} is {fresh:.17g} by the evidence and {stated:.17g} is stated"
    same = stated == fresh and isinstance(stated, bool) == isinstance(fresh, bool)
    return "" if same else f"{where} is {_short(fresh)} by the evidence and {_short(stated)} is stated"


def judge_differences(name: str, hard: Sequence[str], soft: Sequence[str], equal: str) -> Step:
    """One step for a section.

    Parameters
    ----------
    name : str
        Of the step.
    hard : sequence of str
        Differences in what cannot honestly differ.
    soft : sequence of str
        Differences in what another version may have computed otherwise; they make the step not recomputable, so that
        it supports nothing.
    equal : str
        Detail where nothing differs.
    """
    if hard:
        return Step(name, DIFFERENT, _listed(hard))
    if soft:
        return Step(name, ABSENT, f"{_listed(soft)}; another version of dpaudit, or other rules, wrote this")
    return Step(name, EQUAL, equal)


def _listed(differences: Sequence[str]) -> str:
    more = len(differences) - 3
    return "; ".join(differences[:3]) + (f"; and {more} more" if more > 0 else "")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return str(value)[:60]
