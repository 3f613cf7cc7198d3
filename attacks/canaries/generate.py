"""Canary generators. None of them looks at private records; contents come from the injected ``rng``.

Give ``numpy.random.default_rng()`` (operating-system entropy) in a real audit: whoever knows the seed knows the
canaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpaudit.attacks.canaries.canary import CanarySet, IntArray, from_rows, refuse_truncation
from dpaudit.privacy.canaries import SUBSTITUTION
from dpaudit.privacy.errors import InvalidValue
from dpaudit.privacy.validate import integer_at_least, positive

_UNBOUNDED = 10**9  # tokenizers without a limit report about 1e30


def new_token_canaries(
    tokenizer: Any,
    m: int,
    *,
    reserved_tokens: Sequence[str] | Sequence[int],
    rng: np.random.Generator,
    length: int = 12,
    positions: int = 3,
    max_length: int | None = None,
) -> CanarySet:
    """Canaries that each own a token no other record contains; only that token's loss is scored.

    Each canary is ``length`` tokens: its own reserved token at ``positions`` random places after the first, random
    ordinary tokens elsewhere. By far the strongest black-box canary for a small model (Panda et al. 2025,
    arXiv:2503.06808).

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
    m : int
        Number of canaries, at most the number of reserved tokens.
    reserved_tokens : sequence of str or of int
        Tokens that stand for a single id and never occur in training text. They must be fixed from public text.
    rng : numpy.random.Generator
    length, positions : int
        1 <= positions < length.
    max_length : int, optional
        Record length of the training run; defaults to the tokenizer's own limit.

    Returns
    -------
    CanarySet
        m canaries, each with the positions that are scored; without coins.

    Raises
    ------
    InvalidValue
        If there are fewer reserved tokens than canaries, one is no single id, or a canary is longer than
        ``max_length``.

    Examples
    --------
    >>> class Letters:
    ...     all_special_ids, model_max_length = [], 64
    ...     def __len__(self): return 30
    ...     def decode(self, ids, **kwargs): return " ".join(map(str, ids))
    >>> canaries = new_token_canaries(
    ...     Letters(), 4, reserved_tokens=[26, 27, 28, 29], rng=np.random.default_rng(0), length=6, positions=2)
    >>> canaries[3].input_ids[canaries[3].positions[0]]
    29
    """
    integer_at_least(1, m=m, positions=positions)
    integer_at_least(2, length=length)
    if positions >= length:
        raise InvalidValue(f"positions={positions} must be < length={length}: the first token is never predicted.")
    reserved = _token_ids(tokenizer, reserved_tokens)
    if len(reserved) < m:
        raise InvalidValue(
            f"m={m} new-token canaries need one reserved token each and {len(reserved)} were given; lower m or "
            "reserve more tokens."
        )
    ordinary = ordinary_token_ids(tokenizer, exclude=reserved)
    ids = rng.choice(ordinary, size=(m, length))
    score = np.zeros((m, length), dtype=bool)
    places = rng.random((m, length - 1)).argsort(axis=1)[:, :positions] + 1
    np.put_along_axis(score, places, True, axis=1)
    ids[score] = np.repeat(reserved[:m], positions)
    params = {"length": length, "positions": positions, "reserved_tokens": m}
    return _assemble(tokenizer, ids, score, "new_token", params, max_length)


def random_token_canaries(
    tokenizer: Any,
    m: int,
    *,
    rng: np.random.Generator,
    length: int = 48,
    exclude: Sequence[int] = (),
    max_length: int | None = None,
) -> CanarySet:
    """Canaries of ``length`` uniform ordinary tokens, scored on every token but the first.

    Parameters
    ----------
    tokenizer, m, rng, max_length
        As for :func:`new_token_canaries`.
    length : int
        At least 2.
    exclude : sequence of int
        Token ids never to draw (reserved tokens); special ids are never drawn.

    Returns
    -------
    CanarySet
        m canaries, each with the positions that are scored; without coins.

    Raises
    ------
    InvalidValue
        If a canary is longer than ``max_length``: canaries are never truncated.
    """
    integer_at_least(1, m=m)
    integer_at_least(2, length=length)
    ids = rng.choice(ordinary_token_ids(tokenizer, exclude=exclude), size=(m, length))
    score = np.ones((m, length), dtype=bool)
    score[:, 0] = False
    return _assemble(tokenizer, ids, score, "random_token", {"length": length}, max_length)


def prefix_suffix_canaries(
    tokenizer: Any,
    prefixes: Sequence[str],
    *,
    rng: np.random.Generator,
    suffix_length: int = 8,
    exclude: Sequence[int] = (),
    max_length: int | None = None,
) -> CanarySet:
    """In-distribution prefixes (public text) with an improbable suffix; only the suffix is scored.

    A suffix of uniform ordinary tokens has perplexity near the vocabulary size (Meeus et al. 2025,
    arXiv:2502.14921).

    Parameters
    ----------
    prefixes : sequence of m str
        Public text, tokenised without special tokens; may repeat.
    suffix_length : int
        Number of random tokens.
    """
    integer_at_least(1, suffix_length=suffix_length)
    heads = [_encode(tokenizer, text) for text in prefixes]
    empty = [i for i, head in enumerate(heads) if not head]
    if empty or not heads:
        raise InvalidValue(
            f"prefixes has {len(heads)} texts and those at {empty[:5]} have no token; give non-empty text."
        )
    ordinary = ordinary_token_ids(tokenizer, exclude=exclude)
    rows = [[*head, *(int(t) for t in rng.choice(ordinary, size=suffix_length))] for head in heads]
    scored = [range(len(head), len(row)) for head, row in zip(heads, rows, strict=True)]
    params = {"suffix_length": suffix_length}
    return _finish(tokenizer, rows, scored, "prefix_suffix", params, max_length)


def template_canaries(
    tokenizer: Any,
    m: int,
    *,
    rng: np.random.Generator,
    template: str = "the code is {secret}",
    alphabet: str = "0123456789",
    secret_length: int = 8,
    max_length: int | None = None,
) -> CanarySet:
    """A fixed template with a random secret, such as "the code is 27418063"; the secret's tokens are scored.

    Carlini et al. 2019, arXiv:1802.08232. The secrets are distinct; ``len(alphabet) ** secret_length`` must be at
    least m.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        Of the model that is trained.
    m : int
        Number of canaries.
    rng : numpy.random.Generator
        Draws the secrets.
    template : str
        Holds ``{secret}`` exactly once.
    alphabet : str
        Distinct characters.
    secret_length : int
    max_length : int, optional
        Record length of the training run; the tokenizer's own limit by default.

    Returns
    -------
    CanarySet
        m canaries, each with the positions that are scored; without coins.

    Raises
    ------
    InvalidValue
        If the template does not hold ``{secret}`` once, there are fewer than m secrets, or a canary is longer than
        ``max_length``.
    """
    integer_at_least(1, m=m)
    secrets = random_secrets(m, alphabet=alphabet, length=secret_length, rng=rng)
    params = {"template": template, "alphabet": alphabet, "secret_length": secret_length}
    return fill_template(tokenizer, template, secrets, params=params, max_length=max_length)


def fill_template(
    tokenizer: Any, template: str, secrets: Sequence[str], *, params: dict[str, Any], max_length: int | None = None
) -> CanarySet:
    """One canary per secret; a token is scored when any of its characters belongs to the secret."""
    if template.count("{secret}") != 1:
        raise InvalidValue(f"template={template!r} must hold {{secret}} exactly once.")
    head, tail = template.split("{secret}")
    rows, scored = [], []
    for secret in secrets:
        row, positions = _encode_span(tokenizer, head + secret + tail, len(head), len(head) + len(secret))
        if not positions or positions[0] == 0:
            raise InvalidValue(f"template={template!r} must put at least one token before the secret.")
        rows.append(row)
        scored.append(positions)
    return _finish(tokenizer, rows, scored, "template", params, max_length)


def random_secrets(m: int, *, alphabet: str, length: int, rng: np.random.Generator) -> list[str]:
    """m distinct uniform strings over an alphabet."""
    integer_at_least(1, secret_length=length)
    if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2:
        raise InvalidValue(f"alphabet={alphabet!r} must hold at least two characters, each once.")
    space = len(alphabet) ** length
    if space < m:
        raise InvalidValue(f"m={m} secrets must be distinct and only {space} exist; lengthen the secret.")
    # Secrets must be distinct, so repeats are drawn again, also beyond 2^62 where they hardly ever occur.
    chosen: dict[str, None] = {}
    if space <= 4 * m:
        codes = rng.permutation(space)[:m]
        digits = [[int(code) // len(alphabet) ** j % len(alphabet) for j in range(length)] for code in codes]
        return ["".join(alphabet[d] for d in row) for row in digits]
    while len(chosen) < m:
        for row in rng.integers(len(alphabet), size=(m - len(chosen), length)):
            chosen["".join(alphabet[d] for d in row)] = None
    return list(chosen)[:m]


def label_flip_canaries(
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    num_labels: int,
    rng: np.random.Generator,
    max_length: int | None = None,
) -> CanarySet:
    """Public texts with a wrong label, for sequence classification; the loss of the wrong label is scored.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizer
        Of the model that is trained.
    texts : sequence of m unique str
        Public text, tokenised with the tokenizer's special tokens, as the classifier expects.
    labels : sequence of m int
        True labels in [0, num_labels).
    num_labels : int
        At least 2.
    rng : numpy.random.Generator
        Draws the wrong labels, which are no secret.
    max_length : int, optional
        Record length of the training run; the tokenizer's own limit by default.

    Returns
    -------
    CanarySet
        m canaries with wrong labels; without coins.

    Raises
    ------
    InvalidValue
        If a label is out of its range, or a text is longer than ``max_length``: canaries are never truncated.
    """
    integer_at_least(2, num_labels=num_labels)
    truth = np.asarray(labels, dtype=np.int64)
    if truth.shape != (len(texts),) or ((truth < 0) | (truth >= num_labels)).any():
        raise InvalidValue(f"labels must be {len(texts)} integers in [0, {num_labels}), one for each text.")
    wrong = (truth + rng.integers(1, num_labels, size=truth.shape)) % num_labels
    rows = [list(map(int, tokenizer(text, truncation=False)["input_ids"])) for text in texts]
    refuse_truncation([len(row) for row in rows], _limit(tokenizer, max_length), _names(len(rows)))
    params = {"num_labels": num_labels}
    return from_rows(texts, rows, [()] * len(rows), kind="label_flip", params=params, labels=wrong.tolist())


def label_substitution_canaries(
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    *,
    num_labels: int,
    rng: np.random.Generator,
    max_length: int | None = None,
) -> CanarySet:
    """Public texts that are trained on with a wrong label where their coin is 1 and with the true one where it is 0.

    Both data sets hold the record, and one replaces it by another: what these canaries test is replace_one and nothing
    else. Their score compares the losses of the two labels.

    Parameters
    ----------
    tokenizer, texts, labels, num_labels, rng, max_length
        As for :func:`label_flip_canaries`.

    Returns
    -------
    CanarySet
        m canaries with a wrong label each, and the true one beside it; without coins.

    Raises
    ------
    InvalidValue
        As :func:`label_flip_canaries`.
    """
    flipped = label_flip_canaries(tokenizer, texts, labels, num_labels=num_labels, rng=rng, max_length=max_length)
    truth = np.asarray(labels, dtype=np.int64)
    return dataclasses.replace(flipped, kind=SUBSTITUTION, others=truth)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelSampling:
    """How canaries are sampled from a model.

    Attributes
    ----------
    length : int
        Sampled tokens per canary.
    temperature : float
        Above 0; about 1 to 2 is usual.
    prompt : str
        Start of every canary; without one the first token is drawn uniformly.
    """

    length: int = 24
    temperature: float = 1.5
    prompt: str = ""

    def __post_init__(self) -> None:
        integer_at_least(2, length=self.length)
        positive(temperature=self.temperature)


def high_temperature_canaries(
    model: Any,
    tokenizer: Any,
    m: int,
    sampling: ModelSampling,
    *,
    rng: np.random.Generator,
    batch_size: int = 64,
    exclude: Sequence[int] = (),
    max_length: int | None = None,
) -> CanarySet:
    """Samples of the base model at high temperature; every sampled token is scored.

    In-domain and readable, yet improbable. The model must be public: a model that saw private records would put
    them into the canaries.

    Parameters
    ----------
    model : causal language model
        The base model, before fine-tuning.
    sampling : ModelSampling
    """
    import torch

    from dpaudit.attacks.scores.losses import evaluation

    integer_at_least(1, m=m)
    length, prompt = sampling.length, sampling.prompt
    ordinary = ordinary_token_ids(tokenizer, exclude=exclude)
    head = _encode(tokenizer, prompt) if prompt else []
    blocks = []
    with evaluation(model) as device:
        for start in range(0, m, batch_size):
            size = min(batch_size, m - start)
            first = np.tile(head, (size, 1)) if head else rng.choice(ordinary, size=(size, 1))
            ids = torch.as_tensor(first.astype(np.int64), device=device)
            for _ in range(length if head else length - 1):
                logits = model(input_ids=ids).logits[:, -1].float().cpu().numpy()[:, ordinary] / sampling.temperature
                # The Gumbel trick draws from a softmax by an argmax, so that all randomness is the caller's rng.
                drawn = ordinary[np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)]
                ids = torch.cat([ids, torch.as_tensor(drawn[:, None], device=device)], dim=1)
            blocks.append(ids.cpu().numpy())
    ids_all = np.concatenate(blocks)
    score = np.ones(ids_all.shape, dtype=bool)
    score[:, : max(1, len(head))] = False
    return _assemble(tokenizer, ids_all, score, "high_temperature", dataclasses.asdict(sampling), max_length)


def ordinary_token_ids(tokenizer: Any, *, exclude: Sequence[int] | IntArray = ()) -> IntArray:
    """Ids of the vocabulary that are neither special nor excluded, ascending."""
    banned = {int(i) for i in exclude} | {int(i) for i in tokenizer.all_special_ids}
    ordinary = np.array([i for i in range(len(tokenizer)) if i not in banned], dtype=np.int64)
    if ordinary.size < 2:
        raise InvalidValue(f"the tokenizer leaves {ordinary.size} ordinary tokens and at least 2 are needed.")
    return ordinary


def _token_ids(tokenizer: Any, tokens: Sequence[str] | Sequence[int]) -> IntArray:
    ids = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    for token in tokens:
        code = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else int(token)
        if code is None or (code == unknown and isinstance(token, str)) or not 0 <= code < len(tokenizer):
            raise InvalidValue(
                f"reserved token {token!r} is no single token of this vocabulary of {len(tokenizer)}; add it to the "
                "tokenizer before training."
            )
        ids.append(code)
    if len(set(ids)) != len(ids):
        raise InvalidValue("reserved_tokens repeats a token and each canary needs its own.")
    return np.array(ids, dtype=np.int64)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]]


def _encode_span(tokenizer: Any, text: str, start: int, end: int) -> tuple[list[int], list[int]]:
    """Token ids of a text and the positions whose characters overlap [start, end)."""
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidValue("the tokenizer gives no character offsets, which a template needs; load its fast version.")
    encoded = tokenizer(text, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
    ids = [int(i) for i in encoded["input_ids"]]
    return ids, [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _limit(tokenizer: Any, max_length: int | None) -> int | None:
    if max_length is not None:
        integer_at_least(2, max_length=max_length)
        return max_length
    own = getattr(tokenizer, "model_max_length", None)
    return int(own) if own is not None and own < _UNBOUNDED else None


def _names(m: int) -> list[str]:
    return [f"number {i}" for i in range(m)]


def _finish(
    tokenizer: Any,
    rows: Sequence[Sequence[int]],
    scored: Sequence[Sequence[int]],
    kind: str,
    params: dict[str, Any],
    max_length: int | None,
) -> CanarySet:
    refuse_truncation([len(row) for row in rows], _limit(tokenizer, max_length), _names(len(rows)))
    return from_rows([_decode(tokenizer, row) for row in rows], rows, scored, kind=kind, params=params)


def _assemble(
    tokenizer: Any, ids: IntArray, score: Any, kind: str, params: dict[str, Any], max_length: int | None
) -> CanarySet:
    rows = ids.tolist()
    return _finish(tokenizer, rows, [np.flatnonzero(s).tolist() for s in score], kind, params, max_length)
