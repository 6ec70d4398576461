"""The log of everything that happened, and the chain of hashes that guards it."""

import click

from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("NUMBER", "number"),
    ("AT", "at"),
    ("BY", "actor"),
    ("WHAT", lambda event: f"{event['noun']} {event['kind']}"),
    ("RECORD", "record"),
    ("FROM", "before"),
    ("TO", "after"),
    ("REASON", "reason"),
)


@click.group()
def events() -> None:
    """Everything that happened."""


@events.command("list")
@click.option("--after", type=int, help="Only events behind this number, in order.")
@click.option("--noun", help="Such as version, rollout, alarm.")
@click.option("--record", help="The id of one record.")
@limit_option
@options
def list_(session: Session, after: int | None, noun: str | None, record: str | None, limit: int) -> None:
    """Events, newest first."""
    session.table(session.client.get("events", after=after, noun=noun, record=record, limit=limit), COLUMNS)


@click.group()
def audit() -> None:
    """The chain of hashes over all events."""


@audit.command()
@options
def head(session: Session) -> None:
    """The newest link. Keep its anchor elsewhere to prove later that nothing before it changed."""
    session.record(session.client.get("audit"))


@audit.command()
@click.option("--anchor", help="What `audit head` printed earlier.")
@options
def verify(session: Session, anchor: str | None) -> int:
    """Compute the whole chain anew; exits 1 when it does not hold."""
    found = session.client.get("audit", "verify", anchor=anchor)
    session.record(found, ("valid", "events", "waiting", "head.anchor", "problem"))
    return 0 if found["valid"] else 1
