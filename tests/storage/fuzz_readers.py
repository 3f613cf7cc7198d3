"""Fuzzing of the readers of untrusted files, by hand: coverage-guided with atheris, or structure-aware with hypothesis.

    pip install atheris
    python -m tests.storage.fuzz_readers atheris certificate -max_total_time=300
    python -m tests.storage.fuzz_readers hypothesis certificate 300

Both start from a valid file and change it as a forger would: a value is replaced, a key removed or doubled, and the
digests are made to fit again. A crash is any exception other than a DpauditError, and any error of more than one line.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**25, 10**400, 0.5, 1e308, -1e308, 5e-324, "inf", "-inf"),
    *(
        "",
        "x",
        "\ud800",
        "\u202e",
        "a\nb",
        "\x1b[8m",
        "x" * 20_001,
        "0" * 64,
        [],
        {},
        [[]],
        [None],
        {"a": None},
        [{}] * 3,
    ),
)
"""Values that break programs which take the type of a field for granted."""


class Target:
    """One reader: the file it reads, valid content to start from, and how a forger makes the digests fit."""

    def __init__(
        self, name: str, read: Callable[[Path], Any], seeds: Callable[[Path], list[bytes]], reseal: Any = None
    ) -> None:
        self.name, self.read, self.seeds, self.reseal = name, read, seeds, reseal


def release(folder: Path) -> Path:
    """A small release folder; made once for all seeds."""
    from tests.certificates import certificate_run as run

    if not (folder / "certificate.json").exists():
        run.release(folder, m=40)
    return folder


def evidence(name: str) -> Callable[[Path], list[bytes]]:
    """Seeds: a file of a release folder."""
    return lambda folder: [(release(folder) / name).read_bytes()]


def verify_in_place(path: Path) -> Any:
    """Verify a changed certificate beside its untouched evidence, with and without a policy."""
    from dpaudit.certificates.verify.verify import verify_here

    report = verify_here(path, policy=path.parent.parent / "policy.toml")
    assert report.to_text().count("\n") == len(report.steps) + len(report.policy_failures) + report_tail(report)
    return json.dumps(report.to_dict())


def report_tail(report: Any) -> int:
    """Lines of a report beyond its steps and failures: an empty one's, and the lines of evidence with reasons."""
    empty = type(report)(stated_verdict="inconclusive", steps=(), origin="", warnings=report.warnings)
    added = [line for line in report.lines if line not in empty.lines]
    return empty.to_text().count("\n") + sum(1 + len(line.reasons[:3]) for line in added)


def read_envelope(path: Path) -> Any:
    """The signature beside a certificate."""
    from dpaudit.certificates.sign import signature_steps

    return signature_steps(path.with_name("c.json"), b"x", ())


def read_amendment(path: Path) -> Any:
    """The amendments beside a certificate."""
    from dpaudit.certificates.amendments import read_amendments

    return read_amendments(path.parent.parent / "certificate.json", b"x")


def read_run_record(path: Path) -> Any:
    """run.json of a run folder, up to its configuration."""
    from dpaudit.runs.run import reopen

    return reopen(path.parent)


def read_pages(path: Path) -> Any:
    """privacy.json beside its certificate."""
    from dpaudit.certificates.pages import page_steps
    from dpaudit.certificates.statement import Statement

    folder = path.parent.parent
    return page_steps(folder, Statement.from_bytes((folder / "certificate.json").read_bytes()))


def scores(path: Path) -> Any:
    """A score file as the audit takes it."""
    from dpaudit.storage.scores import read_scores

    return read_scores(path, needs_member=False)


def coins(path: Path) -> Any:
    """Coins from a manifest or table."""
    from dpaudit.storage.scores import read_coins

    return read_coins(path)


def lazily(module: str, function: str) -> Callable[[Path], Any]:
    """A reader that is imported when it is called, so that atheris can instrument it."""
    return lambda path: getattr(__import__(module, fromlist=[function]), function)(path)


def read_private(path: Path) -> Any:
    """Training data, as a run takes it."""
    from dpaudit.runs.config import parse_config
    from dpaudit.runs.records import private_and_public
    from tests.runs.run_helpers import small_config

    return private_and_public(parse_config(small_config(data__path=path.name), "c"), path.parent)


def parquet_child(path: Path) -> None:
    """The code of the Parquet child in a fork of this process, which has imported its libraries already."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.ipc
    import pyarrow.parquet  # noqa: F401

    from dpaudit.storage import parquet

    request = {"columns": ["id", "score"], "rows": 1000, "size": 10**6, "cell": 100, "binary": [], "kind": "parquet"}
    output = path.with_suffix(".out")
    if not (child := os.fork()):
        os.dup2(os.open(path, os.O_RDONLY), 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.argv = ["-c", json.dumps({**request, "seconds": 20, "memory": 2**31})]
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
        with contextlib.suppress(BaseException):
            exec(parquet._CHILD, {})
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:  # a crash of the C++ reader is what the child is there for
        answer = json.loads(output.read_bytes())
        assert set(answer) in ({"error"}, {"columns", "names", "rows"}), answer
        assert output.stat().st_size < 2 * 10**6


TARGETS: dict[str, Target] = {}


def target(
    key: str, name: str, read: Callable[[Path], Any], seeds: Callable[[Path], list[bytes]], reseal: Any = None
) -> None:
    """Register a reader."""
    TARGETS[key] = Target(name, read, seeds, reseal)


def sealed_certificate(value: Any) -> bytes:
    """A certificate whose own digest fits."""
    from dpaudit.storage.commitment import canonical_json
    from tests.certificates.certificate_run import digest_of

    value["predicate"]["digest"] = digest_of(value)
    return canonical_json(value) + b"\n"


def chained(lines: list[Any]) -> bytes:
    """A ledger whose chain fits."""
    from dpaudit.storage.commitment import canonical_json, sha256_bytes

    previous, written = "0" * 64, []
    for line in lines:
        if isinstance(line, dict):
            line["previous"] = previous
        written.append(canonical_json(line))
        previous = sha256_bytes(written[-1])
    return b"\n".join(written) + b"\n"


def opened(value: Any) -> bytes:
    """An open ledger record around a header of any content."""
    import hashlib
    import struct

    from dpaudit.storage import journal

    body = journal.canonical_json(value)[: journal._HEADER_BYTES - 36]
    header = (struct.pack("<I32s", len(body), hashlib.sha256(body).digest()) + body).ljust(journal._HEADER_BYTES, b"\0")
    return header + journal._slot(body, 1, 5).ljust(journal._SLOT_STRIDE, b"\0") * 2


def ledger_lines(folder: Path) -> list[bytes]:
    """Seed of the ledger."""
    return evidence("ledger.jsonl")(folder)


def text(*values: Any) -> Callable[[Path], list[bytes]]:
    """Seeds given here: bytes as they are, other values as JSON."""
    return lambda folder: [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]


def fill_targets() -> None:
    """Every reader of files that somebody else may have written."""
    manifest = {"version": 1, "copies": 1, "canaries": [["a", 1], ["b", 0]], "nonce": "ab" * 32}
    stage = {"sampling_probability": 0.01, "noise_multiplier": 1.0, "steps": 10, "sampling": "poisson"}
    ledger = {"relation": "add_or_remove_one", "unit": "record", "max_records_per_unit": 1, "stages": [stage]}
    policy = b'max_epsilon = 4.0\nunits = ["record"]\nminimum_power = 0.8\nallow_deviations = false\n'
    config = (Path(__file__).resolve().parents[2] / "examples" / "certify.toml").read_bytes()
    envelope = {"payloadType": "application/vnd.in-toto+json", "payload": "eA==", "signatures": [{"sig": "eA=="}]}
    table = b"id,score,member,attack\na,1.5,1,loss\nb,-2,0,loss\n"
    rows = b'{"id":"a","score":1.5,"member":1}\n{"id":"b","score":-2,"member":0}\n'
    target("certificate", "release/certificate.json", verify_in_place, evidence("certificate.json"), sealed_certificate)
    target("plan", "release/audit_plan.json", verify_plan, evidence("audit_plan.json"))
    target("privacy", "release/model/privacy.json", read_pages, privacy_record)
    target("ledger", "ledger.jsonl", lazily("dpaudit.storage.journal", "read_journal"), ledger_lines, chained)
    target("open", "open/ledger.open", read_open, open_record, opened)
    target("history", "ledger.json", read_history, text(ledger, [[1.0, 0.01, 10]], {"history": [[1.0, 0.01, 10]]}))
    target("policy", "policy.toml", lazily("dpaudit.certificates.policy", "read_policy"), text(policy))
    target("config", "config.toml", lazily("dpaudit.runs.config", "read_config"), text(config))
    target("record", "run/run.json", read_run_record, run_record)
    target("manifest", "manifest.json", lazily("dpaudit.certificates.import_run", "read_manifest"), text(manifest))
    target("coins", "coins.json", coins, text(manifest, {"manifest": manifest, "commitment": "0" * 64}))
    target(
        "csvcoins",
        "coins.csv",
        coins,
        text(b"id,coin,nonce,copies\na,1," + b"ab" * 32 + b",1\nb,0," + b"ab" * 32 + b",1\n"),
    )
    target("envelope", "c.dsse.json", read_envelope, text(envelope))
    target("amendment", "amendments/0001.json", read_amendment, amendment)
    target("records", "private.txt", read_private, text(b"one line\nanother line\n"))
    target("csv", "scores.csv", scores, text(table))
    target("jsonl", "scores.jsonl", scores, text(rows))
    target("parquet", "scores.parquet", scores, evidence("scores.parquet"))
    target("parquet-child", "scores.parquet", parquet_child, evidence("scores.parquet"))


def open_record(folder: Path) -> list[bytes]:
    """Seed: an open segment that continues the ledger."""
    from dpaudit.storage.journal import read_journal

    record = read_journal(release(folder) / "ledger.jsonl")
    return [opened({"version": 1, "previous": record.head, "stage": record.ledger.stages[0].to_dict()})]


def verify_plan(path: Path) -> Any:
    """A plan of another content beside its certificate."""
    return verify_in_place(path.with_name("certificate.json"))


def privacy_record(folder: Path) -> list[bytes]:
    """Seed: privacy.json of the certificate."""
    from dpaudit.certificates.short_record import privacy_json
    from dpaudit.certificates.statement import Statement

    statement = Statement.from_bytes((release(folder) / "certificate.json").read_bytes())
    return [privacy_json(statement)]


def run_record(folder: Path) -> list[bytes]:
    """Seed: run.json of a run that is planned, its configuration's digest made to fit by ``reseal``."""
    import tomllib

    from dpaudit.storage.run_folder import new_record

    config = tomllib.loads((Path(__file__).resolve().parents[2] / "examples" / "certify.toml").read_text())
    return [json.dumps(new_record(config).to_dict()).encode()]


def amendment(folder: Path) -> list[bytes]:
    """Seed: an amendment to the certificate ``x``."""
    from dpaudit.certificates.amendments import amendment_bytes

    return [amendment_bytes(b"x", [], kind="note", text="t", author="a")]


def read_open(path: Path) -> Any:
    """An open ledger record beside a ledger."""
    from dpaudit.storage.journal import read_journal

    return read_journal(path.with_name("ledger.jsonl"))


def read_history(path: Path) -> Any:
    """A ledger, or a history of other accountants, as the command line takes it."""
    from dpaudit.runs.ledger_file import read_ledger_file

    return read_ledger_file(path, None)


def prepared(key: str) -> tuple[Target, Path, list[bytes]]:
    """A target, the path it reads, and its seeds."""
    fill_targets()
    chosen = TARGETS[key]
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    path = folder / chosen.name
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = chosen.seeds(folder / "release")
    if "release" in chosen.name:
        release(folder / "release")
    if key == "open":
        shutil.copy(folder / "release" / "ledger.jsonl", path.with_name("ledger.jsonl"))
    if key == "record":
        (path.parent / "private").mkdir()
        (path.parent / "release").mkdir()
    (folder / "policy.toml").write_text(
        'max_epsilon = 4.0\nminimum_power = 0.8\nrequired_tests = ["x"]\nmax_delta_times_records = 1.0\nunits = ["a"]\n'
    )
    return chosen, path, seeds


def mutated(chosen: Target, data: bytes, rng: random.Random) -> bytes:
    """Change a file as a forger would: structurally where it is JSON, else by bytes and lines."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _structural(chosen, data, rng) if rng.random() < 0.8 else _bytes(data, rng)
    return data


def _structural(chosen: Target, data: bytes, rng: random.Random) -> bytes:
    is_ledger = chosen.name.endswith(".jsonl")
    try:
        start = 36 if chosen.name.endswith(".open") else 0
        value = json.JSONDecoder().raw_decode(data[start:].decode("utf-8", "replace"))[0] if not is_ledger else None
        value = [json.loads(line) for line in data.splitlines()] if is_ledger else value
        value = copy.deepcopy(value)
        holder, keys = _place(value, rng)
        key = rng.choice(keys)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2 if isinstance(holder[key], str):
                holder[key] = holder[key] + rng.choice(("\n", "\ud800", "x", "\0", "/../.."))
            case 3 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
                holder[key] = holder[key] * rng.choice((-1, 0, 1e300, 10**30, 1e-300))
            case _:
                holder[key] = copy.deepcopy(rng.choice(NASTY))
        if chosen.reseal is not None and rng.random() < 0.9:
            return bytes(chosen.reseal(value))
        if is_ledger:
            return b"\n".join(json.dumps(line).encode() for line in value) + b"\n"
        return json.dumps(value).encode()
    except Exception:  # what cannot be resealed, or is no JSON, is changed by bytes
        return _bytes(data, rng)


def _place(value: Any, rng: random.Random) -> tuple[Any, list[Any]]:
    """A container inside a value, and its keys."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        inner = [k for k in keys if isinstance(value[k], (dict, list)) and value[k]]
        if not inner or rng.random() < 0.3:
            return value, keys
        value = value[rng.choice(inner)]


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"x")
    for _ in range(rng.choice((1, 2, 8))):
        place = rng.randrange(len(changed) or 1)
        match rng.randrange(6):
            case 0 if changed:
                changed[place] = rng.randrange(256)
            case 1 if changed:
                del changed[place : place + rng.choice((1, 4, 40))]
            case 2:
                changed[place:place] = rng.choice(
                    (b'"', b",", b"\n", b"\xff", b"9" * 5000, b"\\ud800", b"[" * 50, b"\0", b"nan")
                )
            case 3:
                changed[place:place] = bytes(rng.randrange(256) for _ in range(4))
            case 4:
                lines = bytes(changed).split(b"\n")
                rng.shuffle(lines)
                changed = bytearray(b"\n".join(lines))
            case _:
                other = rng.randrange(len(changed) or 1)
                changed[place : place + 8] = changed[other : other + 8]
    return bytes(changed)


def check(chosen: Target, path: Path, data: bytes) -> bool:
    """Read one input; True where it was accepted. Anything but a refusal in one sentence raises."""
    from dpaudit import DpauditError

    path.write_bytes(data)
    try:
        chosen.read(path)
    except DpauditError as error:
        assert len(str(error).splitlines()) <= 1, error
        assert len(str(error)) < 2000, error
        return False
    return True


def spent() -> float:
    """CPU seconds of this process and of its children, so that a busy machine does not shorten the search."""
    return sum(os.times()[:4])


def with_hypothesis(key: str, seconds: float) -> None:
    """Fuzz for seconds of this process and its children; prints inputs and how many were accepted."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    chosen, path, seeds = prepared(key)
    assert any([check(chosen, path, seed) for seed in seeds]) or key in ("envelope", "amendment"), "no seed is valid"
    end, count, accepted = spent() + seconds, 0, 0
    anything = st.one_of(
        st.integers(0, 2**64 - 1).map(lambda seed: mutated(chosen, seeds[seed % len(seeds)], random.Random(seed))),
        st.binary(max_size=300),
        st.text(max_size=200).map(str.encode),
    )

    @given(anything)
    @settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    def one(data: bytes) -> None:
        nonlocal count, accepted
        if spent() > end:
            return
        count += 1
        path.with_name("last-input").write_bytes(data)
        accepted += check(chosen, path, data)

    while spent() < end:
        one()
    print(f"{key}: hypothesis, {count} inputs, {accepted} accepted, no crash", flush=True)


def with_atheris(key: str, arguments: list[str]) -> None:
    """Fuzz with coverage guidance; libFuzzer's arguments follow."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["dpaudit", "json", "csv", "tomllib"]):
        chosen, path, seeds = prepared(key)
        for seed in seeds:
            check(chosen, path, seed)
    corpus = path.parent / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def change(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = atheris.Mutate(data, size) if rng.random() < 0.3 else mutated(chosen, data, rng)
        return bytes(changed[:size])

    limits = ["-max_len=200000", "-rss_limit_mb=4096", "-timeout=60"]
    atheris.Setup(
        ["fuzz", *limits, *arguments, str(corpus)],
        lambda data: check(chosen, path, data) and None,
        custom_mutator=change,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    _, tool, which, *rest = sys.argv
    if tool == "hypothesis":
        with_hypothesis(which, float(rest[0]))
    else:
        with_atheris(which, rest)
