"""What the owner of a run says of it and nobody checks, as it enters the certificate's provenance."""

from __future__ import annotations

from typing import Any

from dpaudit.runs.config import Config
from dpaudit.storage.run_folder import RunRecord

KEY, STANDING = "stated_by_owner", "stated by the owner, not checked"


def owners_words(config: Config, record: RunRecord) -> dict[str, Any]:
    """Sections ``stated_by_owner`` and ``run_began``; the first names what was not stated, too.

    The date (a day, UTC) is the run folder's own, so that issuing the same evidence again gives the same bytes; only a
    :mod:`timestamp <dpaudit.certificates.timestamp>` is somebody else's.
    """
    stated = config.statement.model_dump(mode="json")
    given = {key: value for key, value in stated.items() if value is not None}
    words = {"standing": STANDING, **given, "not_stated": sorted(set(stated) - set(given))}
    return {KEY: words, "run_began": record.created[:10]}
