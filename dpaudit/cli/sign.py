"""``dpaudit sign``: sign a certificate or an amendment, or make a key."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import PATH, Result, Said, argument, option, printed


@printed("sign")
@argument("file", type=PATH, required=False)
@option("--key", type=PATH, help="Ed25519 private key (PEM) to sign with.")
@option("--new-key", type=PATH, help="Make a key: this file, and the public one beside it.")
def command(file: Path | None, key: Path | None, new_key: Path | None) -> Result:
    """Sign FILE (a certificate, a run folder, or an amendment) with --key; others may sign beside you.

    A signature says who vouches for these bytes. Somebody other than the trainer signing says more than the trainer.

    \b
    Example:
      dpaudit sign --new-key signer.pem
      dpaudit sign runs/first --key signer.pem
    """
    from dpaudit.certificates.sign import sign_file, write_key_pair
    from dpaudit.certificates.verify.verify import find_certificate

    if new_key is not None:
        return write_key_pair(new_key)
    if file is None or key is None:
        raise click.UsageError("Give a file and --key, or --new-key.")
    envelope = sign_file(find_certificate(file), key.read_bytes())
    return Said({"schema": "dpaudit.sign/1", "envelope": str(envelope)}, f"wrote {envelope}")
