"""Access keys: list, create, revoke."""

from typing import Any

import click

from loopline.cli.keys import whose
from loopline.cli.session import Session, options

COLUMNS = (
    ("KEY", "id"),
    ("USER", "user"),
    ("NAME", lambda key: key["alias"] or key["name"]),
    ("ROLE", "role"),
    ("ENDPOINTS", lambda key: ",".join(key["endpoints"] or [])),
    ("EXPIRES", "expires_at"),
    ("REVOKED", "revoked_at"),
)


@click.group("access-keys")
def access_keys() -> None:
    """Key pairs that sign requests, for AWS's clients."""


@access_keys.command("list")
@options
def list_(session: Session) -> None:
    """Access keys without their secrets: an administrator sees all, others their own."""
    session.table(session.client.get("access-keys"), COLUMNS)


@access_keys.command()
@whose
@options
def create(session: Session, *, endpoints: tuple[str, ...], **given: Any) -> None:
    """Make an access key. Id and secret are shown once, on stdout."""
    made = session.client.post("access-keys", endpoints=list(endpoints) or None, **given)
    session.note(f"an access key of {made['user']} ({made['role']}), shown this once:")
    session.done(made, f"AWS_ACCESS_KEY_ID={made['id']}\nAWS_SECRET_ACCESS_KEY={made['secret_key']}")


@access_keys.command()
@click.argument("key_id", metavar="KEY")
@options
def revoke(session: Session, key_id: str) -> None:
    """Make an access key useless, at once, with the temporary ones that were taken with it."""
    session.done(session.client.delete("access-keys", key_id), f"access key {key_id} revoked")
