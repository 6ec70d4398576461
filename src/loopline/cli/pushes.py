"""Pushes: list, show."""

import click

from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("PUSH", "id"),
    ("STATUS", "status"),
    ("PROJECT", "project"),
    ("BRANCH", "branch"),
    ("COMMIT", lambda push: push["commit"][:10] + "+" * bool(push["dirty"]) if push["commit"] else None),
    ("SOURCE", "source"),
    ("BY", "by"),
    ("EXECUTION", "execution"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)


@click.group()
def pushes() -> None:
    """Commits and trees that reached the platform."""


@pushes.command("list")
@click.option("--project")
@limit_option
@options
def list_(session: Session, project: str | None, limit: int) -> None:
    """Pushes, newest first."""
    session.table(session.client.get("pushes", project=project, limit=limit), COLUMNS)


@pushes.command()
@click.argument("push")
@options
def show(session: Session, push: str) -> None:
    """What became of a push, and why."""
    session.record(session.client.get("pushes", push))
