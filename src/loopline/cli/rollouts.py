"""Rollouts: list, show."""

from typing import Any

import click

from loopline.cli.session import Session, limit_option, options


def _to(rollout: dict[str, Any]) -> str:
    plan = rollout["plan"] or {}
    return f"{plan['model']} v{plan['number']}" if plan.get("number") else str(rollout["variant"])


COLUMNS = (
    ("ROLLOUT", "id"),
    ("STATUS", "status"),
    ("ENDPOINT", "endpoint"),
    ("KIND", "kind"),
    ("TO", _to),
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
