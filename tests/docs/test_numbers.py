"""Numbers in the documentation are what the accountants and the audit compute."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from typing import Any

import pytest

from dpaudit import Ledger, Relation, Stage
from dpaudit.accounting import account, tradeoff_curve
from dpaudit.accounting.calibrate import StageTarget, calibrate_noise_multiplier
from tests import ROOT

DOCS = ROOT / "docs"
Q, T, SIGMA, DELTA = 0.0128, 1000, 0.8025, 1e-5
"""The run of the pitfalls page."""


def said(page: str, pattern: str) -> tuple[str, ...]:
    """What a pattern's groups match in a page, whose line breaks count as blanks."""
    text = " ".join((DOCS / page).read_text().split())
    found = re.search(pattern, text)
    assert found, f"{page} no longer says {pattern!r}"
    return found.groups()


def agrees(text: str, low: float, high: float) -> bool:
    """Whether a documented number is one of an interval, rounded to the digits that it is written with."""
    number = Decimal(text.replace(",", ""))
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    half = 0.5 * 10.0**exponent
    return low - half <= float(number) <= high + half


@cache
def epsilon(
    q: float = Q,
    sigma: float = SIGMA,
    steps: int = T,
    relation: str = "add_or_remove_one",
    delta: float = DELTA,
    group: int = 1,
    sampling: str = "poisson",
    **more: Any,
) -> tuple[float, float]:
    """Certified interval for ε; where no lower bound exists the upper one stands for both."""
    stage = Stage(sampling_probability=q, noise_multiplier=sigma, steps=steps, sampling=sampling, **more)
    ledger = Ledger(stages=(stage,), relation=Relation.parse(relation))
    assume = ("shuffle_fixed_schedule",) if sampling == "shuffle" else ()
    (found,) = account(ledger, delta=delta, group_size=group, assume=assume)
    assert found.epsilon_upper is not None
    return found.epsilon_lower if found.epsilon_lower is not None else found.epsilon_upper, found.epsilon_upper


@pytest.mark.parametrize(
    ("mistake", "change"),
    [
        ("noise 10% too small", {"sigma": SIGMA / 1.1}),
        ("replace-one claimed, add-or-remove-one accounted", {"relation": "replace_one"}),
        (r"steps after a resume not counted \(twice as many\)", {"steps": 2 * T}),
        ("tied embeddings counted once in the norm", {"sigma": SIGMA / 2**0.5}),
        ("a layer left unclipped whose norm equals C", {"sigma": SIGMA / 2**0.5}),
        ("clipping the mean of microbatches instead of examples", {"sigma": SIGMA / 2}),
        (r"q of the microbatch used where gradients accumulate \(q/8\)", {"q": 8 * Q}),
        ("8 workers each add σC/8", {"sigma": SIGMA / 8**0.5}),
        ("zeroth order: noise not scaled for P = 16 directions", {"sigma": SIGMA / 4}),
    ],
)
def test_pitfalls(mistake: str, change: dict[str, Any]) -> None:
    (number,) = said("explanation/pitfalls.md", rf"\| {mistake} \| [^|]* \| ([\d.]+) \|")
    assert agrees(number, *epsilon(**change))


def test_pitfalls_of_one_run() -> None:
    assert said("explanation/pitfalls.md", r"ε = 4 with q = ([\d.]+), T = ([\d,]+) and σ = ([\d.]+)") == (
        str(Q),
        f"{T:,}",
        str(SIGMA),
    )
    assert agrees("4", *epsilon())
    (number,) = said("explanation/pitfalls.md", r"ε = 4 at 10⁻⁵ is ([\d.]+) at 10⁻³")
    assert agrees(number, *epsilon(delta=1e-3))
    shuffled = said("explanation/pitfalls.md", r"\| ([\d.]+) under `zero_out`, ([\d.]+) under `add_or_remove_one` \|")
    for number, relation in zip(shuffled, ("zero_out", "add_or_remove_one"), strict=True):
        low, high = epsilon(relation=relation, sampling="shuffle")
        assert agrees(number, low, high)


def test_group_claims() -> None:
    for number, group in zip(
        said("explanation/m_and_k.md", r"it is at most ([\d.]+) for two records and ([\d.]+) for four"),
        (2, 4),
        strict=True,
    ):
        assert epsilon(group=group)[1] <= float(number) <= 1.005 * epsilon(group=group)[1]
    (shown,) = said("howto/audits.md", r"--group-claim 4=([\d.]+) --delta 1e-5")
    assert epsilon(group=4)[1] <= float(shown) <= 1.005 * epsilon(group=4)[1]
    from dpaudit.cli.exposure import command

    assert command.help is not None and f"--group-claim 4={shown} --delta 1e-5" in command.help


@pytest.mark.parametrize(
    ("q", "steps"), [(0.0152, 1320), (0.01, 1000), (0.0152, 1000), (0.02, 1000), (0.01, 5000), (0.1, 100), (0.05, 500)]
)
def test_group_claims_over_other_runs(q: float, steps: int) -> None:
    stage = Stage(sampling_probability=q, noise_multiplier=1.0, steps=steps, sampling="poisson")
    target = StageTarget(epsilon=4.0, delta=DELTA, relation=Relation.ADD_OR_REMOVE_ONE)
    sigma = calibrate_noise_multiplier(stage, target)
    low2, high2, low4, high4 = said(
        "explanation/m_and_k.md", r"between ([\d.]+) and ([\d.]+) for two and between ([\d.]+) and ([\d.]+) for four"
    )
    for group, low, high in ((2, low2, high2), (4, low4, high4)):
        certified = epsilon(q=q, sigma=sigma, steps=steps, group=group)
        assert float(low) <= certified[0] and certified[1] <= float(high)


def test_ceilings() -> None:
    from dpaudit.auditing.one_run import snj_ceiling

    header, row = said("explanation/one_run_bounds.md", r"\| m = r \|([^-]+)\|\|?-.*?\| ceiling \|([^A-Z]+)\|")
    sizes = [int(cell.replace(",", "")) for cell in header.split("|") if cell.strip()]
    values = [cell.strip() for cell in row.split("|") if cell.strip()]
    assert len(sizes) == len(values) == 7
    for m, value in zip(sizes, values, strict=True):
        assert agrees(value, *[snj_ceiling(m, m, DELTA, 0.05)] * 2)
    (lost,) = said("explanation/m_and_k.md", r"its ceiling is ([\d.]+)")
    assert agrees(lost, *[snj_ceiling(1000, 60, DELTA, 0.05)] * 2)
    needed = said("explanation/m_and_k.md", r"\| 4 \| about (\d+) at m = 1,000; (\d+) at m = 10,000 \|")
    for guesses, m in zip(map(int, needed), (1000, 10_000), strict=True):
        assert snj_ceiling(m, guesses, DELTA, 0.05) > 4 > snj_ceiling(m, guesses - 10, DELTA, 0.05)
    assert snj_ceiling(10_000, 10_000, DELTA, 0.05) < 8 < snj_ceiling(100_000, 100_000, DELTA, 0.05)


def test_directions_are_not_steps() -> None:
    wrong, right, left_out = said(
        "explanation/zeroth_order.md", r"δ = 1e-5: ([\d.]+) instead of ([\d.]+)\).*? says ([\d.]+)\."
    )
    assert agrees(wrong, *epsilon(q=1 / 16, sigma=4.0, steps=16_000))
    assert agrees(right, *epsilon(q=1 / 16, sigma=4.0, steps=1000, releases_per_step=16, clip="per_direction"))
    assert agrees(left_out, *epsilon(q=1 / 16, sigma=4.0, steps=1000))


def test_tradeoff_in_the_corner() -> None:
    (truth,) = said("reference/accountants.md", r"for q=\.01, σ=\.8, T=5000; the truth is ([\de.-]+)\.")
    stage = Stage(sampling_probability=0.01, noise_multiplier=0.8, steps=5000, sampling="poisson")
    band = tradeoff_curve(Ledger(stages=(stage,), relation=Relation.ADD_OR_REMOVE_ONE), [1e-5])
    assert agrees(truth, float(band.tpr_lower[0]), float(band.tpr_upper[0]))


def test_planning_heuristics() -> None:
    from scipy.special import ndtr

    from dpaudit.attacks.canaries.planning import (
        recommended_canaries,
        recommended_canaries_zeroth_order,
        signal_strength,
    )

    many, few = said("howto/attacks.md", r"costs 5% of μ: ([\d,]+) at d = 100,000 and μ = 1, and (\d+) at d = 1,000")
    assert int(many.replace(",", "")) == recommended_canaries(100_000, 1.0)
    assert int(few) == recommended_canaries(1000, 1.0)
    (jammed,) = said("howto/attacks.md", r"releases_per_step=1\)` is (\d+)\.")
    assert int(jammed) == recommended_canaries_zeroth_order(0.8, 0.0128, releases_per_step=1)
    mu, auc = said("howto/attacks.md", r"separates at μ = q√T/σ = ([\d.]+), an AUC of ([\d.]+)\.")
    exact = 0.073 * 60**0.5 / 1.1
    assert agrees(mu, exact, exact) and agrees(auc, *[float(ndtr(exact / 2**0.5))] * 2)
    step, end = said(
        "howto/attacks.md", r"likelihood ratio separates at μ = ([\d.]+), the sum of projections, .*?, at ([\d.]+)\."
    )
    assert agrees(step, *[signal_strength(Q, T, SIGMA)] * 2)
    assert agrees(end, *[Q * T**0.5 / SIGMA] * 2)
