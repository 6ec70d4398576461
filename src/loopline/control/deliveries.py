"""Messages on their way: made with the event, sent until the receiver takes them or the tries are used up.

One delivery for each subscription and event, however often the event is looked at. The receiver sees the delivery's id
as ``webhook-id`` in every try, so that it too can take each once.
"""

import time
from typing import Any

import sqlalchemy as sa

from loopline.control.context import SYSTEM, Context
from loopline.domain import notifications, sns
from loopline.domain.access import Actor
from loopline.domain.states import DeliveryStatus
from loopline.errors import InvalidInput, LooplineError, NotFound
from loopline.outbound.http import Answer
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import deliveries, subscriptions

TASK = "delivery.send"
TIMEOUT_SECONDS = 10.0
KEPT_ANSWER_BYTES = 500
CONFIRM = "confirm"  # the kind of event whose message asks a receiver whether it wants more
GONE = 410  # Standard Webhooks: the receiver wants no more


def create(tx: Tx, subscription: Row, event: dict[str, Any], facts: dict[str, Any]) -> Row | None:
    """A delivery of an event, asked to be sent; None when there is one already."""
    there = sa.select(deliveries.c.id).where(
        deliveries.c.subscription == subscription["id"], deliveries.c.event == event["number"]
    )
    if tx.row(there) is not None:
        return None
    row = records.create(
        tx,
        "delivery",
        actor=SYSTEM.name,
        subscription=subscription["id"],
        event=event["number"],
        body=notifications.message(event, facts),
        tries=0,
        answers=[],
    )
    queue.ask(tx, TASK, row["id"])
    return row


def send(ctx: Context, key: str) -> float | None:
    """Task: one try of a delivery; gives the seconds until the next, or None when it is over."""
    with ctx.db.read() as tx:
        row = records.find(tx, "delivery", id=key)
        if row is None or row["status"] != DeliveryStatus.PENDING:
            return None
        if row["next_at"] is not None and row["next_at"] > tx.now:
            return float(row["next_at"] - tx.now)
        subscription = records.find(tx, "subscription", id=row["subscription"])
        url, secret, problem = _address(ctx, tx, subscription)
    if problem is not None or subscription is None:
        return _record(ctx, row, {"error": problem}, final=True)
    begun = time.monotonic()
    try:
        answer = _transmit(ctx, row, subscription, url, secret)
    except InvalidInput as error:  # asking again would not help
        return _record(ctx, row, {"error": error.message, "ms": _ms(begun)}, final=True)
    except LooplineError as error:
        return _record(ctx, row, {"error": error.message, "ms": _ms(begun)})
    return _record(ctx, row, _describe(answer), answer=answer)


def _address(ctx: Context, tx: Tx, subscription: Row | None) -> tuple[str, str | None, str | None]:
    """(URL, signing secret, what is wrong)."""
    if subscription is None:
        return "", None, "the subscription was removed"
    if not subscription["enabled"]:
        return "", None, "the subscription is switched off"
    try:
        url = ctx.secrets.get(tx, f"url.{subscription['id']}")
        secret = ctx.secrets.get(tx, subscription["secret"]) if subscription["secret"] else None
    except LooplineError as error:
        return "", None, error.message
    return url, secret, None


def _transmit(ctx: Context, row: Row, subscription: Row, url: str, secret: str | None) -> Answer:
    """One try, in the form of the subscription's kind."""
    body = row["body"]
    if subscription["kind"] in ("email", "sns"):
        body = _with_link(ctx, body, subscription)
    if subscription["kind"] == "email":
        if ctx.mail is None:
            raise InvalidInput("no mail server is known: the settings smtp_url and smtp_from name one")
        subject, text = notifications.email(body)
        return ctx.mail.send(url, subject, text, {"X-Loopline-Delivery": row["id"]}, TIMEOUT_SECONDS)
    headers = {"Content-Type": "application/json"}
    if subscription["kind"] == "sns":
        payload, headers = sns.notification(body, row["id"], subscription["id"], subscription["settings"] or {})
    elif subscription["kind"] == "slack":
        payload = notifications.encode(notifications.slack_payload(body))
    else:
        payload = notifications.encode(body)
        headers.update(notifications.sign(secret, row["id"], ctx.clock.now(), payload) if secret else {})
    return ctx.outbound.post(url, headers, payload, TIMEOUT_SECONDS)


def confirmation_secret(subscription: str) -> str:
    """The name under which the secret of a subscription's token is sealed."""
    return f"confirm.{subscription}"


def _with_link(ctx: Context, body: dict[str, Any], subscription: Row) -> dict[str, Any]:
    """The message that asks, with its token and link, which stand in no table and no list."""
    if body["type"] != f"subscription.{CONFIRM}":
        return body
    with ctx.db.read() as tx:
        name = confirmation_secret(subscription["id"])
        if name not in ctx.secrets.names(tx):
            raise InvalidInput("the subscription is confirmed already")
        secret = ctx.secrets.get(tx, name)
    token = f"{subscription['id']}:{secret}".encode("ascii").hex()
    base = (ctx.settings.public_url or ctx.settings.url).rstrip("/")
    return {**body, "data": {**body["data"], "token": token, "link": f"{base}/api/subscriptions/confirm?token={token}"}}


def _ms(begun: float) -> float:
    return round((time.monotonic() - begun) * 1000, 1)


def _describe(answer: Answer) -> dict[str, Any]:
    text = answer.body[:KEPT_ANSWER_BYTES].decode(errors="replace").replace("\x00", "\ufffd")
    return {"status": answer.status, "body": text, "ms": round(answer.seconds * 1000, 1)}


def _record(
    ctx: Context, row: Row, said: dict[str, Any], *, answer: Answer | None = None, final: bool = False
) -> float | None:
    """Write down what a try came to, and decide what follows."""
    with ctx.db.transaction(durable=True) as tx:
        now = tx.now
        there = records.get(tx, "delivery", row["id"])
        if there["status"] != DeliveryStatus.PENDING or there["tries"] != row["tries"]:
            return None  # another worker, whose lease this was, has written already
        tries = row["tries"] + 1
        answers = [*(row["answers"] or []), {"at": now, **said}]
        values: dict[str, Any] = {"tries": tries, "answers": answers}
        if answer is not None and 200 <= answer.status < 300:
            records.move(tx, "delivery", row["id"], DeliveryStatus.DELIVERED, actor=SYSTEM.name, ended_at=now, **values)
            return None
        retry_after = answer.headers.get("retry-after") if answer is not None else None
        gone = answer is not None and answer.status == GONE
        pause = None if final or gone else notifications.retry_seconds(tries, retry_after, now)
        if pause is None:
            reason = said.get("error") or f"the receiver answered {said.get('status')} in {tries} tries"
            if gone:
                reason = "the receiver answered 410 Gone: it wants no more"
                _switch_off(tx, row["subscription"], reason)
            records.move(
                tx,
                "delivery",
                row["id"],
                DeliveryStatus.FAILED,
                actor=SYSTEM.name,
                reason=reason,
                ended_at=now,
                **values,
            )
            return None
        tx.execute(deliveries.update().where(deliveries.c.id == row["id"]).values(next_at=now + pause, **values))
        return pause


def _switch_off(tx: Tx, subscription: str, reason: str) -> None:
    if records.find(tx, "subscription", id=subscription) is not None:
        records.set(tx, "subscription", subscription, actor=SYSTEM.name, reason=reason, enabled=False)


# -- people -----------------------------------------------------------------------------------------------------------


def list_(
    ctx: Context,
    actor: Actor,
    *,
    topic: str | None = None,
    subscription: str | None = None,
    status: str | None = None,
    limit: int = 50,
) -> dict[str, Any]:
    """Deliveries, the newest first, with every answer that the receiver gave."""
    query = sa.select(deliveries).order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc())
    if topic is not None:
        query = query.where(
            deliveries.c.subscription.in_(sa.select(subscriptions.c.id).where(subscriptions.c.topic == topic))
        )
    if subscription is not None:
        query = query.where(deliveries.c.subscription == subscription)
    if status is not None:
        query = query.where(deliveries.c.status == status)
    with ctx.db.read() as tx:
        return {"items": tx.rows(query.limit(min(limit, 1000))), "next": None}


def redeliver(ctx: Context, actor: Actor, *, delivery: str) -> dict[str, Any]:
    """Send a delivery that is over once more, with all its tries; raises ``NotFound``, and ``IllegalMove`` while it
    is still being tried."""
    with ctx.db.transaction() as tx:
        row = records.get(tx, "delivery", delivery)
        if records.find(tx, "subscription", id=row["subscription"]) is None:
            raise NotFound("the subscription of this delivery was removed")
        row = records.move(
            tx,
            "delivery",
            delivery,
            DeliveryStatus.PENDING,
            actor=actor.name,
            reason="sent again by hand",
            tries=0,
            next_at=None,
            ended_at=None,
        )
        queue.ask(tx, TASK, delivery)
    ctx.wake()
    return row
