"""Digests of files, beside those of values in :mod:`dpaudit.privacy.commitment`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dpaudit.privacy.commitment import NONCE_BYTES as NONCE_BYTES
from dpaudit.privacy.commitment import canary_id as canary_id
from dpaudit.privacy.commitment import canonical_json as canonical_json
from dpaudit.privacy.commitment import commitment as commitment
from dpaudit.privacy.commitment import manifest as manifest
from dpaudit.privacy.commitment import sha256_bytes as sha256_bytes


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
