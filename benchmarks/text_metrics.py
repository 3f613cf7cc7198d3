"""BLEU, ROUGE-L and word F1 of generated texts against references, as benchmarks of text generation report them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

# The four rewriting rules of NIST's mteval-v13a, which BLEU scores in the field are computed with.
_RULES = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokenize_13a(text: str) -> list[str]:
    """Words and punctuation by the rules of mteval-v13a.

    >>> tokenize_13a("A 5-star pub, $3.50.")
    ['A', '5', '-', 'star', 'pub', ',', '$', '3.50', '.']
    """
    text = text.replace("&quot;", '"').replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    text = f" {' '.join(text.split())} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.split()


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, order: int = 4) -> float:
    """BLEU of a corpus with several references each, in [0, 100]; higher is better (Papineni et al. 2002).

    Clipped n-gram counts up to ``order`` are pooled over the corpus, without smoothing; the brevity penalty uses each
    hypothesis's closest reference length.
    """
    _same_length(hypotheses, references)
    matched, total = [0] * order, [0] * order
    length = closest = 0
    for hypothesis, options in zip(hypotheses, references, strict=True):
        words = tokenize_13a(hypothesis)
        reference_words = [tokenize_13a(option) for option in options]
        length += len(words)
        closest += min((abs(len(r) - len(words)), len(r)) for r in reference_words)[1]
        for n in range(1, order + 1):
            counts = _ngrams(words, n)
            allowed: Counter[tuple[str, ...]] = Counter()
            for reference in reference_words:
                allowed |= _ngrams(reference, n)
            matched[n - 1] += sum((counts & allowed).values())
            total[n - 1] += sum(counts.values())
    if min(matched) == 0:
        return 0.0
    precision = sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / order
    penalty = min(0.0, 1 - closest / length)
    return 100 * math.exp(precision + penalty)


def rouge_l(hypothesis: str, references: Sequence[str], *, beta: float = 1.2) -> float:
    """ROUGE-L of one text, in [0, 1]; higher is better (Lin 2004).

    Precision and recall of the longest common subsequence of lower-cased words are each the best over the references;
    ``beta`` weighs recall: 1.2 as in the E2E challenge's scripts, 1 for the harmonic mean.
    """
    words = _plain_words(hypothesis)
    if not references:
        raise ValueError("references=[] holds 0 texts and needs at least one; drop the example.")
    precision = recall = 0.0
    for reference in references:
        expected = _plain_words(reference)
        common = _longest_common_subsequence(words, expected)
        precision = max(precision, common / len(words) if words else 0.0)
        recall = max(recall, common / len(expected) if expected else 0.0)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def corpus_rouge_l(hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, beta: float = 1.2) -> float:
    """Mean ROUGE-L of a corpus, in [0, 100]."""
    _same_length(hypotheses, references)
    return 100 * sum(rouge_l(h, r, beta=beta) for h, r in zip(hypotheses, references, strict=True)) / len(hypotheses)


def word_f1(hypothesis: str, reference: str) -> float:
    """F1 of the words in common, in [0, 1], as benchmarks of dialogue report it; higher is better.

    Words are lower-cased, punctuation and articles are left out, and a word counts as often as both texts hold it.

    >>> round(word_f1("The cat sat on a mat.", "a cat sat"), 3)
    0.667
    """
    words, expected = (_content_words(text) for text in (hypothesis, reference))
    common = sum((words & expected).values())
    if not common:
        return 0.0
    precision, recall = common / words.total(), common / expected.total()
    return 2 * precision * recall / (precision + recall)


def corpus_word_f1(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Mean F1 of a corpus with one reference each, in [0, 100]."""
    _same_length(hypotheses, references)
    return 100 * sum(map(word_f1, hypotheses, references)) / len(hypotheses)


def _content_words(text: str) -> Counter[str]:
    plain = re.sub(r"[^\w\s]", " ", text.lower())
    return Counter(word for word in plain.split() if word not in ("a", "an", "the"))


def _same_length(hypotheses: Sequence[Any], references: Sequence[Any]) -> None:
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(
            f"hypotheses={len(hypotheses)} and references={len(references)} must be equally many and at least one;"
            " give each text its list of references."
        )


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _plain_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        previous = 0
        for at, other in enumerate(right, start=1):
            previous, row[at] = row[at], previous + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]
