"""One file for all evidence: verified from itself alone, the same bytes each time, and no way out of its folder."""

from __future__ import annotations

import dataclasses
import io
import stat
import zipfile
from pathlib import Path

import pytest

from dpaudit.certificates.bundle import bundle, is_bundle, unpack
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from tests.certificates.certificate_run import release
from tests.runs.run_helpers import run_cli


@pytest.fixture
def run(tmp_path: Path) -> Path:
    release(tmp_path / "run" / "release")
    (tmp_path / "run" / "private").mkdir()
    (tmp_path / "run" / "private" / "secret").write_text("a coin")
    return tmp_path / "run"


def test_a_bundle_verifies_as_its_folder_does(run: Path, tmp_path: Path) -> None:
    made = bundle(run, tmp_path / "sent.dpa.zip")
    alone = tmp_path / "elsewhere" / "any name.zip"
    alone.parent.mkdir()
    made.path.rename(alone)
    here, there = verify_certificate(run), verify_certificate(alone)
    assert there == here and here.ok and any(step.name.startswith("subject") for step in there.steps)
    assert run_cli("verify", alone).code == run_cli("verify", run).code


def test_nothing_private_and_nothing_outside_is_in_it(run: Path, tmp_path: Path) -> None:
    made = bundle(run, tmp_path / "b.zip")
    with zipfile.ZipFile(made.path) as archive:
        assert set(archive.namelist()) == {*made.files, "READ_ME.txt"}
        assert not any(b"a coin" in archive.read(name) for name in archive.namelist())
    (run / "release" / "link").symlink_to(run / "private" / "secret")
    with pytest.raises(InvalidValue, match="link is a link"):
        bundle(run, tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_the_same_release_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    first = bundle(run, tmp_path / "a.zip")
    again = bundle(run / "release" / "certificate.json", tmp_path / "b.zip")
    assert first.path.read_bytes() == again.path.read_bytes() and first.sha256 == again.sha256
    with pytest.raises(InvalidValue, match="exists; give another --out"):
        bundle(run, tmp_path / "a.zip")


def test_weights_may_stay_behind_and_are_then_not_recomputable(run: Path, tmp_path: Path) -> None:
    made = bundle(run, tmp_path / "a.zip", weights=False)
    assert made.left_out and all(name.startswith("model/") for name in made.left_out)
    report = verify_certificate(made.path)
    steps = {step.name: step.outcome for step in report.steps}
    assert all(steps[f"subject {name}"] == "not recomputable" for name in made.left_out)
    assert report.ok


def test_a_changed_ledger_is_found_in_a_bundle(run: Path, tmp_path: Path) -> None:
    ledger = run / "release" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"steps":60', b'"steps":59'))
    report = verify_certificate(bundle(run, tmp_path / "a.zip").path)
    assert not report.ok and report.exit_code == 3


def test_a_zip_that_somebody_else_made_of_the_folder_is_read(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mail.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(run.joinpath("release").rglob("*")):
            archive.write(file, f"release/{file.relative_to(run / 'release')}")
    assert dataclasses.replace(verify_certificate(path)) == verify_certificate(run)


def entry(name: str, *, mode: int = stat.S_IFREG | 0o644, flags: int = 0) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr, made.flag_bits, made.create_system = mode << 16, flags, 3
    return made


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "entries",
    [
        [entry("../outside")],
        [entry("/etc/outside")],
        [entry("a/../../outside")],
        [entry("..\\outside")],
        [entry("C:/outside")],
        [entry("outside", mode=stat.S_IFLNK | 0o777)],
        [entry("outside", mode=stat.S_IFIFO | 0o644)],
        [entry("twice"), entry("twice")],
        [entry("case"), entry("CASE")],
        [entry("a"), entry("a/b")],
        [entry("x" * 5000)],
    ],
    ids=lambda value: value[0].filename[:14],
)
def test_hostile_entries_are_refused_and_nothing_leaves_the_folder(
    tmp_path: Path, entries: list[zipfile.ZipInfo]
) -> None:
    path, inside = tmp_path / "hostile.zip", tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for each in entries:
            archive.writestr(each, b"/etc/passwd")
    with pytest.raises(InvalidEvidence, match=r"bundle hostile\.zip"):
        unpack(path, inside)
    assert sorted(p.name for p in tmp_path.rglob("outside")) == []


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w", force_zip64=True) as out,
    ):
        for _ in range(300):
            out.write(bytes(1 << 20))
    assert path.stat().st_size < 2_000_000
    with pytest.raises(InvalidEvidence, match="unpacked from one of its size"):
        unpack(path, tmp_path / "inside")


def test_a_size_that_is_told_too_small_is_found(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry("liar"), b"x" * 1000)
    data = content.getvalue().replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path = tmp_path / "liar.zip"
    path.write_bytes(data)
    (tmp_path / "inside").mkdir()
    with pytest.raises(InvalidEvidence, match="bundle"):
        unpack(path, tmp_path / "inside")


def test_half_a_bundle_is_one_sentence(run: Path, tmp_path: Path) -> None:
    made = bundle(run, tmp_path / "a.zip")
    made.path.write_bytes(made.path.read_bytes()[:2000])
    assert is_bundle(made.path)
    outcome = run_cli("verify", made.path)
    assert outcome.code == 3 and "cannot be unpacked" in outcome.error


@pytest.mark.parametrize("name", ["none", "empty"])
def test_what_is_no_release_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidEvidence, match=r"certificate.json"):
        bundle(tmp_path / name, tmp_path / "a.zip")


def test_command_writes_and_says_what_to_do_next(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "sent.dpa.zip"
    assert "dpaudit verify sent.dpa.zip" in run_cli("bundle", run, "--out", out).output
    value = run_cli("bundle", run, "--out", tmp_path / "b.zip", "--without-weights", "--json").json
    assert value["schema"] == "dpaudit.bundle/1" and value["left_out"]
