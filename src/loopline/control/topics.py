"""Topics and subscriptions: who is told what. ``deliveries`` sends; events decide."""

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from loopline.control import confirmations, deliveries
from loopline.control.context import Context
from loopline.domain import names, notifications
from loopline.domain.access import Actor
from loopline.domain.projects import Notification
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import NOUNS, subscriptions, topics

FROM_FILE = "loop.toml"
DEFAULT_EVENTS = Notification(kind="webhook", url="").events


# -- topics -----------------------------------------------------------------------------------------------------------


def create(
    ctx: Context,
    actor: Actor,
    *,
    name: str,
    events: list[str] | None = None,
    project: str | None = None,
    endpoint: str | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Create a topic. ``events``: patterns such as ``version.Approved``, ``alarm.*``, none for a topic that carries
    only what is published to it; ``project``, ``endpoint``: only what happens there; ``settings``: kept as they are."""
    names.check_name(name, "a topic")
    carried = DEFAULT_EVENTS if events is None else events
    match: dict[str, Any] = {"events": [notifications.check_pattern(each) for each in carried]}
    if endpoint is not None:
        match["endpoint"] = names.check_name(endpoint, "an endpoint")
    with ctx.db.transaction() as tx:
        if project is not None and records.find(tx, "project", name=project) is None:
            raise NotFound(f"there is no project {project!r}")
        return records.create(tx, "topic", actor=actor.name, name=name, project=project, match=match, settings=settings)


def set_settings(ctx: Context, actor: Actor, *, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Replace what a topic's owner says of it."""
    with ctx.db.transaction() as tx:
        row = topic_row(tx, name)
        records.set(tx, "topic", row["id"], actor=actor.name, settings=settings)
    return {**row, "settings": settings}


def list_(ctx: Context, actor: Actor, *, project: str | None = None) -> dict[str, Any]:
    """Topics with their subscriptions."""
    query = sa.select(topics).order_by(topics.c.name)
    if project is not None:
        query = query.where(topics.c.project == project)
    with ctx.db.read() as tx:
        rows = tx.rows(query)
        for row in rows:
            row["subscriptions"] = _subscriptions(tx, row["name"])
    return {"items": rows, "next": None}


def topic_row(tx: Tx, name: str) -> Row:
    """The topic of this name; raises ``NotFound``."""
    row = records.find(tx, "topic", name=name)
    if row is None:
        raise NotFound(f"there is no topic {name!r}")
    return row


def delete(ctx: Context, actor: Actor, *, name: str) -> dict[str, Any]:
    """Remove a topic and its subscriptions. One from loop.toml would come back, so that it is refused."""
    with ctx.db.transaction() as tx:
        row = topic_row(tx, name)
        _refuse_file(row)
        for each in _subscriptions(tx, name):
            _remove(ctx, tx, each, actor.name)
        records.delete(tx, "topic", row["id"], actor=actor.name)
    return row


def _refuse_file(topic: Row) -> None:
    if (topic["match"] or {}).get("source") == FROM_FILE:
        raise Conflict(f"the topic {topic['name']!r} comes from loop.toml of {topic['project']!r}; change it there")


# -- subscriptions ----------------------------------------------------------------------------------------------------


def subscribe(
    ctx: Context,
    actor: Actor,
    *,
    topic: str,
    kind: str,
    url: str,
    secret: str | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Send a topic's events to a URL: ``kind`` webhook (signed, Standard Webhooks), slack, sns (in the form of Amazon
    SNS) or email (``url`` is the address).

    ``secret``: the name of a stored signing secret; without one it is made, and the answer shows it this once as
    ``signing_secret``. The URL is stored sealed, because a webhook's path is its password; lists show host and digest.
    The last two kinds are asked first (`control.confirmations`), and shown as they are. ``settings``: what the form of
    the messages needs.
    """
    check(kind, url)
    with ctx.db.transaction() as tx:
        topic_row(tx, topic)
        if secret is not None:
            notifications.check_secret(ctx.secrets.get(tx, secret))
        return add(ctx, tx, topic, kind, url, secret=secret, actor=actor.name, settings=settings)


def check(kind: str, url: str) -> None:
    """Raise ``InvalidInput`` unless this can be subscribed; where the address leads is judged when it is sent to."""
    if kind not in notifications.KINDS:
        raise InvalidInput(f"{kind!r} is not a kind of subscription; kinds: {', '.join(notifications.KINDS)}")
    if kind == "email":
        notifications.check_mail(url)
        return
    parts = urlsplit(url) if isinstance(url, str) and len(url) <= 2048 and url.isascii() and url.isprintable() else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput("url must be https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("url must not contain a user name or password")


def shown_url(kind: str, url: str) -> str:
    """What may be shown of a URL: the host, and a digest that tells two of them apart; an address that was asked
    whether it wants messages is no secret."""
    if kind in confirmations.KINDS:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/…#{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def add(
    ctx: Context,
    tx: Tx,
    topic: str,
    kind: str,
    url: str,
    *,
    actor: str,
    secret: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Row:
    """The subscription, made; with ``signing_secret`` where one was made with it."""
    identifier = tx.new_id("su")
    made: str | None = None
    if kind == "webhook":
        secret = secret or f"webhook.{identifier}"
        if secret not in ctx.secrets.names(tx):
            made = notifications.make_secret(secrets.token_bytes(32))
            ctx.secrets.set(tx, secret, made)
    ctx.secrets.set(tx, url_secret(identifier), url)
    row = records.create(
        tx,
        "subscription",
        actor=actor,
        id=identifier,
        topic=topic,
        kind=kind,
        url=shown_url(kind, url),
        secret=secret,
        enabled=True,
        pending_until=tx.now if kind in confirmations.KINDS else None,
        settings=settings,
    )
    if kind in confirmations.KINDS:
        row["pending_until"] = confirmations.ask(ctx, tx, row, actor=actor)
        records.set(tx, "subscription", identifier, actor=actor, pending_until=row["pending_until"])
    return {**row, **({"signing_secret": made} if made else {})}


def url_secret(subscription: str) -> str:
    """The name under which a subscription's URL is sealed."""
    return f"url.{subscription}"


def unsubscribe(ctx: Context, actor: Actor, *, subscription: str) -> dict[str, Any]:
    """Remove a subscription; what waits for it is not sent any more."""
    with ctx.db.transaction() as tx:
        row = records.get(tx, "subscription", subscription)
        _refuse_file(topic_row(tx, row["topic"]))
        _remove(ctx, tx, row, actor.name)
    return row


def _remove(ctx: Context, tx: Tx, row: Row, actor: str, reason: str | None = None) -> None:
    stored = ctx.secrets.names(tx)
    for name in (url_secret(row["id"]), f"webhook.{row['id']}", deliveries.confirmation_secret(row["id"])):
        if name in stored:
            ctx.secrets.delete(tx, name)
    records.delete(tx, "subscription", row["id"], actor=actor, reason=reason)


def _subscriptions(tx: Tx, topic: str) -> list[Row]:
    query = sa.select(subscriptions).where(subscriptions.c.topic == topic)
    return tx.rows(query.order_by(subscriptions.c.created_at, subscriptions.c.id))


def send_test(ctx: Context, actor: Actor, *, topic: str) -> dict[str, Any]:
    """Send a message to every subscription of a topic, to see that it arrives; gives the deliveries."""
    with ctx.db.transaction() as tx:
        row = topic_row(tx, topic)
        number = records.note(tx, "topic", row["id"], "test", actor=actor.name, reason="a test message")
        event = _test_event(tx, row, number, actor.name)
        sent = [
            deliveries.create(tx, each, event, {"name": topic, "project": row["project"]})
            for each in receiving(tx, row)
        ]
    ctx.wake()
    return {"items": [each for each in sent if each is not None], "next": None}


def _test_event(tx: Tx, topic: Row, number: int, actor: str) -> dict[str, Any]:
    return {
        "number": number,
        "at": tx.now,
        "actor": actor,
        "noun": "topic",
        "record": topic["id"],
        "kind": "test",
        "before": None,
        "after": None,
        "reason": "this is a test message",
    }


def receiving(tx: Tx, topic: Row) -> list[Row]:
    """The subscriptions of a topic that are sent something: switched on, and confirmed where they are asked."""
    return [each for each in _subscriptions(tx, topic["name"]) if each["enabled"] and each["pending_until"] is None]


# -- from loop.toml ---------------------------------------------------------------------------------------------------


def apply_notifications(
    ctx: Context, tx: Tx, *, actor: str, project: str, notifications: Iterable[Notification]
) -> list[dict[str, Any]]:
    """Bring a project's topics to loop.toml: one for each set of events, with its subscriptions; gives what changed.

    A subscription that is in the file as before is left as it is, with its secret.
    """
    changes: list[dict[str, Any]] = []
    wanted: dict[str, list[Notification]] = {}
    for each in notifications:
        check(each.kind, each.url)
        wanted.setdefault(_topic_name(project, each), []).append(each)
    for name, members in wanted.items():
        match = {"events": list(members[0].events), "source": FROM_FILE}
        if members[0].endpoint:
            match["endpoint"] = members[0].endpoint
        if records.find(tx, "topic", name=name) is None:
            records.create(tx, "topic", actor=actor, name=name, project=project, match=match)
            changes.append({"noun": "topic", "name": name, "change": "created"})
        changes += _apply_members(ctx, tx, name, members, actor)
    query = sa.select(topics).where(topics.c.project == project)
    for row in tx.rows(query):
        if row["name"] not in wanted and (row["match"] or {}).get("source") == FROM_FILE:
            for subscription in _subscriptions(tx, row["name"]):
                _remove(ctx, tx, subscription, actor, "no longer in loop.toml")
            records.delete(tx, "topic", row["id"], actor=actor, reason="no longer in loop.toml")
            changes.append({"noun": "topic", "name": row["name"], "change": "deleted"})
    return changes


def _topic_name(project: str, wanted: Notification) -> str:
    said = sorted(notifications.check_pattern(each) for each in wanted.events)
    if wanted.endpoint:
        said.append(wanted.endpoint)
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()[:8]
    return f"{project[:54]}-{digest}"


def _apply_members(ctx: Context, tx: Tx, topic: str, members: list[Notification], actor: str) -> list[dict[str, Any]]:
    changes = []
    there = {(row["kind"], row["url"]): row for row in _subscriptions(tx, topic)}
    kept = set()
    for each in members:
        key = (each.kind, shown_url(each.kind, each.url))
        row = there.get(key)
        if row is not None and each.secret and row["secret"] != each.secret:
            _remove(ctx, tx, row, actor, "its secret changed in loop.toml")
            row = None
        if row is None and key not in kept:
            add(ctx, tx, topic, each.kind, each.url, secret=each.secret or None, actor=actor)
            changes.append({"noun": "subscription", "name": f"{topic} {key[1]}", "change": "created"})
        kept.add(key)
    for key, row in there.items():
        if key not in kept:
            _remove(ctx, tx, row, actor, "no longer in loop.toml")
            changes.append({"noun": "subscription", "name": f"{topic} {key[1]}", "change": "deleted"})
    return changes


# -- reacting to events -----------------------------------------------------------------------------------------------


_TOPICS = Prepared(sa.select(topics))


def notify(ctx: Context, tx: Tx, event: dict[str, Any]) -> None:
    """Reaction: make a delivery for each subscription whose topic carries this event; once for each event."""
    if event["noun"] in ("delivery", "subscription", "topic"):
        return
    carrying = [
        row for row in tx.fetch(_TOPICS) if notifications.matches((row["match"] or {}).get("events") or (), event)
    ]
    if not carrying or not _is_to_be_told(tx, event):
        return
    facts = facts_of(tx, event)
    endpoint = facts.get("name" if event["noun"] == "endpoint" else "endpoint")
    for topic in carrying:
        here = topic["project"] in (None, facts.get("project"))
        if here and (topic["match"] or {}).get("endpoint") in (None, endpoint):
            for each in receiving(tx, topic):
                deliveries.create(tx, each, event, facts)


def _is_to_be_told(tx: Tx, event: dict[str, Any]) -> bool:
    """An alarm whose actions do not say ``notify`` is silent."""
    if event["noun"] != "alarm":
        return True
    row = records.find(tx, "alarm", id=event["record"])
    return row is None or "notify" in (row["actions"] or ())


_ENDPOINT_NOUNS = ("rollout", "retraining", "variant", "alarm", "invocation", "test", "test_run")


def facts_of(tx: Tx, event: dict[str, Any]) -> dict[str, Any]:
    """What a record says of itself for people: project, model, version, endpoint, name and numbers."""
    there = records.find(tx, event["noun"], id=event["record"]) if event["noun"] in NOUNS else None
    row = there or dict(event.get("data") or {})
    facts: dict[str, Any] = {
        name: row.get(name) for name in ("name", "project", "model", "endpoint", "branch", "commit") if row.get(name)
    }
    if event["noun"] in ("version", "evaluation", "variant", "batch", "test_run") and row.get("number") is not None:
        facts["version"] = row["number"]
    if event["noun"] in ("version", "evaluation"):
        facts["metrics"] = row.get("metrics")
    if event["noun"] == "alarm" and row.get("definition"):
        facts.update({key: row["definition"].get(key) for key in ("metric", "threshold", "statistic")})
    if event["noun"] == "rollout":
        facts.update(_variant_facts(tx, row))
    if event["noun"] == "test_run":
        facts.update({"variant": row.get("variant"), "stage": row.get("stage"), "results": row.get("results")})
    if event["noun"] in ("execution", "step", "job") and row.get("execution"):
        facts["execution"] = row["execution"]
    facts["project"] = _project(tx, event["noun"], row, facts)
    return {name: value for name, value in facts.items() if value is not None}


def _variant_facts(tx: Tx, rollout: Row) -> dict[str, Any]:
    """Which version a rollout brings, and its share of the traffic by plan."""
    variant = records.find(tx, "variant", id=rollout.get("variant")) or {}
    return {"model": variant.get("model"), "version": variant.get("number"), "variant": variant.get("name")}


def _project(tx: Tx, noun: str, row: Row, facts: dict[str, Any]) -> str | None:
    """The project that a record belongs to, through its model, endpoint or execution."""
    if noun == "project":
        return row.get("name")
    if facts.get("project"):
        return str(facts["project"])
    for table, column, value in (
        ("model", "name", facts.get("model")),
        ("endpoint", "name", facts.get("endpoint") if noun in _ENDPOINT_NOUNS else None),
        ("execution", "id", row.get("execution")),
        ("version", "id", row.get("version")),
    ):
        if value:
            found = records.find(tx, table, **{column: value})
            if found is not None and table == "version":
                found = records.find(tx, "model", name=found["model"])
            if found is not None and found.get("project"):
                return str(found["project"])
    return None
