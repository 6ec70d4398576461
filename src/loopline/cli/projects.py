"""Projects: list, show."""

import click

from loopline.cli.session import Session, options


@click.group()
def projects() -> None:
    """Projects."""


@projects.command("list")
@options
def list_(session: Session) -> None:
    """Projects."""
    columns = (("PROJECT", "name"), ("CREATED", "created_at"), ("CHANGED", "changed_at"))
    session.table(session.client.get("projects"), columns)


@projects.command()
@click.argument("project")
@options
def show(session: Session, project: str) -> None:
    """One project with its loop.toml as it was applied."""
    session.record(session.client.get("projects", project))
