"""Environments: list, show."""

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("ENVIRONMENT", "id"),
    ("STATUS", "status"),
    ("PACKAGES", "packages"),
    ("MB", "size_mb"),
    ("SECONDS", "seconds"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)


@click.group()
def environments() -> None:
    """Built environments."""


@environments.command("list")
@click.option("--project")
@options
def list_(session: Session, project: str | None) -> None:
    """Environments, newest first."""
    session.table(session.client.get("environments", project=project), COLUMNS)


@environments.command()
@click.argument("environment")
@options
def show(session: Session, environment: str) -> None:
    """One environment with its lock."""
    session.record(session.client.get("environments", environment))
