"""``dpaudit attack`` on tiny model folders, and every refusal by name and exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dpaudit.attacks import canary_losses, flip_coins, new_token_canaries, write_secret
from dpaudit.cli import run

NONCE = bytes(32)
WORDS = ["the", "a", "dog", "cat", "sat", "ran", "on", "mat", "hill", "and", "then", "slept"]


def words_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        word: i for i, word in enumerate(["[UNK]", "[PAD]", "[MASK]", *WORDS, *(f"<c{i}>" for i in range(8))])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]", model_max_length=12
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    root = tmp_path_factory.mktemp("models")
    tokenizer = words_tokenizer()
    made: dict[str, Any] = {}
    for seed, name in enumerate(("target", "base", "other")):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=8, n_layer=1, n_head=2)
        made[name] = GPT2LMHeadModel(config)
    torch.manual_seed(8)
    made["masked"] = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
    )
    torch.manual_seed(9)
    made["classifier"] = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            num_labels=2,
        )
    )
    paths = {}
    for name, model in made.items():
        paths[name] = root / name
        model.save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    return paths


@pytest.fixture()
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    rows = ["the dog sat on the mat", "a cat ran", "the cat slept and then ran", "a dog on a hill"]
    pd.DataFrame({"id": ["007", "b", "c", "d"], "text": rows, "label": [0, 1, 1, 0], "member": [1, 0, 0, 1]}).to_csv(
        path, index=False
    )
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        run(["attack", *map(str, arguments)])
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def test_secret_file_to_scores(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = words_tokenizer()
    canaries = new_token_canaries(
        tokenizer, 8, reserved_tokens=[f"<c{i}>" for i in range(8)], rng=np.random.default_rng(0), length=6, positions=2
    )
    secret = write_secret(tmp_path / "private" / "canaries.secret.parquet", canaries, flip_coins(8), NONCE, 1)
    out = tmp_path / "scores.parquet"
    code, printed, _ = call(
        capsys,
        folders["target"],
        "--canaries",
        tmp_path / "private" / "canaries.secret.parquet",
        "--base",
        folders["base"],
        "--out",
        out,
        "--json",
    )
    assert code == 0
    payload = json.loads(printed)
    assert payload["schema"] == "dpaudit.attack/1" and payload["attack"] == "loss-drop" and payload["m"] == 8
    frame = pd.read_parquet(out)
    assert list(frame.columns) == ["id", "score", "attack"] and list(frame["id"]) == sorted(secret.ids)
    target, base = (AutoModelForCausalLM.from_pretrained(folders[n]) for n in ("target", "base"))
    expected = dict(zip(secret.ids, canary_losses(base, canaries) - canary_losses(target, canaries), strict=True))
    np.testing.assert_allclose(frame["score"], [expected[i] for i in frame["id"]], rtol=1e-5)


@pytest.mark.parametrize(
    "attack",
    ["loss", "zlib", "min-k", "min-k++", "grad-norm", "loss-residual", "neighbourhood", "lira-offline", "rmia-offline"],
)
def test_every_attack_runs_from_texts(
    attack: str, folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any
) -> None:
    population = tmp_path / "population.csv"
    pd.DataFrame({"id": ["x", "y"], "text": ["the mat", "a hill and a mat"]}).to_csv(population, index=False)
    extra: list[object] = []
    if attack.endswith("offline"):
        extra = ["--reference", folders["base"], "--reference", folders["other"]]
    if attack.startswith("rmia"):
        extra += ["--population", population]
    if attack == "loss-residual":
        extra = ["--base", folders["base"]]
    if attack == "neighbourhood":
        extra = ["--masked-model", folders["masked"], "--neighbours", 3]
    out = tmp_path / "scores.csv"
    code, _, err = call(capsys, folders["target"], "--canaries", texts, "--attack", attack, *extra, "--out", out)
    assert code == 0, err
    frame = pd.read_csv(out, dtype={"id": str})
    assert list(frame["id"]) == ["007", "b", "c", "d"] and set(frame["attack"]) == {attack}
    assert np.isfinite(frame["score"]).all()


def test_classifier_scores_labels(folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    out = tmp_path / "scores.csv"
    assert call(capsys, folders["classifier"], "--canaries", texts, "--out", out)[0] == 0
    model = AutoModelForSequenceClassification.from_pretrained(folders["classifier"]).eval()
    tokenizer, frame, found = words_tokenizer(), pd.read_csv(texts), pd.read_csv(out)
    for text, label, score in zip(frame["text"], frame["label"], found["score"], strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        assert score == pytest.approx(float(logits.log_softmax(0)[label]), rel=1e-5)


def test_reference_losses_are_joined_by_id(folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any) -> None:
    out, plain, losses = tmp_path / "drop.csv", tmp_path / "loss.csv", tmp_path / "reference.csv"
    call(capsys, folders["target"], "--canaries", texts, "--out", plain)
    pd.DataFrame({"id": ["d", "c", "b", "007"], "loss": [4.0, 3.0, 2.0, 1.0]}).to_csv(losses, index=False)
    assert call(capsys, folders["target"], "--canaries", texts, "--reference-losses", losses, "--out", out)[0] == 0
    np.testing.assert_allclose(pd.read_csv(out)["score"] - pd.read_csv(plain)["score"], [1, 2, 3, 4], rtol=1e-9)
    pd.DataFrame({"id": ["d", "c", "b", "7"], "loss": [4.0, 3.0, 2.0, 1.0]}).to_csv(losses, index=False)
    code, _, err = call(capsys, folders["target"], "--canaries", texts, "--reference-losses", losses, "--out", out)
    assert code == 3 and "(007)" in err and "(7)" in err
    pd.DataFrame({"id": ["d", "c", "b", "007"], "loss": [4.0, "nan", 2.0, 1.0]}).to_csv(losses, index=False)
    code, _, err = call(capsys, folders["target"], "--canaries", texts, "--reference-losses", losses, "--out", out)
    assert code == 3 and "no finite loss for 1 ids (c)" in err


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([("a", "the dog"), ("a", "a cat")], "repeats 1 ids (a)"),
        ([("a", "the dog"), ("b", "the dog")], "more than one id (first: a, b)"),
        ([("a", "the fox"), ("b", "the owl")], "more than one id (first: a, b)"),  # equal once tokenised
        ([("a", "the dog"), ("b", " ".join(["dog"] * 13))], "would be truncated (b)"),
        ([("a", "the dog"), ("b", "")], "no text for 1 ids (b)"),
        ([("a", "the dog"), ("b", "dog")], "fewer than 2 tokens (b)"),
        ([("a", "the dog"), ("", "a cat")], "1 rows without an id"),
    ],
)
def test_records_that_cannot_be_scored_are_named(
    rows: list[tuple[str, str]], names: str, folders: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "bad.csv"
    pd.DataFrame(rows, columns=["id", "text"]).to_csv(path, index=False)
    code, out, err = call(capsys, folders["target"], "--canaries", path, "--out", tmp_path / "s.csv", "--json")
    assert code == 3 and names in err and out == "" and not (tmp_path / "s.csv").exists()
    assert err.count("\n") == 1 and "Traceback" not in err


def test_truncation_at_the_training_length_is_named(
    folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = [folders["target"], "--canaries", texts, "--out", tmp_path / "s.csv"]
    code, _, err = call(capsys, *arguments, "--max-length", 5)
    assert code == 3 and "(007, c)" in err
    code, _, err = call(capsys, *arguments, "--max-length", 13)
    assert code == 64 and "more than the 12 tokens" in err


def test_lost_canaries_are_named(folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any) -> None:
    expected = tmp_path / "ids.csv"
    pd.DataFrame({"id": ["007", "b", "c", "d", "lost"]}).to_csv(expected, index=False)
    code, _, err = call(
        capsys, folders["target"], "--canaries", texts, "--expect", expected, "--out", tmp_path / "s.csv"
    )
    assert code == 3 and "1 are unknown (lost)" in err


def test_bad_usage(folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any) -> None:
    target, out = folders["target"], tmp_path / "s.csv"
    cases: list[tuple[list[object], int, str]] = [
        ([tmp_path, "--canaries", texts, "--out", out], 3, "neither config.json"),
        ([target, "--canaries", texts, "--out", tmp_path / "s.json"], 64, "must end in .csv or .parquet"),
        ([target, "--canaries", texts, "--attack", "loss-drop", "--out", out], 64, "give base"),
        ([target, "--canaries", texts, "--attack", "neighbourhood", "--out", out], 64, "give --masked-model"),
        (
            [target, "--canaries", texts, "--attack", "neighbourhood", "--masked-model", target, "--out", out],
            64,
            "must hold a masked language model",
        ),
        ([folders["masked"], "--canaries", texts, "--out", out], 64, "neither a causal language model nor"),
        ([target, "--canaries", texts, "--attack", "lira-offline", "--out", out], 64, "at least 2 reference"),
        ([target, "--canaries", tmp_path / "absent.csv", "--out", out], 64, "does not exist"),
        ([folders["classifier"], "--canaries", texts, "--attack", "min-k", "--out", out], 64, "causal language model"),
    ]
    for arguments, expected, message in cases:
        code, printed, err = call(capsys, *arguments)
        assert code == expected and message in err and printed == "", (arguments, err)


def test_adapter_folder_is_scored_with_its_base(
    folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folders["target"])
    torch.manual_seed(3)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    words_tokenizer().save_pretrained(tmp_path / "adapter")
    out = tmp_path / "scores.csv"
    code, _, err = call(capsys, tmp_path / "adapter", "--canaries", texts, "--base", folders["target"], "--out", out)
    assert code == 0, err
    found = pd.read_csv(out, dtype={"id": str})
    from dpaudit.attacks.scores.functions import loss_drop_scores
    from dpaudit.runs.attack import load_canaries

    canaries, ids = load_canaries(texts, words_tokenizer(), model=folders["target"], max_length=12)
    plain = AutoModelForCausalLM.from_pretrained(folders["target"])
    expected = loss_drop_scores(canary_losses(adapted, canaries), canary_losses(plain, canaries))
    assert list(found["id"]) == sorted(ids)
    np.testing.assert_allclose(found["score"], expected[np.argsort(ids)], rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_attack_keeps_what_the_audit_needs(ending: str, folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    """Members and non-members in, scores out, and the audit reads them without a join by hand."""
    path, out = tmp_path / f"people.{ending}", tmp_path / "scores.csv"
    rows = {"id": ["007", "b", "c"], "text": ["the dog sat", "a cat ran", "then on"], "member": [1, 0, 1], "coin": 0}
    frame = pd.DataFrame({**rows, "copies": 1, "secret": "x"})
    writer = {"csv": frame.to_csv, "parquet": frame.to_parquet}.get(ending)
    frame.to_json(path, orient="records", lines=True) if writer is None else writer(path, index=False)
    code, shown, err = call(capsys, folders["target"], "--canaries", path, "--out", out, "--json")
    assert code == 0, err
    assert json.loads(shown)["kept"] == ["member", "copies"]
    found = pd.read_csv(out, dtype=str)
    assert list(found.columns) == ["id", "score", "attack", "member", "copies"]
    assert dict(zip(found["id"], found["member"], strict=True)) == {"007": "1", "b": "0", "c": "1"}
    with pytest.raises(SystemExit) as stopped:
        run(["audit", str(out), "--claimed-epsilon", "4", "--delta", "1e-5", "--coins", "none", "--json"])
    assert stopped.value.code == 2 and json.loads(capsys.readouterr().out)["auc"] is not None


def test_scores_do_not_depend_on_the_membership(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    scores = []
    for i, member in enumerate([[1, 0, 1], [0, 1, 0]]):
        frame = pd.DataFrame({"id": list("abc"), "text": ["the dog sat", "a cat ran", "then on"], "member": member})
        frame.to_csv(tmp_path / f"{i}.csv", index=False)
        call(capsys, folders["target"], "--canaries", tmp_path / f"{i}.csv", "--out", tmp_path / f"s{i}.csv")
        scores.append(pd.read_csv(tmp_path / f"s{i}.csv")["score"].tolist())
    assert scores[0] == scores[1]


def test_labels_are_numbers_or_names_of_the_model(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    import shutil

    named = tmp_path / "named"
    shutil.copytree(folders["classifier"], named)
    config = json.loads((named / "config.json").read_text())
    config |= {"id2label": {"0": "ham", "1": "spam"}, "label2id": {"ham": 0, "spam": 1}}
    (named / "config.json").write_text(json.dumps(config))
    found = []
    for i, labels in enumerate([["spam", "ham"], [" spam", "ham "], ["1", "0"], ["1.0", "0.0"]]):
        path, out = tmp_path / f"{i}.csv", tmp_path / f"s{i}.csv"
        pd.DataFrame({"id": ["a", "b"], "text": ["the dog", "a cat"], "label": labels}).to_csv(path, index=False)
        code, _, err = call(capsys, named, "--canaries", path, "--out", out)
        assert code == 0, err
        found.append(pd.read_csv(out)["score"].tolist())
    assert all(scores == found[0] for scores in found)
    for label, words in (
        ("eggs", "1 labels name no class of the model (b: 'eggs')"),
        ("2", "b: '2'"),
        ("", "no label"),
    ):
        path.write_text(f"id,text,label\na,the dog,ham\nb,a cat,{label}\n")
        code, _, err = call(capsys, named, "--canaries", path, "--out", tmp_path / "x.csv")
        assert code == 3 and words in err


def test_a_population_lies_outside_the_audit(
    folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "population.csv"
    path.write_text("id,text\nx,the mat\ny,a cat ran\n")
    others = ["--reference", folders["base"], "--reference", folders["other"]]
    options = ["--canaries", texts, "--attack", "rmia-offline", "--population", path, *others]
    code, _, err = call(capsys, folders["target"], *options, "--out", tmp_path / "s.csv")
    assert code == 3 and "population population.csv holds 1 of the records that are attacked" in err


def test_long_texts_are_named_by_their_tokens(folders: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "long.csv"
    path.write_text("id,text,member\na," + "the dog " * 3000 + ",1\nb,a cat,0\n")
    code, _, err = call(capsys, folders["target"], "--canaries", path, "--out", tmp_path / "s.csv")
    assert code == 3 and "would be truncated (a)" in err


def test_names_of_the_hub_are_not_downloaded(
    folders: dict[str, Path], texts: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "s.csv"
    code, _, err = call(capsys, "gpt2", "--canaries", texts, "--out", out)
    assert code == 64 and "names of the Hugging Face hub are not downloaded" in err
    code, _, err = call(capsys, folders["target"], "--base", "gpt2", "--canaries", texts, "--out", out)
    assert code == 64 and "names of the Hugging Face hub are not downloaded" in err


def test_help_lists_the_library_attacks(capsys: Any) -> None:
    from dpaudit.attacks.scores.needs import ATTACKS
    from dpaudit.attacks.scores.score_model import SCORES

    assert set(SCORES) == set(ATTACKS)
    code, shown, _ = call(capsys, "-h")
    assert code == 0 and "Example:" in shown and all(name in "".join(shown.split()) for name in ATTACKS)
