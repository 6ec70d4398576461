"""API keys: list, create, revoke."""

from collections.abc import Callable
from typing import Any

import click

from loopline.cli.session import Session, options

WINDOWS = {60: "minute", 3600: "hour", 86400: "day"}


def _limits(key: dict[str, Any]) -> str | None:
    parts = [f"{key['rate']:g}/s"] if key["rate"] else []
    if key["burst"]:
        parts.append(f"burst {key['burst']:g}")
    if key["quota"]:
        parts.append(f"{key['quota']}/{WINDOWS.get(key['quota_seconds'], key['quota_seconds'])}")
    return ", ".join(parts) or None


COLUMNS = (
    ("KEY", "id"),
    ("USER", "user"),
    ("NAME", "name"),
    ("ROLE", "role"),
    ("ENDPOINTS", lambda key: ",".join(key["endpoints"] or [])),
    ("LIMITS", _limits),
    ("EXPIRES", "expires_at"),
    ("REVOKED", "revoked_at"),
)


def whose(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say whose a new key is, and what it opens."""
    for option in (
        click.option("--days", "expires_days", type=float, help="Days until it expires (default: 90)."),
        click.option("--endpoint", "endpoints", multiple=True, help="For invokers: NAME, function:NAME, * for all."),
        click.option("--role", help="Not more than the user's own (default: the user's)."),
        click.option("--name", help="What it is for."),
        click.option("--user", help="Whose (default: your own)."),
    ):
        function = option(function)
    return function


def limits(function: Callable[..., None]) -> Callable[..., None]:
    """The options that limit a key."""
    for option in (
        click.option("--quota", help="Predictions in a minute, an hour or a day, e.g. 10000/day."),
        click.option("--burst", type=float, help="Predictions at once (default: a second's)."),
        click.option("--rate", type=float, help="Predictions a second."),
    ):
        function = option(function)
    return function


@click.group()
def keys() -> None:
    """API keys."""


@keys.command("list")
@options
def list_(session: Session) -> None:
    """Keys without their secrets: an administrator sees all, others their own."""
    session.table(session.client.get("keys"), COLUMNS)


@keys.command()
@whose
@limits
@options
def create(session: Session, *, name: str | None, endpoints: tuple[str, ...], **given: Any) -> None:
    """Make a key. It is shown once, on stdout.

    Its name is its endpoint's unless you say one; two of one name may be live, for rotation.
    """
    name = name or next((endpoint for endpoint in endpoints if endpoint != "*"), None)
    made = session.client.post("keys", name=name, endpoints=list(endpoints) or None, **given)
    article = "an" if made["role"][0] in "aei" else "a"
    session.note(f"{article} {made['role']} key of {made['user']}, shown this once:")
    session.done(made, made["key"])


@keys.command()
@click.argument("key_id", metavar="KEY")
@limits
@options
def limit(session: Session, key_id: str, rate: float | None, burst: float | None, quota: str | None) -> None:
    """Put limits in the place of a key's present ones; without any, it has none."""
    changed = session.client.put("keys", key_id, "limits", rate=rate, burst=burst, quota=quota)
    session.done(changed, f"key {key_id}: {_limits(changed) or 'no limits'}")


@keys.command()
@click.argument("key_id", metavar="KEY")
@options
def revoke(session: Session, key_id: str) -> None:
    """Make a key useless, at once. KEY: its id, the 8 characters after lk_."""
    session.done(session.client.delete("keys", key_id), f"key {key_id} revoked")
