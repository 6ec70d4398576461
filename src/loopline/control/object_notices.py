"""Which topics hear of a bucket's objects: rules that are kept with the topics, and the messages that follow."""

from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import deliveries, topics
from loopline.control.context import Context
from loopline.domain import objectnotices
from loopline.domain.objects import UNVERSIONED, join_uri
from loopline.errors import NotFound
from loopline.store import records
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import topics as table

_TOPICS = Prepared(sa.select(table).order_by(table.c.name))


def rules_in(tx: Tx, bucket: str) -> list[dict[str, Any]]:
    """The rules of a bucket, by topic."""
    return [
        {"topic": topic["name"], **{name: value for name, value in rule.items() if name != "bucket"}}
        for topic in tx.fetch(_TOPICS)
        for rule in _objects(topic)
        if rule["bucket"] == bucket
    ]


def replace_in(tx: Tx, *, actor: str, bucket: str, rules: object) -> None:
    """Give a bucket these rules and no others; raises ``InvalidInput``, and ``NotFound`` for a topic that is none."""
    wanted: dict[str, list[dict[str, Any]]] = {}
    for rule in objectnotices.check_rules(rules):
        settings = msgspec.to_builtins(rule)
        wanted.setdefault(settings.pop("topic"), []).append({"bucket": bucket, **settings})
    there = tx.fetch(_TOPICS)
    absent = sorted(wanted.keys() - {topic["name"] for topic in there})
    if absent:
        raise NotFound(f"there is no topic {absent[0]!r}", missing="topic")
    for topic in there:
        before = _objects(topic)
        after = [rule for rule in before if rule["bucket"] != bucket] + wanted.get(topic["name"], [])
        if after != before:
            match = {name: value for name, value in (topic["match"] or {}).items() if name != "objects"}
            records.set(tx, "topic", topic["id"], actor=actor, match={**match, **({"objects": after} if after else {})})


def _objects(topic: Row) -> list[dict[str, Any]]:
    return (topic["match"] or {}).get("objects") or []


def react(ctx: Context, tx: Tx, event: Row) -> None:
    """Reaction: a message to the subscribers of each topic with a rule that tells of what happened to an object.

    Objects that jobs write are told of like any other: a message starts nothing here.
    """
    change = objectnotices.change_of(event)
    if change is None:
        return
    data = event["data"]
    for topic in tx.fetch(_TOPICS):
        rule = objectnotices.fits(_objects(topic), data["bucket"], data["key"], change)
        if rule is None:
            continue
        facts = {
            "name": join_uri(data["bucket"], data["key"]),
            "bucket": data["bucket"],
            "key": data["key"],
            "change": change,
            "rule": rule["id"],
            "size_bytes": None if change in ("delete", "mark") else data.get("size_bytes"),
            "etag": data.get("etag"),
            "version": None if data.get("version") == UNVERSIONED else data.get("version"),
        }
        for each in topics.receiving(tx, topic):
            deliveries.create(tx, each, event, facts)
