"""Pages: self-contained, deterministic, escaped, and saying first what matters."""

from __future__ import annotations

import copy
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit.certificates.build import build_certificate
from dpaudit.certificates.statement import Statement
from dpaudit.reports import compare_page, exposure_page, render_report
from dpaudit.reports.page import report_drawings
from tests import ROOT
from tests.certificates import certificate_run as run

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
SERIES: dict[str, Any] = {
    "epsilon_over_steps": {"steps": [1, 20, 40], "epsilon": [0.2, 0.8, 1.1], "boundaries": [20], "accountant": "rdp"},
    "roc": {"fpr": [0.0, 0.1, 1.0], "tpr": [0.0, 0.3, 1.0], "limit": {"fpr": [0.01, 1.0], "tpr": [0.2, 1.0]}},
    "scores": {"in": [1.0, 2.0, 3.0], "out": [0.0, 1.0, 1.5]},
    "exposure": {"exposure": [0.1, 1.0, 4.0]},
    "tradeoff": {
        "alpha": [0.0, 0.5, 1.0],
        "lower": [1.0, 0.2, 0.0],
        "upper": [1.0, 0.3, 0.0],
        "points": [{"fpr": 0.3, "fnr": 0.6}],
    },
}
COMPARE: dict[str, Any] = {
    "schema": "dpaudit.compare/1",
    "delta": 1e-5,
    "relation": "add_or_remove_one",
    "results": [
        {"accountant": "prv", "epsilon_lower": 1.0, "epsilon_upper": 1.1, "rigorous": True, "seconds": 0.1},
        {"accountant": "rdp", "epsilon_lower": None, "epsilon_upper": 1.4, "rigorous": True, "seconds": 0.1},
        {"accountant": "gdp-clt", "epsilon_estimate": 0.9, "rigorous": False, "seconds": 0.1, "remark": MARKUP},
    ],
    "stages": [run.STAGE.to_dict()],
    "epsilon_over_steps": {
        "steps": [1, 10, 40],
        "boundaries": [10],
        "curves": [
            {"accountant": "prv", "epsilon_upper": [0.1, 0.5, 1.1], "epsilon_lower": [0.1, 0.4, 1.0], "rigorous": True},
            {"accountant": "gdp-clt", "epsilon_estimate": [0.1, 0.4, 0.9], "rigorous": False},
        ],
    },
    "epsilon_over_delta": {
        "delta": [1e-7, 1e-5],
        "curves": [{"accountant": "prv", "epsilon_upper": [1.5, float("inf")]}],
    },
    "tradeoff": {"alpha": [1e-5, 0.1, 1.0], "lower": [0.99, 0.5, 0.0], "upper": [1.0, 0.6, 0.0]},
}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    VOID = frozenset({"meta", "br", "img", "path", "use", "circle", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text += data


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Statement:
    return build_certificate(run.evidence(tmp_path_factory.mktemp("release")))


def check_page(text: str) -> Page:
    """What every page promises."""
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert "script" not in names
    assert "img" not in names
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    for _, attrs in page.tags:
        for key in ("src", "href", "xlink:href"):
            assert (attrs.get(key) or "#").startswith("#"), attrs
    assert not re.search(r"url\((?!#)", text)
    assert ("html", {"lang": "en"}) in page.tags
    for tag, attrs in page.tags:
        if tag == "svg" and "aria-hidden" not in attrs:
            assert attrs["role"] == "img"
            assert len(attrs["aria-label"] or "") > 20
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for bad in ("nan", "None", "undefined", "mathdefault"):
        assert not re.search(rf"\b{bad}\b", page.text), bad
    return page


@pytest.fixture(scope="module")
def report(certificate: Statement) -> str:
    return render_report(certificate, SERIES)


def test_report_says_first_what_matters(report: str) -> None:
    page = check_page(report)
    order = [
        "Inconclusive",
        "What was claimed",
        "What was found",
        "What is not proved",
        "The evidence in four lines",
        "Claim, accounting and attack",
        "The accounting",
        "The attack",
        "Findings",
        "What this does not prove",
        "Check it yourself",
        "Files and versions",
        "Words used on this page",
    ]
    place = 0
    for words in order:
        place = page.text.index(words, place)
    assert "ε ≤ 3" in page.text
    assert "dpaudit verify certificate.json" in page.text


def test_same_values_give_the_same_bytes(certificate: Statement, report: str) -> None:
    assert render_report(copy.deepcopy(certificate), copy.deepcopy(SERIES)) == report


def test_report_without_any_series(certificate: Statement) -> None:
    check_page(render_report(certificate))


@pytest.mark.parametrize(
    "change",
    [
        {"claim": None},
        {"ledger": None, "ledger_head": None},
        {"audit_plan": None, "audit_result": None, "canaries": ()},
        {"guarantees": ()},
        {"subjects": {}},
        {"mechanism": {}},
        {"run_status": "unfinished"},
    ],
)
def test_report_of_incomplete_evidence(tmp_path: Path, change: dict[str, Any]) -> None:
    check_page(render_report(build_certificate(run.evidence(tmp_path, **change))))


def test_copies_are_compared_with_the_group_claim(certificate: Statement) -> None:
    grouped = certificate.to_plain()
    grouped["predicate"]["audit"]["copies"] = 4
    grouped["predicate"]["audit"]["plan"]["group_epsilon"] = 19.8
    page = check_page(render_report(Statement.from_plain(grouped)))
    assert "by attack, for groups of 4" in page.text
    axis = next(a["aria-label"] for t, a in page.tags if t == "svg" and "aria-label" in a)
    assert "Claimed for groups of 4: at most 19.8" in str(axis)
    assert "recorded steps" not in str(axis)


def poison(value: Any) -> Any:
    """Markup in every text of a certificate, but for digests, and names that choose a template's branch."""
    if isinstance(value, dict):
        kept = {
            "name",
            "status",
            "standing",
            "run_status",
            "commitment_order",
            "relation",
            "_type",
            "predicateType",
            "schema",
        }
        kept |= {"digest", "head", "plan_digest", "commitment", "nonce", "scores_digest", "control_digest"}
        return {k: v if k in kept else poison(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poison(v) for v in value]
    return MARKUP if isinstance(value, str) else value


def test_markup_in_data_is_shown_as_text(certificate: Statement) -> None:
    poisoned = poison(certificate.to_plain())
    poisoned["predicate"]["audit"]["result"]["findings"] = [
        {"name": MARKUP, "status": "violated", "text": MARKUP, "detail": {MARKUP: MARKUP}}
    ]
    poisoned["subject"][0]["name"] = MARKUP
    steps = {**SERIES["epsilon_over_steps"], "accountant": MARKUP}
    page = check_page(render_report(Statement.from_plain(poisoned), {**SERIES, "epsilon_over_steps": steps}))
    assert page.text.count("<script>alert(1)</script>") > 10


def test_compare_page() -> None:
    page = check_page(compare_page(COMPARE))
    assert "1.1" in page.text
    assert "<script>" in page.text  # as text
    check_page(compare_page({k: COMPARE[k] for k in ("delta", "relation", "results")}))
    check_page(compare_page({**COMPARE, "results": COMPARE["results"][2:]}))


@pytest.mark.parametrize("shift", [0.0, -2.0])
def test_exposure_page(shift: float) -> None:
    from dpaudit.auditing import exposure_report

    rng = np.random.default_rng(0)
    ids = [f"canary {i} {MARKUP}" for i in range(30)]
    report = exposure_report(ids, rng.normal(size=30) + shift, rng.normal(size=1500), copies=np.repeat([1, 4], 15))
    page = check_page(exposure_page(report.to_dict()))
    assert ("not told apart from chance" in page.text) == (shift == 0)
    assert ("lower losses than chance gives" in page.text) == (shift < 0)
    assert "<script>" in page.text


def test_notebook_view_is_html(certificate: Statement) -> None:
    few = {name: SERIES[name] for name in ("roc",)}
    for drawing in report_drawings(certificate, few).values():
        assert drawing._repr_html_().startswith("<div")
        assert "<svg" in drawing.wide
        assert drawing.wide != drawing.narrow


def contrast(a: str, b: str) -> float:
    """WCAG contrast ratio of two hexadecimal colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_meet_aa() -> None:
    css = (ROOT / "reports" / "templates" / "base.css").read_text()
    roots = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    for light in roots[:2]:
        for text in ("ink", "muted", "link"):
            for ground in ("paper", "card"):
                assert contrast(light[text], light[ground]) >= 4.5, (text, ground)
        for line in ("claim", "acc", "emp", "ceil", "third"):
            assert contrast(light[line], light["card"]) >= 3, line
    for name, block in re.findall(r"\.(\w+) \{ (--tone: .*?)\}", css):
        tone = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        if not tone:
            continue
        assert contrast(tone["tone"], tone["tone-bg"]) >= 4.5, name
        ink = roots[0]["ink"] if contrast(roots[0]["ink"], tone["tone-bg"]) >= 4.5 else roots[1]["ink"]
        assert contrast(ink, tone["tone-bg"]) >= 4.5, name


def test_two_observers_stand_side_by_side(certificate: Statement) -> None:
    from dpaudit.certificates.observers import observer_rows
    from dpaudit.reports import model_card

    made = certificate.to_plain()
    body = made["predicate"]
    body["audit"]["plan"]["in_run"] = {"m": 100_000, "claimed_epsilon": 3.0, "delta": 1e-5, **_CLAIMED}
    body["in_run"] = {"coins": "AA==", "nonce": "0" * 64, "evidence_digest": "0" * 64, "result": IN_RUN}
    statement = Statement.from_plain(made)
    page = check_page(render_report(statement, SERIES))
    place = page.text.index("Two observers, side by side")
    for words in ("Every noisy update", "1,051 of 1,246", "1.51", "0.3% by the energy", "9.45% by canaries"):
        place = page.text.index(words, place)
    assert "The released model" in page.text[place:]
    axis = next(str(a["aria-label"]) for t, a in page.tags if t == "svg" and "aria-label" in a)
    assert "Seen from every update: at least 1.51" in axis and "Shown by the attack" in axis
    # The bound in print is never above the bound that was found.
    assert next(row.lower for row in observer_rows(statement.predicate)) == "1.51"
    card = model_card(statement).replace("\\", "")
    assert "Seen by every noisy update" in card and "Seen by the released model" in card
    # An observer that is not alive says so in the open.
    body["in_run"]["result"] = {**IN_RUN, "alive": False, "rank_sum_p": 0.3, "power_lower": None}
    assert "nothing follows from its silence" in check_page(render_report(Statement.from_plain(made))).text


_CLAIMED = {"relation": "add_or_remove_one", "unit": "paragraph"}
IN_RUN: dict[str, Any] = {
    "m": 100_000,
    "members": 50_123,
    "primary": {"epsilon_lower": 1.5109, "confidence": 0.95, "guesses": 1246, "correct": 1051, "expected": 1.6},
    "rank_sum_p": 0.0,
    "alive": True,
    "profile": {"p_value": 0.7},
    "conditional": {"epsilon_lower": 2.2, "assumption": "independent canaries"},
    "energy": {"p_value": 1.0, "deviation": 1.0000012},
    "control": {"fault": "noise of 0.8 times the declared deviation", "repeats": 20, "convicted": 20, "lower": 0.83},
    "power_lower": 0.83,
    "visible_by_energy": 0.003,
    "visible_by_canaries": 0.0945,
    "findings": [],
}


def test_compare_page_names_an_accountant_without_finite_bound() -> None:
    row = {"accountant": "gdp", "epsilon_lower": None, "epsilon_upper": math.inf, "rigorous": True, "seconds": 0.0001}
    text = check_page(compare_page(COMPARE | {"results": [COMPARE["results"][0], row]})).text
    assert "no finite bound" in text
    assert "below 0.01" in text


def test_exposure_page_folds_all_but_the_first_canaries() -> None:
    canaries = [
        {"id": f"c{i}", "copies": 1, "rank": i + 1, "exposure": 4.0 - i / 100, "p_value": 0.5} for i in range(23)
    ]
    payload = {"canaries": canaries, "references": 16, "mean_exposure_without_leakage": 1.3, "largest_exposure": 4.0}
    text = exposure_page(payload | {"level": 0.05, "by_copies": [], "note": ""})
    open_rows, folded = text.split("<details>")
    assert open_rows.count("<code>c") == 20
    assert folded.count("<code>c") == 3
    assert "3 further canaries with lower exposure" in folded
