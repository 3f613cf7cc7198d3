"""Every block of Python in the pages runs, with the names that its page leaves to the reader made up here.

A page's blocks share one namespace, in order. A page without a prelude runs on its own.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from dpaudit.cli import COMMANDS, main
from tests import ROOT

DOCS = ROOT / "docs"
Space = dict[str, Any]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def pages(language: str) -> list[str]:
    found = [p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts and blocks(p, language)]
    return [str(p.relative_to(DOCS)) for p in found]


def language_model(vocabulary: int = 64) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=vocabulary, n_positions=32)
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.0
    return GPT2LMHeadModel(config)


def token_records(n: int = 40) -> list[dict[str, Any]]:
    rows = [[3 + i % 50, 5, 7 + i % 4, 2] for i in range(n)]
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in rows]


def collate(rows: list[Any]) -> Any:
    from dpaudit.trainers import pad_tokens

    return pad_tokens([row["input_ids"] for row in rows])


def smaller(text: str) -> str:
    """A page's run with the numbers of a run that takes a moment."""
    for pattern, value in (
        (r"public_size=[\d_]+", "public_size=40"),
        (r"expected_batch_size=[\d_]+", "expected_batch_size=8"),
        (r"(\b|max_)steps=[\d_]+", r"\1steps=14"),
        (r'report_to=\["mlflow"\]', "report_to=[], use_cpu=True"),
        (r'TrainingArguments\("out", per_device', 'TrainingArguments("out", use_cpu=True, report_to=[], per_device'),
    ):
        text = re.sub(pattern, value, text)
    return text.replace("1000", "40") if "new_token_canaries" in text else text


def _attacks() -> Space:
    import numpy as np
    from transformers import AutoTokenizer

    return {
        "tokenizer": AutoTokenizer.from_pretrained(ROOT / "examples" / "model"),
        "publish_before_training": lambda digest: None,
        "records": [],
        "model": language_model(5120),
        "base_model": language_model(5120),
        "train_one": lambda members, seed: np.random.default_rng(seed).normal(members.astype(float)),
        "target_signal": np.zeros(6),
    }


def _audits() -> Space:
    import numpy as np

    coins = np.random.default_rng(0).integers(0, 2, 1000)
    ids = [f"c{i}" for i in range(1000)]
    scores = np.random.default_rng(1).normal(coins * 0.1)
    leaky = {"leaky_ids": [f"l{i}" for i in range(1000)], "leaky_scores": coins * 9.0, "leaky_coins": coins == 1}
    return {"ids": ids, "scores": scores, "coins": coins, "digest": "0" * 64, **leaky}


def _training() -> Space:
    space: Space = {"model": language_model(), "records": [r["input_ids"] for r in token_records()], "collate": collate}
    space["__between__"] = lambda: space.update(records=token_records())  # the trainer's records are mappings
    return space


def _trainer() -> Space:
    return {"model": language_model(), "records": token_records(), "collator": collate}


def _ghost() -> Space:
    import torch

    from dpaudit.trainers import GhostClipping, causal_lm_losses, pad_tokens

    batch = pad_tokens([[3, 4, 5], [6, 7]])
    model = language_model()
    space: Space = {
        "model": model,
        "draws": [batch],
        "loss_of_each_example": lambda model, batch: causal_lm_losses(model, **batch),
        "sum_of_each_persons_losses": lambda model, batch: causal_lm_losses(model, **batch).sum().reshape(1),
        "owner_of_each_row": torch.zeros(2, dtype=torch.long),
    }
    space["__between__"] = lambda: space.update(clipper=GhostClipping(model, max_grad_norm=0.1))
    return space


def _zeroth_order() -> Space:
    from dpaudit.trainers import causal_lm_losses, pad_tokens

    return {
        "model": language_model(),
        "records": [r["input_ids"] for r in token_records()],
        "collate": lambda rows: pad_tokens(rows, length=8),
        "loss_fn": lambda model, batch: causal_lm_losses(model, **batch),
        "path": Path("zo_log.jsonl"),
    }


def _ledgers() -> Space:
    from dpaudit.certificates import DiskJournal
    from dpaudit.trainers import PrivacyPlan

    plan = PrivacyPlan(
        delta=1e-5, relation="add_or_remove_one", sampling="poisson", unit="record", public_size=100,
        expected_batch_size=10, steps=3, clipping_norm=1.0, noise_multiplier=2.0,
    )  # fmt: skip
    for name in ("first", "second"):
        Path(name).mkdir()
        told = {"relation": "add_or_remove_one", "unit": "record", "max_records_per_unit": 1}
        with DiskJournal(Path(name) / "ledger.jsonl", **told, audit_plan_sha256=None) as journal:  # type: ignore[arg-type]
            journal.begin(plan.stage(0))
            journal.count()
    return {"first": Path("first"), "second": Path("second")}


def _any_run() -> Space:
    """The training between the two blocks: weights and scores."""
    import numpy as np
    import pandas as pd

    class Texts(list[str]):
        pass

    space: Space = {"texts": Texts(f"canary {i}" for i in range(60))}

    def trained() -> None:
        release, ids = space["release"], space["ids"]
        (release / "model" / "weights.bin").write_bytes(b"weights")
        scores = np.random.default_rng(0).normal(size=len(ids))
        pd.DataFrame({"id": ids, "score": scores}).to_parquet(release / "scores.parquet", index=False)

    space["__between__"] = trained
    return space


def _jax() -> Space:
    import dp_accounting

    space = _any_run_done()
    event = dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.2))
    return {**space, "plan_event": dp_accounting.SelfComposedDpEvent(event, 100)}


def _any_run_done() -> Space:
    """A release folder and ``private/manifest.json`` as the page on any run makes them."""
    space = _any_run()
    exec(blocks(DOCS / "howto" / "any_run.md", "python")[0], space)
    space["__between__"]()
    Path("private").mkdir(exist_ok=True)
    (Path("private") / "manifest.json").write_bytes((space["private"] / "manifest.json").read_bytes())
    return space


def _certified() -> Space:
    from dpaudit.certificates import read_certificate
    from tests.certificates.certificate_run import release

    path = release(Path("release"))
    folder = Path("model")
    folder.mkdir(exist_ok=True)
    Path("README.md").write_text("# A model\n")
    return {"certificate": read_certificate(path), "model_folder": folder, "readme": Path("README.md"), "series": {}}


def _fastdp() -> Space:
    from types import SimpleNamespace

    return {"engine": SimpleNamespace(noise_multiplier=1.1, sampling_rate=0.02), "steps_executed": 100}


PRELUDES: dict[str, Callable[[], Space]] = {
    "explanation/ghost_clipping.md": _ghost,
    "explanation/ledger.md": _ledgers,
    "explanation/zeroth_order.md": _zeroth_order,
    "howto/any_run.md": _any_run,
    "howto/attacks.md": _attacks,
    "howto/audits.md": _audits,
    "howto/fastdp.md": _fastdp,
    "howto/jax_privacy.md": _jax,
    "howto/lora.md": lambda: {"model": language_model()},
    "howto/publish.md": _certified,
    "howto/trainer.md": _trainer,
    "howto/training.md": _training,
    "howto/verify.md": _certified,
}
NEEDS = {
    "howto/lora.md": "peft",
    "howto/publish.md": "mlflow",
    "howto/jax_privacy.md": "dp_accounting",
    "howto/opacus.md": "opacus",
    "howto/verify.md": "cryptography",
}


@pytest.mark.parametrize("page", pages("python"))
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(DOCS / page, "python")
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    space: Space = PRELUDES.get(page, dict)()
    for block in found:
        exec(compile(smaller(block), page, "exec"), space)
        if "__between__" in space:
            space.pop("__between__")()


@pytest.mark.parametrize("page", pages("toml"))
def test_toml_is_a_policy_or_part_of_a_configuration(page: str, tmp_path: Path) -> None:
    import dataclasses

    from dpaudit.certificates.policy import Policy
    from dpaudit.runs.config import Config

    policy = {field.name for field in dataclasses.fields(Policy)}
    for block in blocks(DOCS / page, "toml"):
        value = tomllib.loads(block)
        for section, keys in value.items():
            if section in policy:
                continue
            annotation = Config.model_fields[section].annotation
            model = next(m for m in getattr(annotation, "__args__", (annotation,)) if isinstance(m, type))
            assert set(keys) <= set(model.model_fields), f"{page}: [{section}]"  # type: ignore[attr-defined]


def commands() -> list[tuple[str, str]]:
    """Every command line that a page or the README shows: page and line, continued lines joined."""
    found = []
    for page in [ROOT / "README.md", *(p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts)]:
        for language in ("text", "bash"):
            for block in blocks(page, language):
                for line in block.replace("\\\n", " ").splitlines():
                    if re.match(r"(\$ )?(\.venv/bin/)?dpaudit \w+", line):
                        found.append((page.name, re.sub(r"^(\$ )?(\.venv/bin/)?", "", line.split("#")[0]).strip()))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_command_lines_are_accepted(page: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the command itself, which is not called; files that a line names are there."""
    import shlex

    monkeypatch.chdir(tmp_path)
    _, name, *rest = shlex.split(line)
    assert name in COMMANDS, f"{page}: {line}"
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for word in rest:
        if not word.startswith("-") and not re.fullmatch(r"[\w.=,%-]*=.*", word) and ":" not in word:
            path = tmp_path / word
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.mkdir() if not path.suffix else path.write_text("")
    command.make_context(name, rest)
