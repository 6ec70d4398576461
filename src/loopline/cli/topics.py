"""Topics, their subscriptions and deliveries."""

from typing import Any

import click

from loopline.cli.session import Session, limit_option, options


def _subscribers(topic: dict[str, Any]) -> str:
    found = topic.get("subscriptions") or []
    return ", ".join(
        f"{s['kind']} {s['url']} ({s['id']}{', not confirmed' if s.get('pending_until') else ''})" for s in found
    )


@click.group()
def topics() -> None:
    """Notifications: topics, subscriptions, deliveries."""


@topics.command("list")
@click.option("--project")
@options
def list_(session: Session, project: str | None) -> None:
    """Topics with their subscriptions."""
    columns = (("TOPIC", "name"), ("PROJECT", "project"), ("EVENTS", "match"), ("SUBSCRIPTIONS", _subscribers))
    session.table(session.client.get("topics", project=project), columns)


@topics.command()
@click.argument("name")
@click.option("--event", "events", multiple=True, help="Such as version.Approved or alarm.*; may be repeated.")
@click.option("--project", help="Only this project's events.")
@click.option("--endpoint", help="Only what happens to this endpoint.")
@options
def create(session: Session, name: str, events: tuple[str, ...], project: str | None, endpoint: str | None) -> None:
    """Create a topic."""
    made = session.client.post("topics", name=name, events=list(events) or None, project=project, endpoint=endpoint)
    session.done(made, f"topic {name} created")


@topics.command()
@click.argument("name")
@options
def delete(session: Session, name: str) -> None:
    """Remove a topic and its subscriptions."""
    session.done(session.client.delete("topics", name), f"topic {name} removed")


@topics.command()
@click.argument("topic")
@click.argument("kind", type=click.Choice(["webhook", "slack", "sns", "email"]))
@click.argument("address")
@click.option("--secret", help="Name of the stored secret that signs (made when absent).")
@options
def subscribe(session: Session, topic: str, kind: str, address: str, secret: str | None) -> None:
    """Send a topic's events to an address."""
    made = session.client.post("subscriptions", topic=topic, kind=kind, url=address, secret=secret)
    secret = made.get("signing_secret")  # only where it was just made
    told = f"; signing secret, shown this once: {secret}" if secret else ""
    told += "; its receiver is asked first" if made.get("pending_until") else ""
    session.done(made, f"subscription {made['id']}{told}")


@topics.command()
@click.argument("topic")
@click.argument("message")
@click.option("--subject")
@options
def publish(session: Session, topic: str, message: str, subject: str | None) -> None:
    """Send a message to every subscriber."""
    sent = session.client.post("topics", topic, "publish", message=message, subject=subject)
    session.done(sent, f"{len(sent['deliveries'])} to be sent")


@topics.command()
@click.argument("subscription")
@options
def ask(session: Session, subscription: str) -> None:
    """Send a receiver anew the message that asks whether it wants more."""
    session.done(session.client.post("subscriptions", subscription, "ask"), f"subscription {subscription} asked")


@topics.command()
@click.argument("subscription")
@options
def unsubscribe(session: Session, subscription: str) -> None:
    """Remove a subscription."""
    session.done(session.client.delete("subscriptions", subscription), f"subscription {subscription} removed")


@topics.command()
@click.argument("topic")
@options
def test(session: Session, topic: str) -> None:
    """Send a message to every subscription, to see that it arrives."""
    session.record(session.client.post("topics", topic, "test"))


@topics.command()
@click.option("--topic")
@click.option("--status")
@limit_option
@options
def deliveries(session: Session, topic: str | None, status: str | None, limit: int) -> None:
    """Messages and what their receivers answered."""
    columns = (
        ("DELIVERY", "id"),
        ("STATUS", "status"),
        ("EVENT", "event"),
        ("TRIES", "tries"),
        ("NEXT", "next_at"),
        ("CREATED", "created_at"),
    )
    session.table(session.client.get("deliveries", topic=topic, status=status, limit=limit), columns)


@topics.command()
@click.argument("delivery")
@options
def redeliver(session: Session, delivery: str) -> None:
    """Send a message that is over once more."""
    found = session.client.post("deliveries", delivery, "redeliver")
    session.done(found, f"delivery {delivery} {found['status']}")
