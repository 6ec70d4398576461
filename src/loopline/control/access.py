"""Users and API keys.

A key is shown once; only the SHA-256 of its secret is stored. Gateways know keys from the snapshot, so that a change of
keys writes one and a revoked key stops within a second.
"""

import base64
import json
import os
import secrets
from typing import Any

import sqlalchemy as sa

from loopline.control import access_keys, snapshots
from loopline.control.context import SYSTEM, Context
from loopline.domain import access, names
from loopline.domain.access import Actor, Permission
from loopline.errors import Conflict, Forbidden, NotFound, Unauthenticated
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import keys, users

DEFAULT_EXPIRY_DAYS = 90
MAX_KEPT = 1000
LIVE_KEYS = 2  # of one name: the old one and the new one, while callers change over
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def authenticate(ctx: Context, token: str | None) -> Actor:
    """Who holds this key. Raises ``Unauthenticated`` without saying which part was wrong."""
    parsed = access.parse_key(token or "")
    if parsed is None:
        raise Unauthenticated()
    row = _known(ctx, parsed[0])
    if row is None:
        changes = ctx.db.changes["key"]
        with ctx.db.read() as tx:
            row = records.find(tx, "key", id=parsed[0])
        _keep(ctx, row, changes)
    if row is None or not access.secret_matches(parsed[1], row["sha256"]) or not _live(row, ctx.clock.now()):
        raise Unauthenticated("this API key is unknown, expired or revoked")
    return Actor(name=row["user"], role=row["role"], key=row["id"])


def is_at_hand(ctx: Context, token: str | None) -> bool:
    """Whether ``authenticate`` will answer for this key without asking the database."""
    parsed = access.parse_key(token or "")
    return parsed is not None and _known(ctx, parsed[0]) is not None


def _known(ctx: Context, key: str) -> Row | None:
    """A key's row as it was read since the last change of any key, which this process alone makes."""
    changes, row = ctx.cache.setdefault("keys", {}).get(key, (None, None))
    return row if changes == ctx.db.changes["key"] else None


def _keep(ctx: Context, row: Row | None, changes: int) -> None:
    kept = ctx.cache.setdefault("keys", {})
    if row is not None and not ctx.db.postgres:  # a PostgreSQL server may have other writers
        if len(kept) >= MAX_KEPT:
            kept.clear()
        kept[row["id"]] = changes, row


def _live(row: Row, now: float) -> bool:
    return row["revoked_at"] is None and (row["expires_at"] is None or row["expires_at"] > now)


def create_user(ctx: Context, actor: Actor, *, name: str, role: str) -> dict[str, Any]:
    """Add a person or a program. A user's role bounds the roles of its keys."""
    names.check_name(name, "a user")
    access.check_role(role)
    with ctx.db.transaction(durable=True) as tx:
        return records.create(tx, "user", actor=actor.name, name=name, role=role)


def list_users(ctx: Context, actor: Actor) -> dict[str, Any]:
    """All users."""
    with ctx.db.read() as tx:
        return {"items": tx.rows(sa.select(users).order_by(users.c.name)), "next": None}


def delete_user(ctx: Context, actor: Actor, *, name: str) -> dict[str, Any]:
    """Remove a user and revoke every key of theirs, access keys too."""
    with ctx.db.transaction(durable=True) as tx:
        user = _user(tx, name)
        if name == actor.name:
            raise Conflict("nobody removes their own user; let another administrator do it")
        for row in tx.rows(sa.select(keys).where(keys.c.user == name, keys.c.revoked_at.is_(None))):
            records.set(tx, "key", row["id"], actor=actor.name, reason="user removed", revoked_at=tx.now)
        access_keys.revoke_all(ctx, tx, actor, user=name)
        records.delete(tx, "user", user["id"], actor=actor.name)
        snapshots.write(ctx, tx, actor=actor.name, reason=f"user {name} removed")
    return {"name": name}


def create_key(
    ctx: Context,
    actor: Actor,
    *,
    user: str | None = None,
    name: str | None = None,
    role: str | None = None,
    endpoints: list[str] | None = None,
    expires_days: float | None = DEFAULT_EXPIRY_DAYS,
    rate: float | None = None,
    burst: float | None = None,
    quota: str | None = None,
) -> dict[str, Any]:
    """Make a key and show it, this once.

    ``role`` is the user's own or a lesser one; an ``invoker`` key names the endpoints it may ask. At most two keys of
    one user and name are live at a time, so that a rotation ends. ``rate`` (predictions a second), ``burst`` (so many
    at once) and ``quota`` (such as ``10000/day``) limit what it may ask for.
    """
    limits = access.limits(rate, burst, quota)
    access.check_expiry(expires_days)
    owner_name = actor.name if user is None else user
    with ctx.db.transaction(durable=True) as tx:
        if owner_name != actor.name:
            access.require(actor, Permission.ADMIN)
        owner = _user(tx, owner_name)
        chosen = access.check_role(owner["role"] if role is None else role)
        if not access.ROLES[chosen] <= access.ROLES[owner["role"]]:
            raise Forbidden(f"{owner_name} is {owner['role']}; a key of theirs cannot be {chosen}")
        scope = access.scope(chosen, endpoints)
        label = names.check_name("default" if name is None else name, "a key")
        live = [
            row
            for row in tx.rows(sa.select(keys).where(keys.c.user == owner_name, keys.c.name == label))
            if _live(row, tx.now)
        ]
        if len(live) >= LIVE_KEYS:
            raise Conflict(
                f"{owner_name} has {len(live)} live keys named {label!r}; revoke {live[0]['id']} first "
                "(two may be live, for rotation)"
            )
        key_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
        secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        row = records.create(
            tx,
            "key",
            actor=actor.name,
            id=key_id,
            user=owner_name,
            name=label,
            role=chosen,
            endpoints=scope,
            sha256=access.hash_secret(secret),
            created_by=actor.name,
            expires_at=None if expires_days is None else tx.now + expires_days * 86400,
            **limits,
        )
        snapshots.write(ctx, tx, actor=actor.name, reason=f"key {key_id} created")
    return {**_public(row), "key": access.make_key(key_id, secret)}


def list_keys(ctx: Context, actor: Actor) -> dict[str, Any]:
    """Keys without their secrets: an administrator sees all, others their own."""
    query = sa.select(keys).order_by(keys.c.created_at.desc())
    if Permission.ADMIN not in access.ROLES[actor.role]:
        query = query.where(keys.c.user == actor.name)
    with ctx.db.read() as tx:
        return {"items": [_public(row) for row in tx.rows(query)], "next": None}


def limit_key(
    ctx: Context,
    actor: Actor,
    *,
    key: str,
    rate: float | None = None,
    burst: float | None = None,
    quota: str | None = None,
) -> dict[str, Any]:
    """Put these limits in the place of a key's present ones; none given: it has none. What was used stays used."""
    access.require(actor, Permission.ADMIN)
    limits = access.limits(rate, burst, quota)
    with ctx.db.transaction(durable=True) as tx:
        row = _key(tx, key)
        if row["revoked_at"] is not None:
            raise Conflict(f"the key {key} was revoked")
        records.set(tx, "key", key, actor=actor.name, **limits)
        snapshots.write(ctx, tx, actor=actor.name, reason=f"key {key} limited")
    return _public({**row, **limits})


def _key(tx: Tx, key: str) -> Row:
    row = records.find(tx, "key", id=key)
    if row is None:
        raise NotFound(f"there is no key {key!r}; a key's id is the 8 characters after lk_")
    return row


def revoke_key(ctx: Context, actor: Actor, *, key: str) -> dict[str, Any]:
    """Make a key useless, and the temporary ones taken with it. Gateways refuse it with the next snapshot."""
    with ctx.db.transaction(durable=True) as tx:
        row = _key(tx, key)
        if row["user"] != actor.name:
            access.require(actor, Permission.ADMIN)
        if row["revoked_at"] is None:
            records.set(tx, "key", key, actor=actor.name, revoked_at=tx.now)
            access_keys.end_taken(ctx, tx, actor, key=key)
            row["revoked_at"] = tx.now
            snapshots.write(ctx, tx, actor=actor.name, reason=f"key {key} revoked")
    return _public(row)


def _user(tx: Tx, name: str) -> Row:
    row = records.find(tx, "user", name=name)
    if row is None:
        raise NotFound(f"there is no user {name!r}")
    return row


def _public(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "sha256"}


def bootstrap(ctx: Context, url: str) -> str | None:
    """At the very first start: make the user ``admin``, a key, shown once, and an access key, for this machine's owner.

    Both go to ``client.json`` (mode 0600) in the data directory, where the command line finds it. Returns the key
    the first time, None ever after; the URL in the file follows the port.
    """
    path = ctx.settings.dir / "client.json"
    with ctx.db.read() as tx:
        fresh = tx.row(sa.select(users).limit(1)) is None
    key: str | None = None
    if fresh:
        with ctx.db.transaction(durable=True) as tx:
            records.create(tx, "user", actor=SYSTEM.name, name="admin", role="admin")
        owner = Actor("admin", "admin")
        key = create_key(ctx, owner, user="admin", name="first", expires_days=None)["key"]
        signer = access_keys.create(ctx, owner, name="first", expires_days=None)
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = {}
    stored["url"] = url
    if key:
        stored["key"] = key
        stored["access_key"] = {"id": signer["id"], "secret_key": signer["secret_key"]}
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(stored, file)
    temporary.rename(path)
    return key
