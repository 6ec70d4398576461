"""Access keys: list, create, revoke."""

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("KEY", "id"),
    ("USER", "user"),
    ("NAME", lambda key: key["name"] or key["alias"]),
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
@click.option("--user", help="Whose (default: your own).")
@click.option("--name", help="What it is for.")
@click.option("--role", help="Not more than the user's own (default: the user's).")
@click.option("--endpoint", "endpoints", multiple=True, help="For invoker keys: NAME, * for all.")
@click.option("--days", "expires_days", type=float, help="Days until it expires (default: 90).")
@options
def create(
    session: Session,
    *,
    user: str | None,
    name: str | None,
    role: str | None,
    endpoints: tuple[str, ...],
    expires_days: float | None,
) -> None:
    """Make an access key. Id and secret are shown once, on stdout."""
    given = {"user": user, "name": name, "role": role, "endpoints": list(endpoints) or None}
    made = session.client.post("access-keys", **given, expires_days=expires_days)
    session.note(f"an access key of {made['user']} ({made['role']}), shown this once:")
    session.done(made, f"AWS_ACCESS_KEY_ID={made['id']}\nAWS_SECRET_ACCESS_KEY={made['secret_key']}")


@access_keys.command()
@click.argument("key_id", metavar="KEY")
@options
def revoke(session: Session, key_id: str) -> None:
    """Make an access key useless, at once."""
    session.done(session.client.delete("access-keys", key_id), f"access key {key_id} revoked")
