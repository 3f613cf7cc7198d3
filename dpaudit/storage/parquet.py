"""Reading Parquet and Arrow files of others in a process of its own.

The Parquet reader is C++ and can be crashed by a damaged file (fuzzing found a segmentation fault within minutes). The
child holds no secrets, gets the bytes on standard input, has limits on memory and time, and answers in JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
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
def parquet(pa, data):
    import pyarrow.parquet as pq
    file = pq.ParquetFile(
        pa.BufferReader(data), thrift_string_size_limit=10**7, thrift_container_size_limit=10**6
    )
    meta = file.metadata
    size = sum(
        meta.row_group(g).column(c).total_uncompressed_size
        for g in range(meta.num_row_groups) for c in range(meta.num_columns)
    )
    return file.schema_arrow, meta.num_rows, size, lambda names: file.read(columns=names, use_threads=False)
def arrow(pa, data):
    source = pa.BufferReader(data)
    table = (pa.ipc.open_file if data[:6] == b"ARROW1" else pa.ipc.open_stream)(source).read_all()
    return table.schema, table.num_rows, len(data), table.select
def main():
    import pyarrow as pa
    import pyarrow.ipc
    schema, rows, size, read = {"parquet": parquet, "arrow": arrow}[request["kind"]](pa, sys.stdin.buffer.read())
    if rows > request["rows"]:
        return {"error": "it has %d rows and the limit is %d" % (rows, request["rows"])}
    if not 0 <= size <= request["size"]:
        return {"error": "it expands to %d bytes and the limit is %d" % (size, request["size"])}
    names = [n for n in schema.names if n in request["columns"]]
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        return {"error": "it has two columns named %r" % twice[0]}
    held = [n for n in names if "binary" in str(schema.field(n).type) and n not in request["binary"]]
    if held:
        return {"error": "its column %r holds bytes, not text; decode it before it is saved" % held[0]}
    table = read(names)
    return {"columns": {n: table.column(n).to_pylist() for n in names}, "names": list(schema.names), "rows": rows}
try:
    answer = main()
except BaseException as error:
    answer = {"error": (str(error).splitlines() or [type(error).__name__])[0][:160]}
json.dump(answer, sys.stdout, default=lambda v: v.hex() if isinstance(v, bytes) else str(v))
sys.stdout.flush()
"""


@dataclasses.dataclass(frozen=True, slots=True)
class ParquetRequest:
    """What to read of a file, and its limits.

    Attributes
    ----------
    columns, binary : tuple of str
        Columns to read, and those among them that may hold bytes, which become hexadecimal text.
    rows, size : int
        Limits on rows and on uncompressed bytes.
    kind : str
        ``parquet``, or ``arrow`` for an Arrow stream or file.
    """

    columns: tuple[str, ...]
    rows: int
    size: int
    binary: tuple[str, ...] = ()
    kind: str = "parquet"


def read_parquet(data: bytes, request: ParquetRequest, *, name: str) -> tuple[dict[str, list[Any]], list[str], int]:
    """Requested columns of a Parquet or Arrow file given as bytes; those that are absent are left out.

    Returns
    -------
    columns : dict of str to list
    names : list of str
        Every column of the file.
    rows : int

    Raises
    ------
    InvalidEvidence
        When the file is damaged, beyond the limits, or crashes its reader.
    """
    answer = _ask(hashlib.sha256(data).digest(), _Bytes(data), request)
    if "columns" not in answer:
        raise InvalidEvidence(
            f"{name} is not a readable {request.kind.capitalize()} file ({answer['error'].rstrip('.')})."
        )
    found: dict[str, list[Any]] = answer["columns"]
    return {column: list(cells) for column, cells in found.items()}, list(answer["names"]), int(answer["rows"])


class _Bytes:
    """Bytes that a cache does not compare: their digest stands beside them."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bytes)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=4)
def _ask(digest: bytes, held: _Bytes, request: ParquetRequest) -> dict[str, Any]:
    wanted = {**dataclasses.asdict(request), "seconds": MAX_SECONDS, "memory": MAX_MEMORY}
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(wanted)]
    try:
        child = subprocess.run(command, input=held.data, capture_output=True, timeout=MAX_SECONDS, check=False)
        answer = json.loads(child.stdout) if child.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        answer = None
    if not isinstance(answer, dict) or not ({"columns", "error"} & set(answer)):
        return {"error": "it crashed the Parquet reader"}
    return answer
