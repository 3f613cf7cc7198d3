"""Issuing a certificate once: its pages, itself and its signature are written; nothing published is ever rewritten."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpaudit.certificates.pages import Renderers, bind_pages
from dpaudit.certificates.sign import countersign, envelope_path, sign
from dpaudit.certificates.statement import Statement
from dpaudit.privacy.errors import InvalidValue
from dpaudit.storage.commitment import sha256_bytes
from dpaudit.storage.files import write_atomically
from dpaudit.storage.readers import parse_json, read_bytes

REMEDY = (
    "a certificate is amended, never rewritten: say what is new with dpaudit.certificates.amend, or, where it was never"
    " handed out, remove certificate.json and certify again"
)


def issue(
    certificate: Path, statement: Statement, renderers: Renderers, *, signing_key: bytes | None = None
) -> Statement:
    """Write a certificate with the pages it binds, and its signature.

    Issuing the same evidence again writes the same bytes; with a key it adds a signature to those that stand.

    Parameters
    ----------
    certificate : Path
        ``release/certificate.json``; pages lie relative to its folder.
    statement : Statement
        The certificate without its pages.
    renderers : mapping
        As :func:`dpaudit.certificates.pages.bind_pages` takes them.
    signing_key : bytes, optional
        Ed25519 private key, PEM.

    Returns
    -------
    Statement
        The certificate as it was written.

    Raises
    ------
    InvalidValue
        When another certificate stands there; the message names what differs.
    """
    bound, pages = bind_pages(statement, renderers)
    content = bound.to_bytes()
    if os.path.lexists(certificate):
        refuse_another(certificate, content)
    envelope = None if signing_key is None else _signed(envelope_path(certificate), content, signing_key)
    for name, page in pages.items():
        write_atomically(certificate.parent / name, page)
    write_atomically(certificate, content)
    if envelope is not None:
        write_atomically(envelope_path(certificate), envelope)
    return bound


def refuse_another(certificate: Path, content: bytes) -> None:
    """Refuse to replace a published certificate by other bytes."""
    published = read_bytes(certificate)
    if published == content:
        return
    old, new = parse_json(published, name=certificate.name), parse_json(content)
    where = next(_differences(old, new, ""), "how its pages are drawn")
    raise InvalidValue(
        f"{certificate} was published (SHA-256 {sha256_bytes(published)[:12]}…) and the evidence now gives another"
        f" certificate ({where} differs); {REMEDY}."
    )


def refuse_new_evidence(certificate: Path, what: str) -> None:
    """Refuse to gather evidence that a published certificate cannot hold, before it is gathered."""
    if os.path.lexists(certificate):
        raise InvalidValue(f"{what} would change {certificate}, which was published; {REMEDY}.")


def _signed(path: Path, content: bytes, key: bytes) -> bytes:
    return countersign(read_bytes(path), content, key) if os.path.lexists(path) else sign(content, key)


def _differences(old: Any, new: Any, place: str) -> Iterator[str]:
    """Dotted paths of the values that differ, but for the digests of itself and its pages, which follow from them."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in ("digest", "pages"):
                yield from _differences(old.get(key), new.get(key), f"{place}.{key}".lstrip("."))
    elif old != new:
        yield place
