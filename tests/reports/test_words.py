"""What pages and cards say of numbers: bounds that stay bounds, powers with their fault, and no promise too many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit import Guarantee, Relation
from dpaudit.certificates.build import build_certificate
from dpaudit.certificates.statement import Statement
from dpaudit.reports import compare_page, exposure_page, model_card, render_report
from dpaudit.reports.figures import epsilon_axis
from tests import ROOT
from tests.certificates import certificate_run as run
from tests.reports.test_pages import Page, check_page


@pytest.fixture(autouse=True)
def undrawn() -> Iterator[None]:
    """Pages without figures, which take most of the time; their own test draws one."""
    with mock.patch("dpaudit.reports.page.report_drawings", return_value={}):
        yield


NUMBER = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
UPPER = re.compile(r"(?:ε ≤|: at most|up to ε=) ?" + NUMBER)
LOWER = re.compile(r"(?:ε ≥|: at least|true value is at least) ?" + NUMBER)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Statement:
    return build_certificate(run.evidence(tmp_path_factory.mktemp("release")))


def with_bounds(certificate: Statement, lower: float, upper: float, attack: float) -> Statement:
    """The certificate with other bounds, without the sentences that were derived from the old ones."""
    made = certificate.to_plain()
    body = made["predicate"]
    body["accounting"]["guarantees"] = [
        body["accounting"]["guarantees"][0] | {"epsilon_lower": lower, "epsilon_upper": upper}
    ]
    body["audit"]["result"]["primary"] |= {"epsilon_lower": attack, "epsilon_lower_at_verdict": attack / 2}
    body["verdict"]["reasons"], body["audit"]["result"]["findings"] = [], []
    return Statement.from_plain(made)


def cells(text: str, label: str) -> list[str]:
    return [c for c in re.findall(rf'data-label="{label}">([^<]*)<', text) if c not in ("—", "")]


POSITIVE = st.floats(1e-9, 1e6)


@settings(max_examples=40)
@given(POSITIVE, POSITIVE, POSITIVE)
def test_no_bound_on_a_report_is_on_the_wrong_side(certificate: Statement, a: float, b: float, attack: float) -> None:
    lower, upper = sorted((a, b))
    made = with_bounds(certificate, lower, upper, attack)
    text = render_report(made)
    claim = run.CLAIM
    for printed in (float(v) for v in UPPER.findall(Page(text).text)):
        assert printed == claim or printed >= upper
    for printed in (float(v) for v in LOWER.findall(Page(text).text)):
        assert printed <= attack
    assert float(cells(text, "At most")[0]) >= upper and float(cells(text, "At least")[0]) <= lower
    # What meets the claim reads as meeting it, and what exceeds it as exceeding it.
    for shown in {v for v in UPPER.findall(Page(text).text) if v != f"{claim:g}"} or {f"{claim:g}"}:
        assert (float(shown) <= claim) == (upper <= claim)
    card = model_card(made).replace("\\", "")
    assert all(float(v) == claim or float(v) >= upper for v in UPPER.findall(card))
    assert all(float(v) <= attack for v in LOWER.findall(card))


@settings(max_examples=40)
@given(POSITIVE, POSITIVE)
def test_no_bound_on_a_comparison_is_on_the_wrong_side(a: float, b: float) -> None:
    lower, upper = sorted((a, b))
    row = {"accountant": "prv", "epsilon_lower": lower, "epsilon_upper": upper, "rigorous": True, "seconds": 0.1}
    text = compare_page({"delta": 1e-5, "relation": "zero_out", "results": [row]})
    shown = Page(text).text
    assert float(UPPER.findall(shown)[0]) >= upper and float(LOWER.findall(shown)[0]) <= lower
    assert float(cells(text, "At most")[0]) >= upper and float(cells(text, "At least")[0]) <= lower


@pytest.mark.parametrize("upper", [3.0004, 17.43621, 14.2763, 2.99985])
def test_the_axis_rounds_outward_too(upper: float) -> None:
    values = {"accountant": "prv", "version": "1", "delta": 1e-5, "relation": Relation.ZERO_OUT, "rigorous": True}
    found = Guarantee(**values, epsilon_upper=upper, epsilon_lower=upper - 0.01)
    alt = epsilon_axis(claim=3.0, guarantees=[found], lower=0.41239, ceiling=3.3819).alt
    (claimed, accounted), (attacked,) = UPPER.findall(alt), LOWER.findall(alt)
    assert (claimed, attacked) == ("3", "0.4123")
    assert float(accounted) >= upper and (float(accounted) <= 3) == (upper <= 3)


def test_a_mismatch_is_never_printed_as_met(certificate: Statement) -> None:
    made = with_bounds(certificate, 2.999, 3.0004, 0.1)
    assert "ε ≤ 3.001" in check_page(render_report(made)).text
    assert cells(render_report(made), "At most") == ["3.0004"]


def with_power(certificate: Statement) -> Statement:
    made = certificate.to_plain()
    result = made["predicate"]["audit"]["result"]
    result |= {"power": 1.0, "power_lower": 0.0253, "power_source": "positive_control: no noise is added"}
    result["findings"] = [
        {"name": "positive_control", "status": "note", "text": "…", "detail": {"interval": [0.0253, 1.0]}}
    ]
    return Statement.from_plain(made)


def test_a_power_is_printed_with_its_fault_and_its_interval(certificate: Statement) -> None:
    made = with_power(certificate)
    text = check_page(render_report(made)).text
    sentence = next(s for s in re.split(r"(?<=\.)\s", text) if "raise the alarm" in s)
    assert "100% of cases (95% interval 2.53% to 100%)" in sentence and "no noise is added" in sentence
    assert "half the claimed noise" in text  # the ideal attack's fault is another one, and named
    assert "2.53% to 100%" in model_card(made).replace("\\", "")


def test_words_fit_every_reason(certificate: Statement) -> None:
    """No headline calls a test weak beside a power of 100%, whatever made the verdict inconclusive."""
    for made in (certificate, with_power(certificate)):
        text = check_page(render_report(made)).text
        assert "strong enough" not in text.split("Why:")[0]


def test_an_attack_without_a_bound_is_not_called_nothing(certificate: Statement) -> None:
    made = with_bounds(certificate, 1.0, 2.0, 0.0).to_plain()
    auc = made["predicate"]["audit"]["result"]["auc"]
    for interval, words in (
        ((0.525, 0.596), "did better than guessing"),
        ((0.48, 0.6), "not told apart from guessing"),
    ):
        auc |= {"value": 0.56, "interval": list(interval)}
        assert words in check_page(render_report(Statement.from_plain(made))).text


def test_pages_never_vouch_for_their_origin(certificate: Statement) -> None:
    text, card = check_page(render_report(certificate)).text, model_card(certificate)
    assert "Unsigned, unless certificate.dsse.json" in text and "unsigned, unless" in card
    for said in (text, card):
        assert "the record is the trainer's own" in said and "no other run" in said


STRUCK = (
    r"no trust in",
    r"[Pp]roved by accounting",
    r"showed nothing",
    r"shown? nothing \(",
    r"pip install '?dpaudit",
    r"really ran",
    r"except with probability",
    r"no clear trace of membership",
    r"notices a broken run",
    r"anything the model does",
    r"[Mm]emorisation found",
)


def sources() -> Iterator[tuple[str, str]]:
    for folder in ("reports", "dpaudit/certificates", "dpaudit/auditing", "dpaudit/runs", "dpaudit/cli"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".html"):
                yield str(path.relative_to(ROOT)), " ".join(path.read_text().split())


@pytest.mark.parametrize("sentence", STRUCK)
def test_struck_sentences_stay_struck(sentence: str) -> None:
    assert [name for name, text in sources() if re.search(sentence, text)] == []


def test_every_cell_carries_its_column_on_a_phone(certificate: Statement) -> None:
    exposure = {
        "canaries": [{"id": "a", "rank": 1, "exposure": 4.0, "p_value": 0.1}],
        "references": 16,
        "mean_exposure_without_leakage": 1.2,
        "largest_exposure": 4.0,
        "level": 0.05,
        "note": "",
    }
    for text in (render_report(certificate), exposure_page(exposure)):
        cells = [attrs for tag, attrs in check_page(text).tags if tag == "td"]
        assert cells and all("data-label" in attrs or "colspan" in attrs for attrs in cells)


def test_digests_and_utility_stand_in_the_open(certificate: Statement) -> None:
    made = certificate.to_plain()
    evaluation = {"what": "perplexity per token", "before": 101.47, "after": 82.44}
    made["predicate"]["provenance"] |= {"public_evaluation": evaluation, "records": {"declared": 2000}}
    text = render_report(Statement.from_plain(made))
    open_part = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    assert made["subject"][0]["digest"]["sha256"] in open_part
    for words in ("101.5", "82.44", "2,000, as declared", "invented records"):
        assert words in open_part


def test_a_refusal_is_no_estimate() -> None:
    rows = [
        {"accountant": "prv", "epsilon_lower": 1.0, "epsilon_upper": 1.1, "rigorous": True},
        {"accountant": "rdp", "rigorous": False, "remark": "accountant 'rdp' refuses relation='replace_one'"},
    ]
    text = check_page(compare_page({"delta": 1e-5, "relation": "replace_one", "results": rows})).text
    assert "rdp refused this ledger" in text and "refuses relation='replace_one'" in text
    assert "estimates" not in text and "not a bound" not in text.lower()


def test_group_claims_stand_on_the_exposure_page() -> None:
    import numpy as np

    from dpaudit.auditing import exposure_report

    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(size=9), rng.normal(size=9) - 3])
    report = exposure_report(
        [str(i) for i in range(18)],
        losses,
        rng.normal(size=300),
        copies=np.repeat([1, 4], 9),
        group_claims={1: 3.0, 4: 19.8},
        delta=1e-5,
    ).to_dict()
    page = exposure_page(report)
    text = check_page(page).text
    assert "9 canaries inserted once" in text.split("groups of 4")[0]
    assert cells(page, "Claimed ε") == ["3", "19.8"]
    assert len(cells(page, "p under the claim")) == 2 + 18
    assert "Canaries with 4 copies stand out" in text
