"""What people, and alarms, say to a topic's subscribers directly, whatever events the topic carries."""

from typing import Any

from loopline.control import deliveries, topics
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.errors import InvalidInput
from loopline.store import records
from loopline.store.db import Tx

MAX_MESSAGE_BYTES = 256 * 1024
MAX_SUBJECT = 100


def publish(
    ctx: Context,
    actor: Actor,
    *,
    topic: str,
    message: str,
    subject: str | None = None,
    by_kind: dict[str, str] | None = None,
    attributes: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Send a message to every subscriber of a topic that has said it wants it; gives ``event`` and ``deliveries``.

    ``by_kind``: another text for subscriptions of a kind (email, sns, slack, webhook); ``attributes`` go along with
    what programs read. Raises ``NotFound`` and ``InvalidInput``.
    """
    if not message or len(message.encode()) > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"message must have 1 to {MAX_MESSAGE_BYTES} bytes")
    if subject is not None and not (0 < len(subject) <= MAX_SUBJECT and subject.isprintable()):
        raise InvalidInput(f"subject must be one line of 1 to {MAX_SUBJECT} characters")
    with ctx.db.transaction() as tx:
        row = topics.topic_row(tx, topic)
        number = records.note(tx, "topic", row["id"], "published", actor=actor.name, reason=subject)
        event = {
            "number": number,
            "at": tx.now,
            "actor": actor.name,
            "noun": "topic",
            "record": row["id"],
            "kind": "published",
            "reason": subject,
        }
        sent = []
        for each in topics.receiving(tx, row):
            text = (by_kind or {}).get(each["kind"], message)
            said = f"{subject}: {text}" if subject else text
            facts = {"name": topic, "project": row["project"], "subject": subject, "message": text, "said": said}
            sent.append(deliveries.create(tx, each, event, {**facts, "attributes": attributes}))
    ctx.wake()
    return {"event": number, "deliveries": [each["id"] for each in sent if each is not None]}


def tell(tx: Tx, topic: str, event: dict[str, Any], **facts: Any) -> None:
    """Send an event to a topic's subscribers, with facts beside those that its record says of itself."""
    row = topics.topic_row(tx, topic)
    for each in topics.receiving(tx, row):
        deliveries.create(tx, each, event, {**topics.facts_of(tx, event), **facts})
