"""One file that holds a whole release: made to be sent, verified from itself alone, without a network.

A bundle is a ZIP file of the folder ``release/``: certificate, signature, amendments, ledger, plan, scores, pages
and, unless left out, the weights. Nothing of it is trusted: it is unpacked with limits into an empty folder, and what
is verified there is what would be verified in the original one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.privacy.text import printable
from dpaudit.storage.commitment import sha256_file
from dpaudit.storage.confined import LIMITS, Limits, call

ENDING = ".dpa.zip"
MAX_FILES = 10_000
MAX_UNPACKED = 8 * 2**30
_RATIO, _FREE = 50, 256 * 2**20
"""A bundle may unpack to its own size times the first, beyond the second: JSON packs well, and a bomb packs better."""
_BLOCK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
NOTE = """This file holds the evidence of one dpaudit certificate.

    dpaudit verify THIS-FILE

derives every number in it again, without the model and without a network; report.html is the same for people. What is
not proved stands in the report: unsigned, a certificate shows that its numbers agree, and not who made them.
"""
_NOTE_NAME = "READ_ME.txt"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that :func:`dpaudit.bundle` wrote.

    Attributes
    ----------
    path : Path
    sha256 : str
        Digest of the file, to be told by another way than the file itself.
    files : tuple of str
        Names inside, in their order.
    left_out : tuple of str
        Weights that stayed behind; ``verify`` cannot compare them from the bundle alone.
    """

    path: Path
    sha256: str
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.bundle/1``."""
        return {
            "schema": "dpaudit.bundle/1",
            "path": str(self.path),
            "sha256": self.sha256,
            "files": list(self.files),
            "left_out": list(self.left_out),
        }

    def __str__(self) -> str:
        size = self.path.stat().st_size
        lines = [
            f"wrote {self.path}: {len(self.files)} files, {size:,} bytes",
            f"SHA-256 {self.sha256}",
            *(f"left out: {name} (its digest stands in the certificate)" for name in self.left_out),
            f"next, anywhere: dpaudit verify {self.path.name}",
        ]
        return "\n".join(printable(line) for line in lines)


def bundle(run: str | Path, out: str | Path | None = None, *, weights: bool = True) -> Bundle:
    """Write one file with all evidence of a certificate.

    Parameters
    ----------
    run : path
        Run folder, its ``release/``, or the certificate in it. Nothing outside the certificate's folder is read.
    out : path, optional
        File to write; by default the run folder's name with ``.dpa.zip``, in the current folder.
    weights : bool
        Whether the files in ``model/`` that hold numbers go with it.

    Returns
    -------
    Bundle
        The same release gives the same bytes.

    Raises
    ------
    InvalidEvidence
        When there is no certificate.
    InvalidValue
        When the file exists, or the release holds what is no ordinary file.
    """
    certificate = _certificate(Path(run))
    folder = certificate.parent
    name = (folder.resolve().parent if folder.name == "release" else folder.resolve()).name or "run"
    path = Path(f"{name}{ENDING}") if out is None else Path(out)
    if os.path.lexists(path):
        raise InvalidValue(f"{path} exists; give another --out.")
    found = dict(_files(folder))
    left = tuple(n for n in found if not weights and _is_weights(n))
    packed = tuple(n for n in found if n not in left)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for inner in packed:
                with archive.open(_entry(inner), "w", force_zip64=True) as target, found[inner].open("rb") as source:
                    shutil.copyfileobj(source, target, _BLOCK)
            if _NOTE_NAME not in found:
                archive.writestr(_entry(_NOTE_NAME), NOTE)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Bundle(path=path, sha256=sha256_file(path), files=packed, left_out=left)


def _certificate(path: Path) -> Path:
    """The certificate in a run folder or its release, or the path itself."""
    if path.is_dir():
        for candidate in (path / "certificate.json", path / "release" / "certificate.json"):
            if candidate.is_file():
                return candidate
        raise InvalidEvidence(f"{path} holds no certificate.json; give the certificate or a finished run folder.")
    if not path.is_file() or path.name != "certificate.json":
        state = "is no certificate.json" if path.exists() else "does not exist"
        raise InvalidEvidence(f"{path} {state}; give certificate.json or a finished run folder.")
    return path


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every ordinary file of a release by its name inside, sorted; links would lead out of it and are refused."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise InvalidValue(f"{name} is a link, which a bundle cannot hold; put the file itself there.")
        if path.is_file() and not name.endswith((".tmp", ".lock")):
            yield name, path


def _is_weights(name: str) -> bool:
    return name.startswith("model/") and PurePosixPath(name).suffix in (".safetensors", ".bin", ".pt", ".gguf")


def _entry(name: str) -> zipfile.ZipInfo:
    """ZIP entry without time or owner, so that the same release gives the same bytes everywhere."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    return entry


def is_bundle(path: Path) -> bool:
    """Whether a file begins as a ZIP file does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@contextlib.contextmanager
def opened(path: Path, limits: Limits = LIMITS) -> Iterator[Path]:
    """The place of a certificate: the path itself, or for a bundle a folder that exists as long as the context.

    Raises
    ------
    InvalidEvidence
        When a bundle cannot be unpacked within the limits into ordinary files below one folder.
    """
    if not is_bundle(path):
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="dpaudit-bundle-"))
    try:
        call(_unpack_for_another_process, {"path": str(path.absolute()), "folder": str(folder)}, limits)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack_for_another_process(path: str, folder: str) -> None:
    unpack(Path(path), Path(folder))


def unpack(path: Path, folder: Path) -> None:
    """Unpack a bundle into an empty folder.

    Raises
    ------
    InvalidEvidence
        Names the first entry that is not an ordinary file below the folder, or that goes beyond the limits.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _refuse_many(path, entries)
            seen: set[str] = set()
            for entry in entries:
                _copy(archive, entry, folder / _inside(path, entry, seen))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = printable(str(error) or type(error).__name__)[:160].rstrip(".")
        raise InvalidEvidence(f"bundle {path.name} cannot be unpacked ({reason}); get it again.") from None


def _refuse_many(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    size, most = sum(entry.file_size for entry in entries), path.stat().st_size * _RATIO + _FREE
    if len(entries) > MAX_FILES or size > min(most, MAX_UNPACKED):
        raise InvalidEvidence(
            f"bundle {path.name} holds {len(entries)} files of {size:,} bytes, and at most {MAX_FILES} files of"
            f" {min(most, MAX_UNPACKED):,} bytes are unpacked from one of its size; unpack it yourself and verify that."
        )


def _inside(path: Path, entry: zipfile.ZipInfo, seen: set[str]) -> str:
    """The relative path of an entry, refused where it is not an ordinary, new one."""
    name = entry.filename
    parts = PurePosixPath(name).parts
    mode = entry.external_attr >> 16
    odd = not parts or name.startswith("/") or ".." in parts or any(c in name for c in "\\:\0")
    if odd or stat.S_IFMT(mode) not in (0, stat.S_IFREG) or entry.flag_bits & 1 or name.casefold() in seen:
        raise InvalidEvidence(
            f"bundle {path.name} holds {printable(name)[:120]!r}, which is no ordinary file below one folder, is"
            " encrypted, or stands there twice; get the bundle again."
        )
    seen.add(name.casefold())
    return str(PurePosixPath(*parts))


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Copy one entry, and refuse one that holds more bytes than it declares."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with archive.open(entry) as source, target.open("xb") as out:
        while block := source.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise InvalidEvidence(
                    f"bundle: {printable(entry.filename)[:120]!r} is larger than it says; get it again."
                )
            out.write(block)
