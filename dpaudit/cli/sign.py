"""``dpaudit sign``: sign a certificate or an amendment, or make a key."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.common import emit, json_option


@click.command("sign")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--key", type=click.Path(path_type=Path), help="Ed25519 private key (PEM) to sign with.")
@click.option("--new-key", type=click.Path(path_type=Path), help="Make a key: this file, and the public one beside it.")
@json_option
def command(file: Path | None, key: Path | None, new_key: Path | None, as_json: bool) -> None:
    """Sign FILE (a certificate, a run folder, or an amendment) with --key; others may sign beside you.

    A signature says who vouches for these bytes. Somebody other than the trainer signing says more than the trainer.

    \b
    Example:
      dpaudit sign --new-key signer.pem
      dpaudit sign runs/first --key signer.pem
    """
    from dpaudit.certificates import key_id, new_key_pair, sign_file
    from dpaudit.certificates.verify.verify import find_certificate
    from dpaudit.storage.files import PRIVATE_MODE, write_atomically

    if new_key is not None:
        public = new_key.with_suffix(".pub.pem")
        for path in (new_key, public):
            if path.exists():
                raise click.UsageError(f"{path} exists; give --new-key another name.")
        made = new_key_pair()
        write_atomically(new_key, made[0], mode=PRIVATE_MODE)
        write_atomically(public, made[1])
        name = key_id(made[1].decode())
        payload = {"schema": "dpaudit.sign/1", "key": str(new_key), "public_key": str(public), "key_id": name}
        emit(payload, as_json, f"wrote {new_key} (keep it secret) and {public} (give it away); key {name}")
        return
    if file is None or key is None:
        raise click.UsageError("Give a file and --key, or --new-key.")
    envelope = sign_file(find_certificate(file), key.read_bytes())
    emit({"schema": "dpaudit.sign/1", "envelope": str(envelope)}, as_json, f"wrote {envelope}")
