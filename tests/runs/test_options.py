"""Keys that change how a run is computed, never what it guarantees: schedule, precision, device, adapters' layers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpaudit import InvalidValue
from dpaudit.runs.config import Config, parse_config, with_device
from dpaudit.runs.encoding import loss_function
from dpaudit.runs.run import begin
from dpaudit.runs.sources import on_device, select_trainable
from dpaudit.runs.stated import owners_words
from dpaudit.trainers import OptimizerSettings
from tests.runs.run_helpers import EXAMPLES, small_config


def config(**changes: Any) -> Config:
    return parse_config(small_config(**changes), "c.toml")


def test_schedules_end_at_zero_and_begin_at_the_rate() -> None:
    for schedule, middle in (("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)):
        settings = OptimizerSettings(learning_rate=2.0, schedule=schedule)
        assert settings.rate(0, 10) == pytest.approx(2.0)
        assert settings.rate(5, 10) == pytest.approx(2.0 * middle)
        assert settings.rate(10, 10) == pytest.approx(2.0 if schedule == "constant" else 0.0)
    # A quarter of a cosine: (1 + cos(pi / 4)) / 2.
    assert OptimizerSettings(learning_rate=1.0, schedule="cosine").rate(25, 100) == pytest.approx(0.8535533905932737)


def test_low_precision_is_of_passes_alone() -> None:
    from transformers import AutoModelForCausalLM

    from dpaudit.trainers import pad_tokens

    model = AutoModelForCausalLM.from_pretrained(EXAMPLES / "model", dtype=torch.float32).eval()
    batch, found = pad_tokens([[5, 6, 7, 8], [9, 10]]), {}
    for precision in ("fp32", "bf16"):
        losses = loss_function(SimpleNamespace(config=config(optimizer__precision=precision), tokenizer=None))(
            model, batch
        )  # type: ignore[arg-type]
        assert losses.dtype == torch.float32 and losses.shape == (2,)
        found[precision] = losses.detach()
    assert 0 < (found["fp32"] - found["bf16"]).abs().max() < 0.1


def test_a_device_that_is_not_here_is_one_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(InvalidValue, match=r"optimizer.device='cuda' cannot be used here"):
        on_device(torch.nn.Linear(1, 1), with_device(config(), "cuda"))
    with pytest.raises(InvalidValue, match=r"--device: optimizer.device='gpu'"):
        with_device(config(), "gpu")
    assert with_device(config(), None) == config()


def test_a_run_may_go_on_on_another_device_and_not_with_another_rate(tmp_path: Path) -> None:
    first = begin(config(), tmp_path, tmp_path / "run")
    (first.folder.root / "release").mkdir(exist_ok=True)
    moved = begin(with_device(config(), "cuda"), tmp_path, tmp_path / "run")
    assert moved.config.optimizer.device == "cuda" and moved.record.config_sha256 == first.record.config_sha256
    other = begin(config(optimizer__learning_rate=0.5), tmp_path, tmp_path / "run")
    assert other.record.config_sha256 != first.record.config_sha256  # no step was taken yet, so it begins anew


def test_adapters_go_where_the_configuration_says() -> None:
    pytest.importorskip("peft")
    from transformers import GPT2Config, GPT2LMHeadModel

    chosen = {
        "model__trainable": "lora",
        "model__lora_rank": 2,
        "model__lora_alpha": 6,
        "canaries__kind": "random-token",
    }
    net = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8))
    adapted = select_trainable(net, config(**chosen, model__lora_targets=["c_fc"]))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all(".c_fc." in name for name in trained)
    layer = next(m for m in adapted.modules() if isinstance(getattr(m, "scaling", None), dict) and m.scaling)
    assert layer.scaling == {"default": 3.0}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model__lora_targets": ["c_fc"]}, 'lora_targets needs model.trainable="lora"'),
        (
            {"optimizer__schedule": "cosine", "privacy__method": "dp-zoso"},
            "has no effect with privacy.method='dp-zoso'",
        ),
        ({"optimizer__schedule": "step"}, "optimizer.schedule='step'"),
    ],
)
def test_what_has_no_effect_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence):
        config(**change)


def test_what_the_owner_states_and_leaves_out_is_told() -> None:
    value = small_config() | {"statement": {"model": "mail-writer 1.2", "contact": "a@b.org"}}
    record = SimpleNamespace(created="2026-11-26T10:00:00Z")
    words = owners_words(parse_config(value, "c.toml"), record)  # type: ignore[arg-type]
    stated = words["stated_by_owner"]
    assert stated["standing"] == "stated by the owner, not checked"
    assert stated["model"] == "mail-writer 1.2" and "previous_releases" in stated["not_stated"]
    assert words["run_began"] == "2026-11-26"
    assert set(stated["not_stated"]) | {"model", "contact"} == set(
        Config.model_fields["statement"].annotation.model_fields
    )  # type: ignore[union-attr]
    assert tomllib.loads('[statement]\nmodel = "x"')["statement"] == {"model": "x"}
