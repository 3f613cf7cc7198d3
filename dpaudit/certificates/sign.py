"""DSSE envelopes with Ed25519 over a certificate's exact bytes (needs the package ``cryptography``).

The envelope is ``certificate.dsse.json`` beside ``certificate.json``: ``payloadType``, the payload in base64, and
signatures over the pre-authentication encoding ``DSSEv1 SP len SP type SP len SP payload``. A key id is the SHA-256 of
the raw public key; it is a hint for people and is never trusted on its own.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import os
from pathlib import Path
from typing import Any

from dpaudit.certificates.verify.report import ABSENT, DIFFERENT, RECORDED, UNSIGNED, Step
from dpaudit.privacy.errors import InvalidEvidence, InvalidValue
from dpaudit.storage.commitment import canonical_json, sha256_bytes
from dpaudit.storage.files import PRIVATE_MODE, write_atomically
from dpaudit.storage.readers import parse_json, read_bytes

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_SIGNATURES = 16


def envelope_path(certificate: Path) -> Path:
    """Where the envelope of a certificate lies: ``certificate.json`` → ``certificate.dsse.json``."""
    return certificate.with_name(certificate.stem + ".dsse.json")


def pre_authentication_encoding(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Bytes that are signed: type and payload with their lengths, so that neither can be reinterpreted."""
    kind = payload_type.encode("utf-8")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def new_key_pair() -> tuple[bytes, bytes]:
    """Fresh Ed25519 key: private key as PEM (PKCS 8, unencrypted; keep it with mode 0600) and public key as PEM.

    Returns
    -------
    (bytes, bytes)
        Private key and public key.

    Raises
    ------
    InvalidValue
        If the package for signatures is missing.
    """
    ed25519, serialization = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """Where a new key lies: the private and the public file, and the key id (SHA-256 of the raw public key)."""

    private: Path
    public: Path
    name: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON value with schema ``dpaudit.sign/1``."""
        files = {"key": str(self.private), "public_key": str(self.public)}
        return {"schema": "dpaudit.sign/1", **files, "key_id": self.name}

    def __str__(self) -> str:
        return f"wrote {self.private} (keep it secret) and {self.public} (give it away); key {self.name}"


def write_key_pair(path: Path) -> KeyFiles:
    """Make an Ed25519 key and write it: ``path`` readable by its owner alone, and the public key beside it.

    Raises
    ------
    InvalidValue
        When one of the two files exists; neither is overwritten.
    """
    public = path.with_suffix(".pub.pem")
    for file in (path, public):
        if file.exists():
            raise InvalidValue(f"{file} exists; give --new-key another name.")
    made = new_key_pair()
    write_atomically(path, made[0], mode=PRIVATE_MODE)
    write_atomically(public, made[1])
    return KeyFiles(private=path, public=public, name=key_id(made[1].decode()))


def sign(payload: bytes, private_key: bytes) -> bytes:
    """DSSE envelope (canonical JSON) over the exact bytes of a certificate.

    Parameters
    ----------
    payload : bytes
        The bytes of ``certificate.json``.
    private_key : bytes
        Ed25519 private key, PEM.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(private_key, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidValue(
            f"the signing key cannot be read ({error}); give an unencrypted Ed25519 key as PEM."
        ) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InvalidValue("the signing key is not an Ed25519 key; make one with dpaudit.certificates.new_key_pair.")
    signature = key.sign(pre_authentication_encoding(payload))
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode("ascii"),
        "signatures": [{"keyid": sha256_bytes(raw), "sig": base64.b64encode(signature).decode("ascii")}],
    }
    return canonical_json(envelope) + b"\n"


def countersign(envelope: bytes, payload: bytes, private_key: bytes) -> bytes:
    """Add a signature to an envelope; those that stand in it stay, and signing twice with one key changes nothing.

    Parameters
    ----------
    envelope : bytes
        Bytes of the envelope that exists.
    payload : bytes
        What it must sign: the bytes of ``certificate.json``.
    private_key : bytes
        Ed25519 private key, PEM.

    Raises
    ------
    InvalidEvidence
        When the envelope is damaged or signs other bytes.
    """
    held, _ = _parse(envelope, "certificate.dsse.json")
    if held != payload:
        raise InvalidEvidence("certificate.dsse.json signs other bytes than certificate.json; restore both files.")
    value, added = parse_json(envelope), parse_json(sign(payload, private_key))
    rows = value["signatures"]
    if added["signatures"][0] not in rows:
        rows = [*rows, *added["signatures"]]
    if len(rows) > MAX_SIGNATURES:
        raise InvalidValue(f"certificate.dsse.json holds {len(rows) - 1} signatures and at most {MAX_SIGNATURES} fit.")
    return canonical_json({**value, "signatures": rows}) + b"\n"


def sign_file(path: str | Path, private_key: bytes) -> Path:
    """Sign a certificate or an amendment where it lies, and return the envelope; signatures that stand there stay.

    Parameters
    ----------
    path : path
        Certificate or amendment.
    private_key : bytes
        Ed25519 key as PEM, see :func:`new_key_pair`.

    Returns
    -------
    Path
        The envelope, ``certificate.dsse.json`` for ``certificate.json``.

    Raises
    ------
    InvalidEvidence
        When an envelope stands there that signs other bytes.
    InvalidValue
        When the key cannot be read.
    """
    path = Path(path)
    payload, envelope = read_bytes(path), envelope_path(path)
    stands = envelope.exists()
    write_atomically(
        envelope, countersign(read_bytes(envelope), payload, private_key) if stands else sign(payload, private_key)
    )
    return envelope


def key_id(public_key: str) -> str:
    """Key id (SHA-256 of the raw key) of an Ed25519 public key given as PEM."""
    _, serialization = _cryptography()
    raw = _load_public(public_key).public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return sha256_bytes(raw)


def signature_steps(certificate: Path, data: bytes, trusted: tuple[str, ...]) -> tuple[list[Step], str]:
    """Check the envelope beside a certificate against trusted keys (PEM); returns steps and the origin in words.

    A good signature is "recorded": it shows who vouches for the bytes, and recomputes nothing.
    """
    path = envelope_path(certificate)
    if not os.path.lexists(path):
        detail = "there is no certificate.dsse.json"
        if trusted:
            return [Step("signature", DIFFERENT, f"{detail}, and the policy trusts only signed certificates")], UNSIGNED
        return [Step("signature", ABSENT, detail)], UNSIGNED
    try:
        payload, signatures = _open(path)
    except InvalidEvidence as error:
        return [Step("signature", DIFFERENT, str(error))], UNSIGNED
    if payload != data:
        return [Step("signature", DIFFERENT, "the envelope signs other bytes than certificate.json")], UNSIGNED
    if not trusted:
        detail = "a signature is present and no trusted key was given to check it with (use --policy)"
        return [Step("signature", ABSENT, detail)], UNSIGNED
    for pem in trusted:
        for signature in signatures:
            if _verifies(pem, payload, signature):
                name = key_id(pem)
                return [Step("signature", RECORDED, f"signed by the trusted key {name[:16]}…")], f"signed by key {name}"
    return [
        Step("signature", DIFFERENT, "no signature is by a trusted key: unknown signer or replayed signature")
    ], UNSIGNED


def signers(certificate: Path, data: bytes, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Key ids of those given keys (PEM) whose signature over a certificate's exact bytes stands beside it.

    Raises
    ------
    InvalidEvidence
        When the envelope is damaged.
    """
    path = envelope_path(certificate)
    if not os.path.lexists(path):
        return ()
    payload, signatures = _open(path)
    if payload != data:
        return ()
    good = (key_id(pem) for pem in keys if any(_verifies(pem, payload, signature) for signature in signatures))
    return tuple(dict.fromkeys(good))


def _open(path: Path) -> tuple[bytes, list[bytes]]:
    return _parse(read_bytes(path), path.name)


def _parse(data: bytes, name: str) -> tuple[bytes, list[bytes]]:
    """Payload and signatures of an envelope."""
    value = parse_json(data, name=name)
    try:
        if value["payloadType"] != PAYLOAD_TYPE:
            raise InvalidEvidence(f"{name} has payloadType {str(value['payloadType'])[:60]!r}, not {PAYLOAD_TYPE}.")
        payload = base64.b64decode(value["payload"], validate=True)
        rows: list[dict[str, Any]] = value["signatures"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_SIGNATURES:
            raise InvalidEvidence(f"{name} must hold 1 to {MAX_SIGNATURES} signatures.")
        return payload, [base64.b64decode(row["sig"], validate=True) for row in rows]
    except (KeyError, TypeError, binascii.Error, ValueError) as error:
        raise InvalidEvidence(f"{name} is not a DSSE envelope ({error or type(error).__name__}).") from None


def _verifies(pem: str, payload: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        _load_public(pem).verify(signature, pre_authentication_encoding(payload))
    except InvalidSignature:
        return False
    return True


def _load_public(pem: str) -> Any:
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(pem.encode("ascii"))
    except (ValueError, TypeError, UnicodeEncodeError):
        raise InvalidValue("a trusted key cannot be read; give an Ed25519 public key as PEM.") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InvalidValue("a trusted key is not an Ed25519 public key; give one as PEM.")
    return key


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise InvalidValue("signing needs the package 'cryptography'; run: pip install cryptography.") from None
    return ed25519, serialization
