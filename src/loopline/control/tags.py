"""Tags: words that people put on any record, to find it by and to say whose it is. They have no effect here."""

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from loopline.control import registry
from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import NOUNS
from loopline.store.schema import tags as table

MAX_TAGS = 50  # of one record
MAX_KEY, MAX_VALUE = 128, 256


def find(tx: Tx, noun: str, name: str) -> Row:
    """The record of this id or name; a version is called MODEL:NUMBER. Raises ``NotFound``, and ``Conflict`` where
    several have the name."""
    columns = NOUNS[noun].c if noun in NOUNS else None
    if columns is None:
        raise NotFound(f"there is no noun {noun!r}; nouns: {', '.join(sorted(NOUNS))}")
    row = records.find(tx, noun, id=name)
    if row is not None:
        return row
    if noun == "version":
        model, number = names.split_version(name, "a model")
        if number is None:
            raise InvalidInput(f"say which version: {model}:1")
        return registry.version_row(tx, model, number)
    found = tx.rows(sa.select(NOUNS[noun]).where(columns.name == name)) if "name" in columns else []
    found = [row for row in found if row.get("status") != "Deleted"]
    if not found:
        raise NotFound(f"there is no {noun.replace('_', ' ')} {name!r}")
    if len(found) > 1:
        raise Conflict(f"{len(found)} records are called {name!r}; say which by its id, such as {found[0]['id']}")
    return found[0]


def check(tags: Mapping[str, str]) -> None:
    """Raise ``InvalidInput`` for tags that no record may have."""
    if len(tags) > MAX_TAGS:
        raise InvalidInput(f"a record has at most {MAX_TAGS} tags")
    for key, value in tags.items():
        if not 1 <= len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            raise InvalidInput(f"a tag's key has 1 to {MAX_KEY} characters, its value at most {MAX_VALUE}")


def put(ctx: Context, actor: Actor, *, noun: str, name: str, tags: dict[str, str]) -> dict[str, Any]:
    """Put tags on a record, over those with the same keys; gives all that it has."""
    with ctx.db.transaction(durable=True) as tx:
        put_in(tx, noun, find(tx, noun, name)["id"], tags, actor=actor.name)
    return list_(ctx, actor, noun=noun, name=name)


def put_in(tx: Tx, noun: str, record: str, tags: Mapping[str, str], *, actor: str) -> None:
    """As ``put``, in a transaction, on the record with this id."""
    check(tags)
    if not tags:
        return
    if len({*of_records(tx, [record]).get(record, {}), *tags}) > MAX_TAGS:
        raise InvalidInput(f"a record has at most {MAX_TAGS} tags")
    given = [
        {"record": record, "key": key, "noun": noun, "value": value, "changed_at": tx.now}
        for key, value in tags.items()
    ]
    tx.upsert(table, given, ("record", "key"), ("value", "changed_at"))
    records.note(tx, noun, record, "tagged", actor=actor, tags=dict(tags))


def list_(ctx: Context, actor: Actor, *, noun: str, name: str) -> dict[str, Any]:
    """The tags of a record, by key."""
    with ctx.db.read() as tx:
        record = find(tx, noun, name)["id"]
        found = of_records(tx, [record]).get(record, {})
    return {"items": [{"key": key, "value": value} for key, value in found.items()], "next": None}


def delete(ctx: Context, actor: Actor, *, noun: str, name: str, keys: list[str]) -> dict[str, Any]:
    """Take tags off a record; keys that it has not are no error. Gives those that are left."""
    with ctx.db.transaction(durable=True) as tx:
        record = find(tx, noun, name)["id"]
        tx.execute(table.delete().where(table.c.record == record, table.c.key.in_(keys)))
        records.note(tx, noun, record, "untagged", actor=actor.name, keys=keys)
    return list_(ctx, actor, noun=noun, name=name)


def known(ctx: Context, actor: Actor, *, noun: str, key: str | None = None, value: str | None = None) -> dict[str, Any]:
    """Every tag on records of a noun, or those with this ``key`` and ``value``: which record (its id) has which."""
    query = sa.select(table.c.record, table.c.key, table.c.value).where(table.c.noun == noun)
    if key is not None:
        query = query.where(table.c.key == key)
    if value is not None:
        query = query.where(table.c.value == value)
    with ctx.db.read() as tx:
        return {"items": tx.rows(query.order_by(table.c.record, table.c.key)), "next": None}


def of_records(tx: Tx, identifiers: Iterable[str]) -> dict[str, dict[str, str]]:
    """{id: {key: value}} of the records that have any."""
    found: dict[str, dict[str, str]] = {}
    query = sa.select(table).where(table.c.record.in_(list(identifiers))).order_by(table.c.key)
    for row in tx.rows(query):
        found.setdefault(row["record"], {})[row["key"]] = row["value"]
    return found
