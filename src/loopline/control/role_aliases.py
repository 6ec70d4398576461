"""Role aliases: the names by which other systems know loopline's roles, and the documents that came with them.

A name stands for one of loopline's roles, and that role alone decides what a key may that was taken under the name.
Policies are kept and shown. Every role of loopline goes by the name ``loopline-ROLE`` from the start.
"""

import re
from typing import Any

import sqlalchemy as sa

from loopline.control import access_keys
from loopline.control.context import Context
from loopline.domain import access
from loopline.domain.access import Actor
from loopline.errors import Conflict, Forbidden, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import role_aliases

BUILTIN = {f"loopline-{role}": role for role in access.ROLES}
MAX_POLICIES = 50
_NAME = re.compile(r"[A-Za-z0-9+=,.@_-]{1,64}")
_SESSION = re.compile(r"[A-Za-z0-9+=,.@_-]{2,64}")


def create(
    ctx: Context,
    actor: Actor,
    *,
    name: str,
    role: str = "editor",
    path: str = "/",
    description: str | None = None,
    trust: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Give a role of loopline a name; nobody names a role that may more than their own."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} is not a role's name: letters, digits and +=,.@_- only, at most 64")
    access.check_role(role)
    _check_power(actor, role, name)
    if name in BUILTIN:
        raise Conflict(f"the role {name} exists already")
    with ctx.db.transaction() as tx:
        row = records.create(
            tx,
            "role_alias",
            actor=actor.name,
            name=name,
            role=role,
            path=path,
            description=description,
            trust=trust,
            policies={},
            attached=[],
            created_by=actor.name,
        )
    return dict(row)


def _check_power(actor: Actor, role: str, name: str) -> None:
    if not access.ROLES[role] <= access.ROLES.get(actor.role, frozenset()):
        raise Forbidden(f"{actor.name} has the role {actor.role}; the role {name} is {role}, which may more")


def _builtin(name: str) -> Row:
    return {
        "id": name,
        "name": name,
        "role": BUILTIN[name],
        "path": "/",
        "description": f"loopline's role {BUILTIN[name]}",
        "trust": None,
        "policies": {},
        "attached": [],
        "created_by": "loopline",
        "created_at": 0.0,
    }


def show(ctx: Context, actor: Actor, *, name: str) -> dict[str, Any]:
    """One alias; raises ``NotFound``."""
    with ctx.db.read() as tx:
        return _find(tx, name)


def _find(tx: Tx, name: str) -> Row:
    if name in BUILTIN:
        return _builtin(name)
    row = records.find(tx, "role_alias", name=name)
    if row is None:
        raise NotFound(f"The role with name {name} cannot be found.")
    return row


def list_(ctx: Context, actor: Actor) -> dict[str, Any]:
    """Every alias, those that are always there too."""
    with ctx.db.read() as tx:
        rows = tx.rows(sa.select(role_aliases).order_by(role_aliases.c.name))
    return {"items": [*map(_builtin, BUILTIN), *rows], "next": None}


def delete(ctx: Context, actor: Actor, *, name: str) -> dict[str, Any]:
    """Remove an alias; temporary keys that were taken under it go on until they end."""
    with ctx.db.transaction() as tx:
        row = _own(tx, actor, name)
        records.delete(tx, "role_alias", row["id"], actor=actor.name)
    return {"name": name}


def _own(tx: Tx, actor: Actor, name: str) -> Row:
    row = _find(tx, name)
    if name in BUILTIN:
        raise Forbidden(f"{name} belongs to loopline and stays as it is")
    _check_power(actor, row["role"], name)
    return row


def set_policy(
    ctx: Context, actor: Actor, *, name: str, policy: str, document: dict[str, Any] | None
) -> dict[str, Any]:
    """Keep a policy document with an alias, None removes it. It is shown, and decides nothing."""
    with ctx.db.transaction() as tx:
        row = _own(tx, actor, name)
        policies = {key: value for key, value in (row["policies"] or {}).items() if key != policy}
        if document is not None:
            policies[policy] = document
        elif len(policies) == len(row["policies"] or {}):
            raise NotFound(f"The role policy with name {policy} cannot be found.")
        _check_count(policies)
        records.set(tx, "role_alias", row["id"], actor=actor.name, policies=policies)
    return {**row, "policies": policies}


def attach(ctx: Context, actor: Actor, *, name: str, policy: str, attached: bool) -> dict[str, Any]:
    """Note that a policy by this ARN goes with an alias, or no longer does. It is shown, and decides nothing."""
    with ctx.db.transaction() as tx:
        row = _own(tx, actor, name)
        others = [arn for arn in row["attached"] or [] if arn != policy]
        found = [*others, policy] if attached else others
        _check_count(found)
        records.set(tx, "role_alias", row["id"], actor=actor.name, attached=found)
    return {**row, "attached": found}


def _check_count(policies: Any) -> None:
    if len(policies) > MAX_POLICIES:
        raise Conflict(f"a role has at most {MAX_POLICIES} policies")


def assume(ctx: Context, actor: Actor, *, name: str, session: str, seconds: float = 3600) -> dict[str, Any]:
    """A temporary access key under a role's name. Raises ``Forbidden`` where that role may more than the actor."""
    if not _SESSION.fullmatch(session):
        raise InvalidInput(f"{session!r} is not a session's name: letters, digits and +=,.@_- only, 2 to 64")
    with ctx.db.read() as tx:
        row = _find(tx, name)
    return access_keys.lend(ctx, actor, alias=name, role=row["role"], session=session, seconds=seconds)


def role_of(tx: Tx, name: str) -> str | None:
    """The role of loopline that a name stands for; None where it stands for none."""
    known = BUILTIN.get(name) or (records.find(tx, "role_alias", name=name) or {}).get("role")
    return None if known is None else str(known)


def bounded(tx: Tx, name: str, most: str) -> str | None:
    """The role that a name stands for, or ``most`` where that may less; None for a name that is not known, and for
    invokers, whose keys name their endpoints."""
    role = role_of(tx, name)
    if role in (None, "invoker"):
        return None
    return role if access.ROLES[str(role)] <= access.ROLES[most] else most
