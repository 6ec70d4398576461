"""Access keys: an id and a secret that signs requests (Signature Version 4), for clients that know no bearer keys.

A signature can only be checked with the secret itself, so it is kept, sealed among the secrets, and shown once. A key
acts for its user with the user's role or a lesser one; a temporary one also bears a token and the name that it was
taken under. It ends with the key that it was taken with, or with the attempt at a job that it was made for.
"""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from loopline.control import snapshots
from loopline.control.context import SYSTEM, Context
from loopline.domain import access as rules
from loopline.domain import names
from loopline.domain.access import Actor, Permission
from loopline.errors import Conflict, Forbidden, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import access_keys

DEFAULT_EXPIRY_DAYS = 90
MAX_LIVE = 100  # of one user, temporary ones apart
MAX_KEPT = 1000
LEAST_SECONDS, MOST_SECONDS = 900, 12 * 3600
LASTING, TEMPORARY = "LLAK", "LLAS"
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


@dataclass(frozen=True)
class Holder:
    """Who a key acts for, and what its signatures are checked with."""

    actor: Actor
    secret: str
    endpoints: tuple[str, ...]
    alias: str | None
    session: str | None
    token_sha256: str | None
    expires_at: float | None


def find(ctx: Context, key: str) -> Holder | None:
    """Whom a live key acts for; None for one that is unknown, revoked or over."""
    changes = ctx.db.changes["access_key"]
    kept = ctx.cache.setdefault("access_keys", {})
    known, holder = kept.get(key, (None, None))
    if known != changes or ctx.db.postgres:
        with ctx.db.read() as tx:
            row = records.find(tx, "access_key", id=key)
            holder = None if row is None or row["revoked_at"] is not None else _holder(ctx, tx, row)
        if len(kept) >= MAX_KEPT:
            kept.clear()
        if holder is not None:
            kept[key] = changes, holder
    over = holder is not None and holder.expires_at is not None and holder.expires_at <= ctx.clock.now()
    return None if over else holder


def _holder(ctx: Context, tx: Tx, row: Row) -> Holder:
    return Holder(
        actor=Actor(name=row["user"], role=row["role"], key=row["id"]),
        secret=ctx.secrets.get(tx, _secret_name(row["id"])),
        endpoints=tuple(row["endpoints"] or ()),
        alias=row["alias"],
        session=row["session"],
        token_sha256=row["token_sha256"],
        expires_at=row["expires_at"],
    )


def create(
    ctx: Context,
    actor: Actor,
    *,
    user: str | None = None,
    name: str | None = None,
    role: str | None = None,
    endpoints: list[str] | None = None,
    expires_days: float | None = DEFAULT_EXPIRY_DAYS,
) -> dict[str, Any]:
    """Make an access key and show its ``secret_key``, this once.

    ``role`` is the user's own or a lesser one; an ``invoker`` key names the endpoints it may ask.
    """
    rules.check_expiry(expires_days)
    owner = actor.name if user is None else user
    with ctx.db.transaction(durable=True) as tx:
        if owner != actor.name:
            rules.require(actor, Permission.ADMIN)
        row = records.find(tx, "user", name=owner)
        if row is None:
            raise NotFound(f"there is no user {owner!r}")
        chosen = rules.check_role(row["role"] if role is None else role)
        most = actor.role if owner == actor.name else row["role"]
        if not rules.ROLES[chosen] <= rules.ROLES[most]:
            raise Forbidden(f"{owner} is {most} here; an access key of theirs cannot be {chosen}")
        live = sa.select(sa.func.count()).where(
            access_keys.c.user == owner, access_keys.c.revoked_at.is_(None), access_keys.c.token_sha256.is_(None)
        )
        if tx.execute(live).scalar_one() >= MAX_LIVE:
            raise Conflict(f"{owner} has {MAX_LIVE} access keys; revoke one first")
        made, secret = _make(
            ctx,
            tx,
            actor,
            LASTING,
            user=owner,
            name=names.check_name("default" if name is None else name, "an access key"),
            role=chosen,
            endpoints=rules.scope(chosen, endpoints),
            expires_at=None if expires_days is None else tx.now + expires_days * 86400,
        )
    return {**_public(made), "secret_key": secret}


def lend(ctx: Context, actor: Actor, *, alias: str, role: str, session: str, seconds: float) -> dict[str, Any]:
    """Make a temporary key of the actor's user under the name of a role alias; gives ``secret_key`` and ``token``, too.

    Raises ``Forbidden`` where ``role`` may more than the actor.
    """
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise InvalidInput(f"temporary keys last from {LEAST_SECONDS} to {MOST_SECONDS} seconds, not {seconds:g}")
    if not rules.ROLES[role] <= rules.ROLES[actor.role]:
        raise Forbidden(f"{actor.name} has the role {actor.role} and cannot take the role {alias}, which is {role}")
    if role == "invoker":
        raise Forbidden("an invoker's key names its endpoints, and a temporary one has none of its own")
    with ctx.db.transaction(durable=True) as tx:
        _forget(ctx, tx)
        made, secret = _make(
            ctx,
            tx,
            actor,
            TEMPORARY,
            user=actor.name,
            name=actor.key,
            role=role,
            endpoints=["*"],
            alias=alias,
            session=session,
            expires_at=tx.now + seconds,
        )
    return {**_public(made), "secret_key": secret, "token": _token(secret)}


def of_attempt(ctx: Context, *, attempt: str, loan: Mapping[str, Any], seconds: float) -> dict[str, str]:
    """The temporary key of an attempt at a job, the same each time that it is asked for: {"id", "secret_key", "token"}.

    ``loan``: ``user``, ``alias``, ``role`` and ``session`` of the key. ``end_with`` ends it, ``seconds`` at the latest.
    """
    with ctx.db.transaction() as tx:
        row = tx.row(sa.select(access_keys).where(_taken_with(attempt)))
        if row is not None:
            secret = ctx.secrets.get(tx, _secret_name(row["id"]))
        else:
            _forget(ctx, tx)
            expires_at = tx.now + seconds
            row, secret = _make(
                ctx, tx, SYSTEM, TEMPORARY, name=attempt, endpoints=["*"], expires_at=expires_at, **loan
            )
    return {"id": row["id"], "secret_key": secret, "token": _token(secret)}


def _taken_with(holder: str) -> sa.ColumnElement[bool]:
    """The temporary keys that a key, or an attempt, has or had taken."""
    return access_keys.c.token_sha256.is_not(None) & (access_keys.c.name == holder)


def _token(secret: str) -> str:
    """What a temporary key's requests bear beside their signature; whoever knows the secret knows it, too."""
    return hmac.digest(secret.encode(), b"token", "sha256").hex()


def _forget(ctx: Context, tx: Tx) -> None:
    """Remove temporary keys that were over a day ago."""
    old = access_keys.c.token_sha256.is_not(None) & (access_keys.c.expires_at < tx.now - 86400)
    for row in tx.rows(sa.select(access_keys).where(old).limit(100)):
        if row["revoked_at"] is None:
            ctx.secrets.delete(tx, _secret_name(row["id"]))
        records.delete(tx, "access_key", row["id"], actor=SYSTEM.name)


def _make(ctx: Context, tx: Tx, actor: Actor, prefix: str, **values: Any) -> tuple[Row, str]:
    key_id = prefix + "".join(secrets.choice(_ALPHABET) for _ in range(16))
    secret = secrets.token_urlsafe(30)
    ctx.secrets.set(tx, _secret_name(key_id), secret)
    if prefix == TEMPORARY:
        values["token_sha256"] = rules.hash_secret(_token(secret))
    row = records.create(tx, "access_key", actor=actor.name, id=key_id, created_by=actor.name, **values)
    snapshots.write(ctx, tx, actor=actor.name, reason=f"access key {key_id} created")
    return row, secret


def list_(ctx: Context, actor: Actor) -> dict[str, Any]:
    """Access keys without their secrets, temporary ones that are over left out: an administrator sees all, others
    their own. Beside them the region and the account that names of resources have here."""
    query = sa.select(access_keys).order_by(access_keys.c.created_at.desc())
    if Permission.ADMIN not in rules.ROLES[actor.role]:
        query = query.where(access_keys.c.user == actor.name)
    with ctx.db.read() as tx:
        lasting = access_keys.c.token_sha256.is_(None) | (access_keys.c.expires_at > ctx.clock.now())
        items = [_public(row) for row in tx.rows(query.where(lasting))]
    return {"items": items, "next": None, "region": ctx.settings.aws_region, "account": ctx.settings.aws_account}


def revoke(ctx: Context, actor: Actor, *, key: str) -> dict[str, Any]:
    """Make an access key useless, at once, and all that were taken with it; their secrets are removed."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.find(tx, "access_key", id=key)
        if row is None:
            raise NotFound(f"there is no access key {key!r}")
        if row["user"] != actor.name:
            rules.require(actor, Permission.ADMIN)
        _end(ctx, tx, actor, row)
        snapshots.write(ctx, tx, actor=actor.name, reason=f"access key {key} revoked")
        return _public({**row, "revoked_at": row["revoked_at"] or tx.now})


def revoke_all(ctx: Context, tx: Tx, actor: Actor, *, user: str) -> None:
    """End every access key of a user who leaves."""
    for row in tx.rows(sa.select(access_keys).where(access_keys.c.user == user)):
        _end(ctx, tx, actor, row)


def _end(ctx: Context, tx: Tx, actor: Actor, row: Row) -> None:
    if row["revoked_at"] is None:
        records.set(tx, "access_key", row["id"], actor=actor.name, revoked_at=tx.now)
        ctx.secrets.delete(tx, _secret_name(row["id"]))
    end_taken(ctx, tx, actor, key=row["id"])


def end_taken(ctx: Context, tx: Tx, actor: Actor, *, key: str) -> None:
    """End the temporary keys that were taken with a key, of either kind, and those that were taken with them."""
    live = _taken_with(key) & access_keys.c.revoked_at.is_(None)
    for row in tx.rows(sa.select(access_keys).where(live)):
        _end(ctx, tx, actor, row)


def end_with(ctx: Context, tx: Tx, attempt: str) -> None:
    """Remove the key of an attempt that is over, and end what was taken with it."""
    for row in tx.rows(sa.select(access_keys).where(_taken_with(attempt))):
        _end(ctx, tx, SYSTEM, row)
        records.delete(tx, "access_key", row["id"], actor=SYSTEM.name)
        snapshots.write(ctx, tx, actor=SYSTEM.name, reason=f"access key {row['id']} ended with its job")


def _secret_name(key: str) -> str:
    return f"access_key/{key}"


def _public(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "token_sha256"}


def token_matches(holder: Holder, token: str | None) -> bool:
    """Whether a temporary key came with its token, and any other with none."""
    if holder.token_sha256 is None:
        return token is None
    return token is not None and rules.secret_matches(token, holder.token_sha256)
