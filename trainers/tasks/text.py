"""From texts to records: prompts with one mask, tables and dialogues with the loss on the target alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import InvalidValue
from dpaudit.trainers.modes import evaluating
from dpaudit.trainers.tasks.losses import IGNORED, classification_losses
from dpaudit.trainers.tasks.prompts import PROMPTS, logits_at_the_mask

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Infilling:
    """Classification as text infilling: a prompt with one mask, and a word for each class (Li et al. 2110.05679, §3).

    It uses the pretrained output layer, so that no head starts at random, which helps private training most. A mask
    that stands in a text itself is left out of the prompt, so that each prompt has one, whatever its text.

    Parameters
    ----------
    tokenizer : tokenizer
        Of a masked language model.
    template : str
        Holds ``<mask>`` once and ``{0}``, ``{1}`` for the texts.
    words : tuple of str
        One word per class; each must be ONE token after the template's space.

    Raises
    ------
    InvalidValue
        If the template has not one ``<mask>`` and ``{0}``, the tokenizer has no mask token, or a word is not one
        known token.
    """

    tokenizer: Any
    template: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.template.count("<mask>") != 1:
            raise InvalidValue(
                f"template={self.template!r} holds <mask> {self.template.count('<mask>')} times and must hold it once."
            )
        try:
            self.template.format(*[""] * len(self.words))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise InvalidValue(
                f"template={self.template!r} must hold {{0}} for the text, {{1}} for a second one, and no other braces."
            ) from error
        if getattr(self.tokenizer, "mask_token_id", None) is None:
            raise InvalidValue("the tokenizer has no mask token; text infilling needs a masked language model.")
        for word, token in zip(self.words, self.label_tokens, strict=True):
            if token is None or token == self.tokenizer.unk_token_id:
                raise InvalidValue(f"words: {word!r} is not one known token; choose another word for its class.")

    @classmethod
    def named(cls, tokenizer: Any, task: str) -> Infilling:
        """The prompt of a known task, such as "sst-2", "mnli" or "trec".

        Parameters
        ----------
        tokenizer : tokenizer
            Of a masked language model.
        task : str
            One of the tasks in ``PROMPTS``.

        Returns
        -------
        Infilling
            With the prompt and words of Gao et al. (2012.15723).

        Raises
        ------
        InvalidValue
            If the task is unknown, or a word is no single token here.
        """
        if task not in PROMPTS:
            raise InvalidValue(f"task={task!r} is unknown; choose one of {', '.join(sorted(PROMPTS))}.")
        return cls(tokenizer, *PROMPTS[task])

    @property
    def label_tokens(self) -> tuple[Any, ...]:
        """Token id of each class's word; None where it is not one token."""
        found = []
        for word in self.words:
            # Byte-level tokenizers distinguish " word" from "word" and the template has a space before the mask, so the
            # word is tried with a space first.
            options = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
            found.append(next((ids[0] for ids in options if len(ids) == 1), None))
        return tuple(found)

    def encode(self, texts: Sequence[str], label: int, *, length: int) -> Record:
        """One record of at most ``length`` tokens; the texts are cut, the template and its mask never.

        Parameters
        ----------
        texts : sequence of str
            One for each place in the template.
        label : int
            Position of the class in ``words``.
        length : int
            Tokens of the record, at most.

        Returns
        -------
        dict
            ``input_ids`` (list of int) and ``labels`` (int).

        Raises
        ------
        InvalidValue
            If the label is out of range, or the template alone takes more than ``length`` tokens.
        """
        tokenizer = self.tokenizer
        if not 0 <= label < len(self.words):
            raise InvalidValue(f"label={label} must be in [0, {len(self.words)}); give each class a word.")
        fixed = len(tokenizer(self.prompt([""] * len(texts)))["input_ids"])
        room = length - fixed
        if room < len(texts):
            raise InvalidValue(f"length={length} must be >= {fixed + len(texts)}, the template's own tokens; raise it.")
        parts = [tokenizer(self._without_mask(text), add_special_tokens=False)["input_ids"] for text in texts]
        while sum(map(len, parts)) > room:
            longest = max(range(len(parts)), key=lambda i: len(parts[i]))
            parts[longest] = parts[longest][:-1]
        while True:
            # Joined text may take a token more than its parts, so the cut is checked on the whole.
            ids = tokenizer(self.prompt([tokenizer.decode(part) for part in parts]))["input_ids"]
            if len(ids) <= length:
                return {"input_ids": ids, "labels": label}
            longest = max(range(len(parts)), key=lambda i: len(parts[i]))
            parts[longest] = parts[longest][:-1]

    def collate(self, records: list[Record]) -> dict[str, Tensor]:
        """Right-padded ``input_ids`` and ``attention_mask``, and ``labels`` (B,) as positions in ``words``.

        Parameters
        ----------
        records : list of dict
            As :meth:`encode` makes them.

        Returns
        -------
        dict of str to Tensor
            int64 tensors (B, T), and ``labels`` (B,).
        """
        batch = pad_labelled([{"input_ids": r["input_ids"]} for r in records], pad=self.tokenizer.pad_token_id)
        batch["labels"] = torch.tensor([r["labels"] for r in records])
        return batch

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(B,) cross-entropies over the class words at the mask; a ``loss_fn`` for ``train``.

        Parameters
        ----------
        model : nn.Module
            A masked language model.
        batch : mapping of Tensor
            As :meth:`collate` makes it.

        Returns
        -------
        fp32 Tensor of shape (B,)
            In nats.
        """
        return classification_losses(self.class_logits(model, batch), batch["labels"])

    def class_logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, classes) logits of the class words at the mask; see ``logits_at_the_mask``.

        Parameters
        ----------
        model : nn.Module
            A masked language model.
        batch : mapping of Tensor
            As :meth:`collate` makes it; ``labels`` are not read.

        Returns
        -------
        Tensor of shape (B, classes)
            In the order of ``words``.
        """
        mask = self.tokenizer.mask_token_id
        return logits_at_the_mask(model, batch, mask_token=mask, words=list(self.label_tokens))

    def prompt(self, texts: Sequence[str]) -> str:
        """The template with its mask and these texts filled in, whole.

        Parameters
        ----------
        texts : sequence of str
            One for each place in the template.

        Returns
        -------
        str
            Not cut to any length.
        """
        template = self.template.replace("<mask>", str(self.tokenizer.mask_token))
        return template.format(*map(self._without_mask, texts))

    def _without_mask(self, text: str) -> str:
        while self.tokenizer.mask_token in text:  # what is left may join to another one
            text = text.replace(self.tokenizer.mask_token, "")
        return text


def linearise_table(fields: Mapping[str, str]) -> str:
    """A table in one line, as the E2E and DART baselines write it.

    >>> linearise_table({"name": "Alimentum", "food": "Italian"})
    'name : Alimentum | food : Italian'
    """
    return " | ".join(f"{key} : {value}" for key, value in fields.items())


def encode_pair(tokenizer: Any, source: str, target: str, *, length: int) -> Record:
    """Source, separator, target, end: labels count on the target (and the end) alone.

    The SOURCE is cut from the left to ``length``, then the target from the right: what is learned stays whole longest.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InvalidValue("the tokenizer has no eos_token, which ends every target; set one.")
    head = tokenizer(source, add_special_tokens=False)["input_ids"]
    tail = [*tokenizer(f" {target}" if source else target, add_special_tokens=False)["input_ids"], end]
    tail = tail[: length - 1]
    room = length - 1 - len(tail)
    head = head[-room:] if room > 0 else []
    ids = [*head, end, *tail]  # the end token that exists separates the two, since a new token would be untrained
    return {"input_ids": ids, "labels": [IGNORED] * (len(head) + 1) + tail}


def encode_table(tokenizer: Any, fields: Mapping[str, str], text: str, *, length: int = 128) -> Record:
    """A table-to-text record: the table as the source, the sentence as the target."""
    return encode_pair(tokenizer, linearise_table(fields), text, length=length)


def encode_dialogue(
    tokenizer: Any, persona: Sequence[str], history: Sequence[str], reply: str, *, length: int = 256
) -> Record:
    """A dialogue record: persona and turns as the source (oldest cut first), the reply as the target."""
    turns = [f"{'You' if (len(history) - i) % 2 == 0 else 'Other'}: {turn}" for i, turn in enumerate(history)]
    source = "\n".join([*(f"persona: {line}" for line in persona), *turns, "You:"])
    return encode_pair(tokenizer, source, reply, length=length)


def pad_labelled(records: list[Record], *, pad: int | None) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and, where records have them, token ``labels``.

    Parameters
    ----------
    records : list of mapping
        Each with ``input_ids`` and, in all of them or in none, token ``labels`` of the same length.
    pad : int or None
        Token id to fill with; 0 for None, which the mask hides.

    Returns
    -------
    dict of str to Tensor
        int64 tensors (B, T) with T the longest record; labels are filled with −100, which losses skip.
    """
    width = max([1, *(len(r["input_ids"]) for r in records)])

    def padded(key: str, fill: int) -> Tensor:
        return torch.tensor([list(r[key]) + [fill] * (width - len(r[key])) for r in records], dtype=torch.long)

    batch = {"input_ids": padded("input_ids", 0 if pad is None else pad)}
    lengths = torch.tensor([len(r["input_ids"]) for r in records])
    batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
    if all("labels" in r for r in records):
        batch["labels"] = padded("labels", IGNORED)
    return batch


@torch.no_grad()
def complete(
    model: nn.Module, tokenizer: Any, sources: Sequence[str], *, max_new_tokens: int = 64, num_beams: int = 1
) -> list[str]:
    """Targets that a model writes for sources encoded as by :func:`encode_pair`, one by one, greedily or by beams."""
    generator: Any = model
    device, written = next(model.parameters()).device, []
    with evaluating(model):
        for source in sources:
            ids = [*tokenizer(source, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            prompt = torch.tensor([ids], device=device)
            out = generator.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            written.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip())
    return written
