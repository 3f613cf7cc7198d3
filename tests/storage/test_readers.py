"""Readers of untrusted files: bounded, and every failure is one sentence of our own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpaudit import DpauditError, InvalidEvidence
from dpaudit.certificates.amendments import read_amendments
from dpaudit.certificates.import_run import read_manifest
from dpaudit.certificates.policy import read_policy
from dpaudit.certificates.sign import signature_steps
from dpaudit.certificates.verify.confined import verify_certificate
from dpaudit.storage.journal import read_journal
from dpaudit.storage.readers import MAX_DEPTH, inside, parse_json, read_bytes, read_toml
from dpaudit.storage.tables import number, read_table
from tests import DATA
from tests.certificates import certificate_run as run

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "release"
    run.release(folder, m=60)
    return folder


@given(JSON)
@FEW
def test_json_round_trip(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b'{"a":1,"a":2}',
        b"\xff",
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b"9" * 10_000,
        b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2),
    ],
)
def test_json_that_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidEvidence):
        parse_json(data)


def test_limits_are_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: a terabyte that takes no room
    with pytest.raises(InvalidEvidence, match="limit"):
        read_bytes(path)
    with pytest.raises(InvalidEvidence, match="regular file"):
        read_bytes(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidEvidence, match="regular file"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(InvalidEvidence, match="limit"):
        parse_json(b"[1,2,3]", limit=3)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\x00b", "..\\x", "link/x"])
def test_paths_stay_inside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidEvidence):
        inside(folder, name)
    assert inside(folder, "model/a.safetensors") == (folder / "model" / "a.safetensors").resolve()


@given(st.text(max_size=40))
@FEW
def test_any_path_is_inside_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        assert folder.resolve() in inside(folder, name).parents
    except InvalidEvidence:
        pass


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@FEW
def test_any_csv_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(data)
    try:
        table = read_table(path, columns=("id", "score"))
        assert len(table["id"]) == len(table["score"])
    except InvalidEvidence:
        pass


@given(st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_parquet_is_read_or_refused(original: Path, data: st.DataObject) -> None:
    content = bytearray((original / "scores.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = original.parent / "damaged.parquet"
    path.write_bytes(bytes(content))
    try:
        read_table(path, columns=("id", "score"))
    except InvalidEvidence:
        pass


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_much_damaged_parquet_never_ends_the_process(original: Path, random: Any) -> None:
    content = bytearray((original / "scores.parquet").read_bytes())
    for _ in range(random.randint(1, 40)):
        content[random.randrange(len(content))] = random.randrange(256)
    path = original.parent / "damaged.parquet"
    path.write_bytes(bytes(content))
    try:
        read_table(path, columns=("id", "score"))
    except InvalidEvidence:
        pass


def test_file_that_crashes_its_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpaudit.storage import parquet as _readers_parquet

    monkeypatch.setattr(_readers_parquet, "_CHILD", "import os; os.abort()")
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InvalidEvidence, match="crashed the Parquet reader"):
        read_table(path, columns=("id", "score"))


def test_parquet_that_fuzzing_found() -> None:
    with pytest.raises(InvalidEvidence, match="not a readable Parquet file"):
        read_table(DATA / "damaged_histogram.parquet", columns=("id", "score"))


def read_any(reader: Callable[[Path], Any], folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        reader(path)
    except DpauditError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000


READERS: dict[str, Callable[[Path], Any]] = {
    "certificate.json": verify_certificate,
    "ledger.jsonl": read_journal,
    "manifest.json": read_manifest,
    "policy.toml": read_policy,
    "config.toml": read_toml,
    "c.dsse.json": lambda path: signature_steps(path.with_name("c.json"), b"x", ()),
    "amendments/0001.json": lambda path: read_amendments(path.parent.parent / "certificate.json", b"x"),
}


@pytest.mark.parametrize("name", READERS)
@given(st.binary(max_size=300) | JSON.map(lambda v: json.dumps(v).encode()) | st.text(max_size=100).map(str.encode))
@FEW
def test_any_bytes_are_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes
) -> None:
    read_any(READERS[name], tmp_path_factory.getbasetemp() / "fuzz", name, data)


@given(st.data())
@FEW
def test_certificate_with_any_field_replaced(original: Path, data: st.DataObject) -> None:
    """A forged certificate, resealed, with one value replaced by any JSON value, never breaks the verifier."""
    folder = original.parent / "forged"
    if not folder.exists():
        shutil.copytree(original, folder)
    statement = run.load(original / "certificate.json")
    holder: Any = statement
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or data.draw(st.integers(0, 4)) == 0:
            break
        holder = holder[key]
    holder[key] = data.draw(JSON)
    try:
        run.rewrite(folder / "certificate.json", statement)
    except (KeyError, TypeError, AttributeError):
        return
    try:
        report = verify_certificate(folder)
    except InvalidEvidence as error:
        assert "\n" not in str(error)
    else:
        assert report.exit_code in {0, 1, 2, 3}
        assert json.dumps(report.to_dict())


def test_cells() -> None:
    assert number("1e3", name="x") == 1000
    for bad in ("nan", "inf", "x", None, True, "1" * 400):
        with pytest.raises(InvalidEvidence, match="x="):
            number(bad, name="x")


@pytest.mark.parametrize(
    "text",
    [
        "id\n1\n",
        "id,score\n1\n",
        "id,id\n1,2\n",
        "id,score\n1," + "9" * 20_000,
        '"' + "x" * 200_000,
        "id,score\n1,2,3\n",
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InvalidEvidence):
        read_table(path, columns=("id", "score"))
