"""Reading Parquet and Arrow files of others in a process of its own.

The Parquet reader is C++ and can be crashed by a damaged file (fuzzing found a segmentation fault within minutes). The
child holds no secrets, gets the bytes on standard input, has limits on memory and time, and answers in JSON, of which
no more than a stated number of bytes is read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from typing import IO, Any

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.storage.budget import seconds_left

MAX_SECONDS = 120
MAX_MEMORY = 16 * 2**30

# The child may be unable to import dpaudit from where it runs, so its program is self-contained.
_CHILD = """
import json, sys
request = json.loads(sys.argv[1])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"] + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Memory that is allocated; RLIMIT_AS would count what libraries only reserve. Never above what the parent may use.
    inherited, hard = resource.getrlimit(resource.RLIMIT_DATA)
    memory = request["memory"] if inherited == resource.RLIM_INFINITY else min(inherited, request["memory"])
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
except (ImportError, AttributeError, ValueError, OSError):
    pass
def parquet(pa, data):
    import pyarrow.parquet as pq
    file = pq.ParquetFile(
        pa.BufferReader(data), thrift_string_size_limit=10**7, thrift_container_size_limit=10**6
    )
    meta = file.metadata
    sizes = [
        meta.row_group(g).column(c).total_uncompressed_size
        for g in range(meta.num_row_groups) for c in range(meta.num_columns)
    ]
    size = -1 if any(s < 0 for s in sizes) else sum(sizes)
    batches = lambda names: file.iter_batches(batch_size=1000, columns=names, use_threads=False)
    return file.schema_arrow, meta.num_rows, size, batches
def arrow(pa, data):
    source = pa.BufferReader(data)
    table = (pa.ipc.open_file if data[:6] == b"ARROW1" else pa.ipc.open_stream)(source).read_all()
    batches = lambda names: table.select(names).to_batches(max_chunksize=1000)
    return table.schema, table.num_rows, len(data), batches
def longest(pa, column):
    import pyarrow.compute as pc
    t = pa.types
    if t.is_dictionary(column.type):
        column = column.dictionary
    if any(test(column.type) for test in (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary)):
        return pc.max(pc.binary_length(column)).as_py() or 0
    return 0
def main():
    import pyarrow as pa
    import pyarrow.ipc
    pa.set_memory_pool(pa.system_memory_pool())
    schema, rows, size, batches = {"parquet": parquet, "arrow": arrow}[request["kind"]](pa, sys.stdin.buffer.read())
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
    pieces, left = {n: [] for n in names}, request["size"]
    for batch in batches(names):
        for n in names:
            column = batch.column(batch.schema.get_field_index(n))
            # A cell that stands once in the file may be named by a million rows: measured before it is copied.
            if longest(pa, column) > request["cell"]:
                return {"error": "its column %r has a cell above %d bytes" % (n, request["cell"])}
            cells = json.dumps(column.to_pylist(), default=lambda v: v.hex() if isinstance(v, bytes) else str(v))[1:-1]
            left -= len(cells)
            if left < 0:
                return {"error": "its cells expand to more than %d bytes" % request["size"]}
            if cells:
                pieces[n].append(cells)
    return {"pieces": pieces, "names": list(schema.names), "rows": rows}
try:
    answer = main()
except BaseException as error:
    answer = {"error": (str(error).splitlines() or [type(error).__name__])[0][:160]}
pieces = answer.pop("pieces", None)
if pieces is None:
    json.dump(answer, sys.stdout)
else:
    sys.stdout.write('{"columns": {')
    for i, (n, parts) in enumerate(pieces.items()):
        sys.stdout.write((", " if i else "") + json.dumps(n) + ": [")
        for j, part in enumerate(parts):
            sys.stdout.write((", " if j else "") + part)
        sys.stdout.write("]")
    sys.stdout.write("}, " + json.dumps(answer)[1:])
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
        Limits on rows, and on bytes: uncompressed in the file, and of the cells as JSON.
    cell : int
        Limit on the bytes of one text.
    kind : str
        ``parquet``, or ``arrow`` for an Arrow stream or file.
    """

    columns: tuple[str, ...]
    rows: int
    size: int
    cell: int
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
    """Bytes with their digest, by which a cache compares them."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bytes)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=4)
def _ask(digest: bytes, held: _Bytes, request: ParquetRequest) -> dict[str, Any]:
    seconds = max(1, math.ceil(min(MAX_SECONDS, seconds_left())))
    wanted = {**dataclasses.asdict(request), "seconds": seconds, "memory": MAX_MEMORY}
    command = [sys.executable, "-P", "-c", _CHILD, json.dumps(wanted)]
    try:
        answer = json.loads(_run(command, held.data, limit=request.size + 2**24, seconds=4 * seconds))
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not ({"columns", "error"} & set(answer)):
        return {"error": "it crashed the Parquet reader, or went beyond its limits of time and memory"}
    return answer


def _run(command: list[str], data: bytes, *, limit: int, seconds: float) -> bytes:
    """Standard output of a command that gets ``data``; empty when it failed, took too long or said too much."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdin is not None and child.stdout is not None
    clock = threading.Timer(seconds, child.kill)
    writer = threading.Thread(target=_write, args=(child.stdin, data), daemon=True)
    clock.start()
    writer.start()
    try:
        pieces: list[bytes] = []
        while limit > 0 and (piece := os.read(child.stdout.fileno(), 2**20)):
            pieces.append(piece)
            limit -= len(piece)
        if limit <= 0:
            child.kill()
        return b"".join(pieces) if child.wait() == 0 else b""
    finally:
        clock.cancel()
        child.kill()
        child.wait()
        writer.join()
        child.stdout.close()


def _write(pipe: IO[bytes], data: bytes) -> None:
    try:
        with pipe:
            pipe.write(data)
    except OSError:  # the child ended before it read everything
        pass
