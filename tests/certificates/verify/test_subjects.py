"""Released files: what is certified under one name each, and what lies beside it uncertified."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dpaudit.certificates.statement import Subject
from dpaudit.certificates.verify.report import DIFFERENT, EQUAL, Step
from dpaudit.certificates.verify.subjects import subject_steps
from dpaudit.storage.commitment import sha256_file

WEIGHTS = "model/model.safetensors"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "model").mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    for name in ("ledger.jsonl", "report.html", "model_card.md", "scores.parquet", "model/privacy.json"):
        (folder / name).write_text("x")
    (folder / "amendments").mkdir()
    (folder / "amendments" / "0001.json").write_text("{}")
    return folder


def steps(folder: Path, *names: str) -> list[Step]:
    digest = sha256_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else "0" * 64
    named = [Subject.model_validate({"name": name, "digest": {"sha256": digest}}) for name in names or (WEIGHTS,)]
    return subject_steps(folder, named)


def different(folder: Path, *names: str) -> list[str]:
    return [step.name.removeprefix("subject ") for step in steps(folder, *names) if step.outcome == DIFFERENT]


def test_the_files_of_a_release_stand(release: Path) -> None:
    assert [(step.name, step.outcome) for step in steps(release)] == [(f"subject {WEIGHTS}", EQUAL)]


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"model/{n}"
            for n in ("notes.txt", "model.h5", "w.npy", "m.joblib", "x.pkl", "adapter_config.json", ".hidden")
        ),
        *("model/modeling_x.py", "model/chat_template.jinja", "model/sub/deep/readme", "model/sub/privacy.json/x"),
        *("model.safetensors", "x.gguf", "other/pytorch_model.bin", "other/config.json", "adapter_config.json", "a.py"),
        *("amendments/w.pt", "deep/er/still/model.onnx", "MODEL.SAFETENSORS", "other/model.safetensors.index.json"),
    ],
)
def test_an_added_file_is_found(release: Path, name: str) -> None:
    path = release / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"added")
    assert different(release) == [name]


@pytest.mark.parametrize("name", ["notes.txt", "data/readme.md", "LICENSE"])
def test_texts_apart_from_the_weights_may_stay(release: Path, name: str) -> None:
    (release / name).parent.mkdir(exist_ok=True)
    (release / name).write_text("text")
    assert different(release) == []


def _link_to_folder(folder: Path) -> str:
    (folder / "model2").symlink_to(folder / "model")
    return "model2"


def _link_to_weights(folder: Path) -> str:
    (folder / "model" / "other.safetensors").symlink_to(folder / WEIGHTS)
    return "model/other.safetensors"


def _link_outside(folder: Path) -> str:
    (folder / "notes").symlink_to("/etc/hostname")
    return "notes"


def _dangling(folder: Path) -> str:
    (folder / "ledger.open").symlink_to(folder / "nowhere")
    return "ledger.open"


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return "pipe"


def _folder_for_a_file(folder: Path) -> str:
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    return "report.html"


def _name_of_two_lines(folder: Path) -> str:
    (folder / "a\n= subject x").touch()
    return "a\n= subject x"


KINDS: list[Callable[[Path], str]] = [
    *(_link_to_folder, _link_to_weights, _link_outside, _dangling, _pipe, _folder_for_a_file, _name_of_two_lines)
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__.strip("_"))
def test_anything_but_a_file_of_its_own_is_found(release: Path, make: Callable[[Path], str]) -> None:
    name = make(release)
    assert different(release) == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("model/./model.safetensors", "./model/model.safetensors", "model//model.safetensors", "model/"),
        *(
            "model/../model/model.safetensors",
            "/etc/hostname",
            "..",
            "a\\b",
            "model/model.safetensors\n",
            "a\x1b[8m",
            "\u202ea",
        ),
    ],
)
def test_a_name_has_one_spelling(release: Path, name: str) -> None:
    assert name in different(release, WEIGHTS, name)


def test_one_file_is_one_subject(release: Path) -> None:
    assert different(release, WEIGHTS, WEIGHTS) == [WEIGHTS]
    (release / "model" / "link.safetensors").symlink_to("model.safetensors")
    assert set(different(release, WEIGHTS, "model/link.safetensors")) == {"model/link.safetensors"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_subject_is_a_regular_file(release: Path, make: Callable[[Path], None]) -> None:
    (release / WEIGHTS).unlink()
    make(release / WEIGHTS)
    assert WEIGHTS in different(release)


def test_a_certificate_that_lies_among_other_files_is_no_release_folder(tmp_path: Path, release: Path) -> None:
    """Alone in a download folder it says nothing about the files beside it; with its weights it does."""
    (tmp_path / "holiday.zip").touch()
    assert [step.outcome for step in steps(tmp_path)] == ["not recomputable"]
    shutil.copytree(release / "model", tmp_path / "model")
    assert "holiday.zip" in different(tmp_path)


def test_a_folder_that_cannot_be_listed_is_found(release: Path) -> None:
    """Names of a folder so deep that the system lists it no more, as an uncertified file could be kept from sight."""
    top = os.open(release / "model", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=top)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = below
    os.close(top)
    found = steps(release)
    shutil.rmtree(release / "model" / ("d" * 250))
    assert any("cannot be" in step.detail and step.outcome == DIFFERENT for step in found)


def test_the_number_of_entries_is_limited(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpaudit.certificates.verify.subjects.MAX_ENTRIES", 20)
    for i in range(30):
        (release / f"{i}.txt").touch()
    assert steps(release)[-1].name == "release" and steps(release)[-1].outcome == DIFFERENT
