"""Reading Parquet files of others in a process of its own.

The Parquet reader is C++ and can be crashed by a damaged file (fuzzing found a segmentation fault within minutes). The
child holds no secrets, gets the bytes on standard input, has limits on memory and time, and answers in JSON.
"""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from dpaudit.privacy.errors import InvalidEvidence

MAX_SECONDS = 120
MAX_MEMORY = 16 * 2**30

# Self-contained, so that the child finds it wherever dpaudit itself was imported from.
_CHILD = """
import json, sys
request = json.loads(sys.argv[1])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
def main():
    import pyarrow as pa, pyarrow.parquet as pq
    data = sys.stdin.buffer.read()
    file = pq.ParquetFile(
        pa.BufferReader(data), thrift_string_size_limit=10**7, thrift_container_size_limit=10**6
    )
    meta = file.metadata
    if meta.num_rows > request["rows"]:
        return {"error": "it has %d rows and the limit is %d" % (meta.num_rows, request["rows"])}
    size = sum(
        meta.row_group(g).column(c).total_uncompressed_size
        for g in range(meta.num_row_groups) for c in range(meta.num_columns)
    )
    if not 0 <= size <= request["bytes"]:
        return {"error": "it expands to %d bytes and the limit is %d" % (size, request["bytes"])}
    names = [n for n in file.schema_arrow.names if n in request["columns"]]
    table = file.read(columns=names, use_threads=False)
    return {"columns": {name: table.column(name).to_pylist() for name in names}}
try:
    answer = main()
except BaseException as error:
    answer = {"error": (str(error).splitlines() or [type(error).__name__])[0][:160]}
json.dump(answer, sys.stdout, default=lambda v: v.hex() if isinstance(v, bytes) else str(v))
sys.stdout.flush()
"""


def read_parquet(data: bytes, columns: Sequence[str], *, name: str, rows: int, size: int) -> dict[str, list[Any]]:
    """Named columns of a Parquet file given as bytes; those that are absent are left out.

    Parameters
    ----------
    rows, size : int
        Limits on rows and on uncompressed bytes.

    Raises
    ------
    InvalidEvidence
        When the file is damaged, beyond the limits, or crashes its reader.
    """
    answer = _ask(hashlib.sha256(data).digest(), _Bytes(data), tuple(columns), rows, size)
    if "columns" not in answer:
        raise InvalidEvidence(f"{name} is not a readable Parquet file ({answer['error'].rstrip('.')}).")
    found: dict[str, list[Any]] = answer["columns"]
    return {column: list(cells) for column, cells in found.items()}


class _Bytes:
    """Bytes that a cache does not compare: their digest stands beside them."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bytes)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=4)
def _ask(digest: bytes, held: _Bytes, columns: tuple[str, ...], rows: int, size: int) -> dict[str, Any]:
    request = {"columns": columns, "rows": rows, "bytes": size, "seconds": MAX_SECONDS, "memory": MAX_MEMORY}
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(request)]
    try:
        child = subprocess.run(command, input=held.data, capture_output=True, timeout=MAX_SECONDS, check=False)
        answer = json.loads(child.stdout) if child.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        answer = None
    if not isinstance(answer, dict) or not ({"columns", "error"} & set(answer)):
        return {"error": "it crashed the Parquet reader"}
    return answer
