"""The one mechanism that closes the loop: every change of a record writes an event in the same transaction.

``create``, ``set`` and ``delete`` do what they say; ``move`` alone changes a status, against the table in
``domain.states``, by compare-and-set. Everything that reacts reads the events.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa

from loopline.domain import states
from loopline.errors import Conflict, NotFound
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import NOUNS, tags

# What an event need not repeat: it is large, or it is a secret's digest.
_LEFT_OUT = frozenset(
    {
        "sha256",
        "token_sha256",
        "spec",
        "definition",
        "given",
        "baseline",
        "warmup",
        "body",
        "lock",
        "requirements",
        "sealed",
        "loop",
        "cases",
        "results",
        "parts",
        "variables",
    }
)

_PREFIXES = {
    "execution": "ex",
    "step": "st",
    "job": "jo",
    "attempt": "at",
    "run": "ru",
    "push": "pu",
    "environment": "en",
    "environment_version": "ev",
    "asset": "as",
    "pipeline": "pi",
    "stored_pipeline": "sp",
    "project": "pr",
    "model": "mo",
    "version": "ve",
    "evaluation": "el",
    "compilation": "co",
    "alias": "al",
    "servable": "sb",
    "blueprint": "bp",
    "endpoint": "ep",
    "variant": "va",
    "rollout": "ro",
    "function": "fn",
    "test": "te",
    "test_run": "tu",
    "batch": "ba",
    "script": "sc",
    "image": "im",
    "invocation": "in",
    "alarm": "am",
    "retraining": "re",
    "trigger": "tr",
    "topic": "to",
    "subscription": "su",
    "delivery": "de",
    "dashboard": "da",
    "bucket": "bu",
    "object": "ob",
    "upload": "up",
    "user": "us",
    "key": "ke",
    "access_key": "ak",
    "role_alias": "ra",
}


def create(tx: Tx, noun: str, *, actor: str, reason: str | None = None, **values: Any) -> Row:
    """Insert a record and return it; ``id`` is made unless given. A unique key that exists raises ``Conflict``."""
    table = NOUNS[noun]
    values.setdefault("id", tx.new_id(_PREFIXES[noun]))
    if noun in states.MOVES:
        values.setdefault("status", str(next(iter(states.MOVES[noun]))))
    if "created_at" in table.c:
        values.setdefault("created_at", tx.now)
    try:
        with tx.connection.begin_nested() if tx.postgres else _nothing():
            tx.change(_inserting(noun, tuple(values)), **values)
    except sa.exc.IntegrityError as error:
        raise Conflict(f"this {noun} exists already") from error
    _record(tx, noun, values["id"], "created", actor, reason=reason, after=values.get("status"), data=values)
    return {column.name: values.get(column.name) for column in table.c}


def get(tx: Tx, noun: str, identifier: str) -> Row:
    """The record with this id; raises ``NotFound``."""
    row = tx.fetch_one(_finding(noun, ("id",), ()), where_id=identifier)
    if row is None:
        raise NotFound(f"there is no {noun.replace('_', ' ')} {identifier!r}")
    return row


def find(tx: Tx, noun: str, **where: Any) -> Row | None:
    """The record whose columns have these values, or None."""
    absent = tuple(name for name, value in where.items() if value is None)
    given = {f"where_{name}": value for name, value in where.items() if value is not None}
    return tx.fetch_one(_finding(noun, tuple(where), absent), **given)


def move(
    tx: Tx,
    noun: str,
    identifier: str,
    to: str,
    *,
    actor: str,
    reason: str | None = None,
    known: Row | None = None,
    **values: Any,
) -> Row:
    """Change a record's status, and ``values`` with it, and return the record as it is now.

    ``known``: the record, or what the caller needs of it, as this transaction has read it; it is not read again then.
    Raises ``IllegalMove`` when ``to`` may not follow, and ``Conflict`` when another change came first.
    """
    table = NOUNS[noun]
    row = get(tx, noun, identifier) if known is None else dict(known)
    before = row["status"]
    states.check_move(noun, before, to)
    if reason is not None and "reason" in table.c:
        values.setdefault("reason", reason)
    changing = _changing(noun, ("status", *values), True)
    if tx.change(changing, where_id=identifier, where_status=before, status=str(to), **values) != 1:
        raise Conflict(f"the {noun} {identifier} was changed by somebody else at the same moment; look and try again")
    row.update(values, status=str(to))
    _record(tx, noun, identifier, "moved", actor, reason=reason, before=before, after=str(to), data=values)
    return row


def set(tx: Tx, noun: str, identifier: str, *, actor: str, reason: str | None = None, **values: Any) -> None:
    """Change columns other than the status."""
    if "status" in values:
        raise ValueError("a status changes by move() alone")
    if tx.change(_changing(noun, tuple(values), False), where_id=identifier, **values) != 1:
        raise NotFound(f"there is no {noun} {identifier!r}")
    _record(tx, noun, identifier, "changed", actor, reason=reason, data=values)


def delete(tx: Tx, noun: str, identifier: str, *, actor: str, reason: str | None = None, **data: Any) -> None:
    """Remove a record; its events stay. ``data``: what the last of them says of it."""
    if tx.change(_deleting(noun), where_id=identifier) != 1:
        raise NotFound(f"there is no {noun} {identifier!r}")
    tx.execute(tags.delete().where(tags.c.record == identifier))
    _record(tx, noun, identifier, "deleted", actor, reason=reason, data=data)


def note(tx: Tx, noun: str, identifier: str, kind: str, *, actor: str, reason: str | None = None, **data: Any) -> int:
    """Record that something happened to a record which changes none of its columns; gives the event's number."""
    return _record(tx, noun, identifier, kind, actor, reason=reason, data=data)


def _record(
    tx: Tx,
    noun: str,
    identifier: str,
    kind: str,
    actor: str,
    *,
    reason: str | None = None,
    before: str | None = None,
    after: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> int:
    public = {k: v for k, v in (data or {}).items() if k not in _LEFT_OUT and k != "id" and v is not None}
    return tx.record_event(
        {
            "actor": actor,
            "noun": noun,
            "record": identifier,
            "kind": kind,
            "before": before,
            "after": after,
            "reason": reason,
            "data": public or None,
        }
    )


# Each form of statement is built once: building one anew for each call cost more than running it.


@cache
def _inserting(noun: str, names: tuple[str, ...]) -> Prepared:
    table = NOUNS[noun]
    return Prepared(table.insert().values({name: sa.bindparam(name, type_=table.c[name].type) for name in names}))


@cache
def _finding(noun: str, names: tuple[str, ...], absent: tuple[str, ...]) -> Prepared:
    table = NOUNS[noun]
    conditions = [
        table.c[name].is_(None) if name in absent else table.c[name] == sa.bindparam(f"where_{name}") for name in names
    ]
    return Prepared(sa.select(table).where(*conditions))


@cache
def _changing(noun: str, names: tuple[str, ...], from_status: bool) -> Prepared:
    table = NOUNS[noun]
    values = {name: sa.bindparam(name, type_=table.c[name].type) for name in names}
    statement = table.update().where(table.c.id == sa.bindparam("where_id")).values(values)
    return Prepared(statement.where(table.c.status == sa.bindparam("where_status")) if from_status else statement)


@cache
def _deleting(noun: str) -> Prepared:
    table = NOUNS[noun]
    return Prepared(table.delete().where(table.c.id == sa.bindparam("where_id")))


class _nothing:  # noqa: N801 - a context manager that does nothing; SQLite needs no savepoint for a failed insert
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None
