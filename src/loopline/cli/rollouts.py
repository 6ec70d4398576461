"""Rollouts: list, show."""

import click

from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("ROLLOUT", "id"),
    ("STATUS", "status"),
    ("ENDPOINT", "endpoint"),
    ("KIND", "kind"),
    ("TO", "variant"),
    ("FROM", "predecessor"),
    ("BY", "by"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)


@click.group()
def rollouts() -> None:
    """How traffic moved, and why."""


@rollouts.command("list")
@click.option("--endpoint")
@limit_option
@options
def list_(session: Session, endpoint: str | None, limit: int) -> None:
    """Rollouts, newest first."""
    session.table(session.client.get("rollouts", endpoint=endpoint, limit=limit), COLUMNS)


@rollouts.command()
@click.argument("rollout")
@options
def show(session: Session, rollout: str) -> None:
    """One rollout with the figures that decided each step."""
    session.record(session.client.get("rollouts", rollout))
