"""Coverage-guided fuzzing of the readers of untrusted files with atheris; run by hand, see docs/howto/verify.md.

    pip install atheris
    python -m tests.storage.fuzz_readers certificate -max_total_time=600 corpus/

Any exception other than a DpauditError, and any error of more than one line, is a crash.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-not-found]

from tests.runs.run_helpers import small_config

with atheris.instrument_imports(include=["dpaudit", "json", "csv", "tomllib"]):
    from dpaudit import DpauditError
    from dpaudit.certificates.amend import read_amendments
    from dpaudit.certificates.import_run import read_manifest
    from dpaudit.certificates.policy import read_policy
    from dpaudit.certificates.sign import signature_steps
    from dpaudit.certificates.verify.verify import verify_certificate
    from dpaudit.runs.config import parse_config, read_config
    from dpaudit.runs.records import private_and_public
    from dpaudit.storage.journal import read_journal
    from dpaudit.storage.scores import read_coins, read_scores
    from dpaudit.storage.tables import read_table

COLUMNS = ("id", "score")
RUN = small_config(data__path="private.txt")
TARGETS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "certificate": ("certificate.json", verify_certificate),
    "ledger": ("ledger.jsonl", read_journal),
    "manifest": ("manifest.json", read_manifest),
    "policy": ("policy.toml", read_policy),
    "envelope": ("c.dsse.json", lambda path: signature_steps(path.with_name("c.json"), b"x", ())),
    "amendment": ("amendments/0001.json", lambda path: read_amendments(path.parent.parent / "certificate.json", b"x")),
    "config": ("c.toml", read_config),
    "coins": ("coins.json", read_coins),
    "jsonl": ("scores.jsonl", read_scores),
    "records": ("private.txt", lambda path: private_and_public(parse_config(RUN, "c"), path.parent)),
    "csv": ("scores.csv", lambda path: read_table(path, columns=COLUMNS)),
    "parquet": ("scores.parquet", lambda path: read_table(path, columns=COLUMNS)),
}


def main() -> None:
    """Fuzz the target named first on the command line."""
    name, reader = TARGETS[sys.argv.pop(1)]
    path = Path(tempfile.mkdtemp()) / name
    path.parent.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            reader(path)
        except DpauditError as error:
            assert "\n" not in str(error), error

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
