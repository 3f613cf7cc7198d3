"""Scores and made-up tables of the text benchmarks."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import pytest

from tests import DATA, ROOT


def loaded(name: str) -> Any:
    """A file of ``benchmarks/``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


metrics = loaded("text_metrics")
generated_tables = loaded("restaurant_tables").generated_tables

GOLDEN = json.loads((DATA / "text_metrics.json").read_text())


def test_bleu_agrees_with_the_reference_scorer() -> None:
    hypotheses, references = GOLDEN["hypotheses"], GOLDEN["references"]
    assert metrics.corpus_bleu(hypotheses, references) == pytest.approx(GOLDEN["bleu"], abs=1e-9)
    assert metrics.corpus_bleu(hypotheses[:3], references[:3]) == pytest.approx(GOLDEN["bleu_first3"], abs=1e-9)
    assert metrics.corpus_bleu(hypotheses, [r[:1] for r in references]) == pytest.approx(
        GOLDEN["bleu_single"], abs=1e-9
    )
    assert metrics.corpus_bleu(["a b"], [["a c"]]) == 0 and metrics.corpus_bleu(["a b c d"], [["a b c d"]]) == 100


def test_tokens_follow_mteval() -> None:
    text = 'It\'s a 5-star, $3.50 "pub" (cheap) & good; see a.b 1,000 £30.'
    assert " ".join(metrics.tokenize_13a(text)) == GOLDEN["tokens_13a"]


def test_rouge_l_agrees_with_the_reference_scorer() -> None:
    found = [metrics.rouge_l(h, r[:1], beta=1) for h, r in zip(GOLDEN["hypotheses"], GOLDEN["references"], strict=True)]
    assert found == pytest.approx(GOLDEN["rouge_l_f1_first_reference"])
    # precision 2/2, recall 2/4: F with beta 1.2 by hand
    assert metrics.rouge_l("a b", ["a x b y"]) == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))
    assert metrics.corpus_rouge_l(["a b", "c"], [["a b"], ["d", "c"]]) == 100
    assert metrics.rouge_l("", ["a"]) == 0
    with pytest.raises(ValueError, match="equally many"):
        metrics.corpus_rouge_l(["a"], [])


def test_word_f1_counts_shared_words_once_each() -> None:
    """By hand: of "b b c" and "b c d e" two words are shared, so precision 2/3 and recall 2/4."""
    assert metrics.word_f1("A b b, c!", "The b c d e.") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert metrics.word_f1("", "a b") == metrics.word_f1("the", "a") == metrics.word_f1("x", "y") == 0
    assert metrics.corpus_word_f1(["b c", "x"], ["C, b", "y"]) == 50
    with pytest.raises(ValueError, match="equally many"):
        metrics.corpus_word_f1([], [])


def test_generated_tables_are_reproducible_and_true_to_their_fields() -> None:
    records = generated_tables(200, seed=1, users=20)
    assert records == generated_tables(200, seed=1, users=20) != generated_tables(200, seed=2, users=20)
    assert {r.user for r in records} <= set(range(20)) and len({r.text for r in records}) > 180
    for record in records:
        for text in record.references:
            assert record.fields["name"] in text and record.fields["eatType"] in text and text.endswith(".")
            assert record.fields.get("food", "") in text and record.fields.get("near", "") in text
    assert [r.user for r in generated_tables(3, seed=0)] == [0, 1, 2]
