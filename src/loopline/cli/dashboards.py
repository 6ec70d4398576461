"""Dashboards: list, show, put, delete."""

from typing import BinaryIO

import click

from loopline.cli.session import Session, options


@click.group()
def dashboards() -> None:
    """Dashboards that are kept for whoever draws them."""


@dashboards.command("list")
@options
def list_(session: Session) -> None:
    """Dashboards by name."""
    columns = (("DASHBOARD", "name"), ("BYTES", "size_bytes"), ("BY", "by"), ("CHANGED", "changed_at"))
    session.table(session.client.get("dashboards"), columns)


@dashboards.command()
@click.argument("name")
@options
def show(session: Session, name: str) -> None:
    """The body of a dashboard."""
    found = session.client.get("dashboards", name)
    if session.as_json:
        session.json(found)
    else:
        click.echo(found["body"])


@dashboards.command()
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@options
def put(session: Session, name: str, file: BinaryIO) -> None:
    """Store a dashboard's body, and say what is wrong with it."""
    from loopline.domain import dashboards as rules

    body = file.read().decode(errors="replace")
    for message in rules.check(body):
        session.note(f"{message.path}: {message.text}")
    session.done(session.client.put("dashboards", name, body=body), f"dashboard {name} stored")


@dashboards.command()
@click.argument("names", nargs=-1, required=True)
@options
def delete(session: Session, names: tuple[str, ...]) -> None:
    """Remove dashboards."""
    session.done(session.client.delete("dashboards", dashboards=list(names)), f"removed: {', '.join(names)}")
