"""A commitment to the private data set: an HMAC under a key that stays with it, compared on every resume."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from dpaudit.privacy.errors import InvalidEvidence
from dpaudit.runs.config import Config
from dpaudit.runs.records import Records
from dpaudit.storage.commitment import canonical_json
from dpaudit.storage.files import PRIVATE_MODE, write_atomically
from dpaudit.storage.run_folder import RunFolder, read_json, write_json


def commit_data(config: Config, folder: RunFolder, private: Records) -> None:
    """Commit the private data set by HMAC under a key that stays in ``private/``, as does the number of records."""
    key = secrets.token_bytes(32)
    write_atomically(folder.data_key, key, mode=PRIVATE_MODE)
    write_json(
        folder.data_commitment,
        {
            "hmac_sha256": data_hmac(key, private),
            # Of the private records only the declared number is ever published.
            "records": len(private),
            "public_size": config.privacy.public_size,
        },
        mode=PRIVATE_MODE,
    )


def data_hmac(key: bytes, private: Records) -> str:
    """Hexadecimal HMAC-SHA-256 of texts, labels and units in their order."""
    content: dict[str, object] = {"texts": list(private.texts), "labels": private.labels}
    if private.units is not None:
        content["units"] = private.units
    return hmac.new(key, canonical_json(content), hashlib.sha256).hexdigest()


def same_data(folder: RunFolder, private: Records) -> bool:
    """Whether these are the records that the run began with.

    Raises
    ------
    InvalidEvidence
        When key or commitment are missing.
    """
    try:
        key = folder.data_key.read_bytes()
    except FileNotFoundError as error:
        raise InvalidEvidence(
            f"{folder.data_key} is missing, so that the private data cannot be compared with those the run began with;"
            " restore it, or start a new run folder."
        ) from error
    return hmac.compare_digest(data_hmac(key, private), str(read_json(folder.data_commitment).get("hmac_sha256")))
