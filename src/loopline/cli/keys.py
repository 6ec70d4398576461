"""API keys: list, create, revoke."""

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("KEY", "id"),
    ("USER", "user"),
    ("NAME", "name"),
    ("ROLE", "role"),
    ("ENDPOINTS", lambda key: ",".join(key["endpoints"] or [])),
    ("EXPIRES", "expires_at"),
    ("REVOKED", "revoked_at"),
)


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("list")
@options
def list_(session: Session) -> None:
    """Keys without their secrets: an administrator sees all, others their own."""
    session.table(session.client.get("keys"), COLUMNS)


@keys.command()
@click.option("--user", help="Whose (default: your own).")
@click.option("--name", help="What it is for (default: its endpoint); two of one name may be live, for rotation.")
@click.option("--role", help="Not more than the user's own (default: the user's).")
@click.option("--endpoint", "endpoints", multiple=True, help="For invoker keys; * for all. May be repeated.")
@click.option("--days", "expires_days", type=float, help="Days until it expires (default: 90).")
@options
def create(
    session: Session,
    user: str | None,
    name: str | None,
    role: str | None,
    endpoints: tuple[str, ...],
    expires_days: float | None,
) -> None:
    """Make a key. It is shown once, on stdout."""
    name = name or next((endpoint for endpoint in endpoints if endpoint != "*"), None)
    made = session.client.post(
        "keys", user=user, name=name, role=role, endpoints=list(endpoints) or None, expires_days=expires_days
    )
    article = "an" if made["role"][0] in "aei" else "a"
    session.note(f"{article} {made['role']} key of {made['user']}, shown this once:")
    session.done(made, made["key"])


@keys.command()
@click.argument("key_id", metavar="KEY")
@options
def revoke(session: Session, key_id: str) -> None:
    """Make a key useless, at once. KEY: its id, the 8 characters after lk_."""
    session.done(session.client.delete("keys", key_id), f"key {key_id} revoked")
