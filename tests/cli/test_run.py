"""The main job through the command line: train, certify, resume, refuse."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from dpaudit.storage.journal import read_journal
from tests.runs.run_helpers import EXAMPLES, run_cli, small_config, write_toml


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, certified."""
    folder = tmp_path_factory.mktemp("certified")
    outcome = run_cli("certify", write_toml(folder / "c.toml", small_config()), "--out", folder / "run", "--json")
    assert outcome.code == 2 and outcome.json["verdict"] == "inconclusive" and outcome.json["power"] is None
    return folder / "run"


def test_a_certified_run_holds_what_it_should(certified: Path) -> None:
    release = certified / "release"
    names = {str(p.relative_to(release)) for p in release.rglob("*") if p.is_file()}
    assert {"audit_plan.json", "ledger.jsonl", "scores.parquet", "certificate.json", "report.html"} <= names
    assert "model/model.safetensors" in names and not any("open" in n or "tmp" in n for n in names)
    assert stat.S_IMODE((certified / "private" / "canaries.secret.parquet").stat().st_mode) == 0o600
    assert json.loads((certified / "run.json").read_text())["status"] == "certified"
    assert read_journal(release / "ledger.jsonl").ledger.steps == 4


def test_the_page_of_a_run_says_what_was_declared_and_that_nobody_signed(certified: Path) -> None:
    release = certified / "release"
    body = json.loads((release / "certificate.json").read_text())["predicate"]
    records = body["provenance"]["records"]
    assert (records["limit"], records["limit_by"]) == (60, "first")
    assert records["inserted"] == sum(row[1] for row in body["audit"]["canaries"])
    page = (release / "report.html").read_text()
    assert f"{records['declared']:,}, as declared" in page and "Unsigned" in page
    assert "unsigned" in (release / "model_card.md").read_text()


def test_the_plan_was_fixed_before_the_ledger_opened(certified: Path) -> None:
    import hashlib

    plan = (certified / "release" / "audit_plan.json").read_bytes()
    record = read_journal(certified / "release" / "ledger.jsonl")
    assert record.audit_plan_sha256 == hashlib.sha256(plan).hexdigest()
    assert (certified / "release" / "audit_plan.json").stat().st_mtime_ns <= (
        certified / "release" / "model" / "model.safetensors"
    ).stat().st_mtime_ns


def test_verify_re_derives_it_and_a_second_certify_gives_the_same_bytes(certified: Path, tmp_path: Path) -> None:
    release = certified / "release"
    verified = run_cli("verify", release / "certificate.json", "--json")
    assert verified.code == 2
    pages = {s["name"]: s["result"] for s in verified.json["steps"] if s["name"].startswith("page ")}
    expected = ("model/privacy.json", "model_card.md", "report.html")
    assert pages == {f"page {name}": "recomputed and equal" for name in expected}
    before = {path: path.read_bytes() for path in release.rglob("*") if path.is_file()}
    elsewhere = shutil.copytree(certified, tmp_path / "another name")
    for folder in (certified, elsewhere):
        assert run_cli("certify", folder).code == 2
    for path, content in before.items():
        assert path.read_bytes() == content
        assert (elsewhere / path.relative_to(certified)).read_bytes() == content


def test_the_reproduction_command_is_one_that_the_command_line_takes(certified: Path) -> None:
    from dpaudit.cli import main

    body = json.loads((certified / "release" / "certificate.json").read_text())["predicate"]
    program, *arguments = body["reproduction"].split()
    assert program == "dpaudit"
    name, command, rest = main.resolve_command(main.make_context("dpaudit", arguments), arguments)
    assert name == "certify" and command is not None
    assert command.make_context(name, list(rest)).params["source"] == Path("CONFIG.toml")


def test_one_changed_byte_of_evidence_fails_loudly(certified: Path) -> None:
    release = certified / "release"
    for name in ("certificate.json", "ledger.jsonl", "scores.parquet", "model/model.safetensors", "audit_plan.json"):
        path = release / name
        good = path.read_bytes()
        changed = bytearray(good)
        changed[len(good) // 2] ^= 1
        path.write_bytes(bytes(changed))
        try:
            assert run_cli("verify", release / "certificate.json").code == 3, name
        finally:
            path.write_bytes(good)
    assert run_cli("verify", release / "certificate.json").code == 2


def test_the_release_holds_no_coin_in_scores_and_no_text_in_the_certificate(certified: Path) -> None:
    import pyarrow.parquet as pq

    from dpaudit.attacks import read_secret

    assert pq.read_schema(certified / "release" / "scores.parquet").names == ["id", "score", "attack"]
    secret = read_secret(certified / "private" / "canaries.secret.parquet")
    published = (certified / "release" / "certificate.json").read_text()
    assert not any(text in published for text in secret.canaries.texts)
    assert all(i in published for i in secret.ids)


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"claim__epsilon": None}, "claim.epsilon"),
        ({"claim__delta": 1.0}, "claim.delta"),
        ({"claim__relation": "neighbours"}, "claim.relation"),
        ({"privacy__sampler": "shuffle"}, "privacy.sampler"),
        ({"privacy__steps": "ten"}, "privacy.steps"),
        ({"privacy__expected_batch_size": 61}, "expected_batch_size=61 must be <= privacy.public_size=60"),
        ({"privacy__public_size": None}, "privacy.public_size: field required; add the number of private records"),
        ({"privacy__public_size": 0}, "privacy.public_size"),
        ({"data__path": "missing.txt"}, "missing.txt"),
        ({"model__path": "package:no_such_package/model"}, "no_such_package"),
        ({"canaries__length": 20}, "max_length"),
        ({"model__trainable": "lora"}, "random-token"),
        ({"canaries__count": 5000}, "reserved tokens"),
        ({"privacy__noise_multiplier": 0.3}, "epsilon"),
        ({"privacy__calibrate_with": "prv"}, "calibrate_with"),
    ],
)
def test_bad_configurations_are_one_sentence(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    outcome = run_cli("certify", write_toml(tmp_path / "c.toml", small_config(**changes)), "--out", tmp_path / "run")
    assert outcome.code == 64 and word in outcome.error and "\n" not in outcome.error


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("a text\n\nanother\n")
    outcome = run_cli(
        "train",
        write_toml(tmp_path / "c.toml", small_config(data__path=str(tmp_path / "empty.txt"))),
        "--out",
        tmp_path / "r",
    )
    assert outcome.code == 64 and "line 2 is an empty text" in outcome.error
    (tmp_path / "bad.toml").write_text("[claim\n")
    assert run_cli("train", tmp_path / "bad.toml", "--out", tmp_path / "x").code == 64
    assert run_cli("train", tmp_path / "none.toml", "--out", tmp_path / "x").code == 64
    assert run_cli("certify", tmp_path).code == 3
    assert run_cli("certify", EXAMPLES / "certify.toml").code == 64


@pytest.mark.parametrize(
    "name, content", [("a.txt.xz", b"no xz"), ("a.txt", b"\xff\xfe\xff"), ("a.csv", b"text\n\xff\n")]
)
def test_a_broken_data_file_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    config = write_toml(tmp_path / "c.toml", small_config(data__path=str(tmp_path / name)))
    outcome = run_cli("train", config, "--out", tmp_path / "r")
    assert outcome.code == 64 and name in outcome.error and "\n" not in outcome.error


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    config = write_toml(tmp_path / "c.toml", small_config(model__path=str(tmp_path)))
    outcome = run_cli("train", config, "--out", tmp_path / "r")
    assert outcome.code == 64 and "model.path" in outcome.error and "\n" not in outcome.error


@pytest.mark.parametrize("method", ["dp-adam", "dp-zoso"])
def test_a_loss_that_couples_examples_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import dpaudit.runs.fit as fitting
    from dpaudit.trainers import causal_lm_losses

    def batch_mean(model: Any, batch: dict[str, Any]) -> Any:
        losses = causal_lm_losses(model, **batch)
        return losses * losses.mean()

    monkeypatch.setattr(fitting, "loss_function", lambda prepared: batch_mean)
    config = small_config(privacy__method=method)
    if method == "dp-zoso":
        config["zeroth_order"] = {"directions": 2, "clip": "joint", "stages": 1, "scale": 1e-3}
    done = run_cli("train", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run")
    assert done.code == 64 and "when the content of the other examples changes" in done.error
    assert read_journal(tmp_path / "run" / "release" / "ledger.jsonl").ledger.steps == 0


@pytest.mark.parametrize("which", ["lora", pytest.param("bias", marks=pytest.mark.slow)])
def test_few_parameters_are_trained_and_the_release_is_a_whole_model(tmp_path: Path, which: str) -> None:
    pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForCausalLM

    config = small_config(model__trainable=which, canaries__kind="random-token", canaries__positions=None)
    done = run_cli("certify", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run", "--json")
    assert done.code == 2, done.error
    release = tmp_path / "run" / "release"
    before = dict(AutoModelForCausalLM.from_pretrained(EXAMPLES / "model", dtype=torch.float32).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(release / "model", dtype=torch.float32).named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and moved
    assert all(("c_attn" in name) if which == "lora" else name.endswith("bias") for name in moved)
    assert run_cli("verify", release / "certificate.json").code == 2


def test_another_configuration_may_not_continue_a_run(certified: Path, tmp_path: Path) -> None:
    other = write_toml(tmp_path / "c.toml", small_config(privacy__steps=5))
    outcome = run_cli("train", other, "--out", certified)
    assert outcome.code == 64 and "another configuration" in outcome.error


@pytest.mark.slow
def test_a_run_stopped_midway_resumes_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpaudit.storage.journal import DiskJournal

    config = write_toml(tmp_path / "c.toml", small_config())
    counted, real = [], DiskJournal.count

    def count(self: DiskJournal) -> None:
        real(self)
        counted.append(1)
        if len(counted) == 4:  # after the first checkpoint, in the middle of a step
            raise KeyboardInterrupt

    monkeypatch.setattr(DiskJournal, "count", count)
    with pytest.raises(BaseException):  # noqa: B017  click turns it into Abort
        run_cli("train", config, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "training"
    assert run_cli("certify", tmp_path / "run").code == 3
    monkeypatch.undo()
    outcome = run_cli("certify", config, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert read_journal(tmp_path / "run" / "release" / "ledger.jsonl").ledger.steps == 4
    certificate = json.loads((tmp_path / "run" / "release" / "certificate.json").read_text())
    assert any("charged" in d for d in certificate["predicate"]["deviations"])


def test_a_broken_checkpoint_is_one_sentence_and_the_ledger_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpaudit.storage.journal import DiskJournal

    config, counted, real = write_toml(tmp_path / "c.toml", small_config()), [], DiskJournal.count

    def count(self: DiskJournal) -> None:
        real(self)
        counted.append(1)
        if len(counted) == 3:  # a checkpoint stands after two steps
            raise KeyboardInterrupt

    monkeypatch.setattr(DiskJournal, "count", count)
    with pytest.raises(BaseException):  # noqa: B017  click turns it into Abort
        run_cli("train", config, "--out", tmp_path / "run")
    monkeypatch.undo()
    ledger = tmp_path / "run" / "release" / "ledger.jsonl"
    charged = read_journal(ledger).ledger.steps
    checkpoint = tmp_path / "run" / "private" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    outcome = run_cli("train", config, "--out", tmp_path / "run")
    assert outcome.code == 3 and "checkpoint.pt cannot be read" in outcome.error
    assert read_journal(ledger).ledger.steps >= charged >= 3


@pytest.mark.parametrize("option", ["--control", "--examine"])
def test_new_evidence_for_a_published_certificate_is_refused_before_it_is_gathered(
    certified: Path, option: str
) -> None:
    before = (certified / "release" / "certificate.json").read_bytes()
    outcome = run_cli("certify", certified, option)
    assert outcome.code == 64 and "amend" in outcome.error and "\n" not in outcome.error
    assert (certified / "release" / "certificate.json").read_bytes() == before


def test_a_control_gives_the_attack_a_power_that_verify_re_derives(certified: Path) -> None:
    (certified / "release" / "certificate.json").unlink()  # it was never handed out
    outcome = run_cli("certify", certified, "--control", "--json")
    assert outcome.code == 2 and isinstance(outcome.json["power"], float)
    verified = run_cli("verify", certified / "release" / "certificate.json", "--json")
    assert verified.code == 2, verified.output
    assert any(step["name"] == "audit.power" and "equal" in step["result"] for step in verified.json["steps"])


def test_an_audit_of_real_records_leaves_nothing_in_the_release(tmp_path: Path) -> None:
    config = small_config(audit__holdout_fraction=0.25, data__limit=90, privacy__public_size=100)
    outcome = run_cli("certify", write_toml(tmp_path / "c.toml", config), "--out", tmp_path / "run")
    assert outcome.code == 2
    release, private = tmp_path / "run" / "release", tmp_path / "run" / "private"
    found = json.loads((private / "membership.json").read_text())
    assert found["candidates"] == 45 and 0 <= found["correct"] <= found["guesses"]
    body = json.loads((release / "certificate.json").read_text())["predicate"]
    assert not any("real" in f["name"] or "member" in f["name"] for f in body["findings"])
    assert body["ledger"]["stages"][0]["public_size"] == 100 - 25 + 12  # as declared, not as counted
    for path in release.rglob("*"):
        assert "holdout" not in path.name and "membership" not in path.name
        if path.suffix in (".json", ".html", ".md", ".jsonl"):
            assert "real records" not in path.read_text()
    assert stat.S_IMODE((private / "holdout.secret.parquet").stat().st_mode) == 0o600
    assert run_cli("verify", release / "certificate.json").code == 2
