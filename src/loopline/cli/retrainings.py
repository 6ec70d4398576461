"""Retrainings: list, show; retrain at the top level."""

from typing import Any

import click

from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("RETRAINING", "id"),
    ("STATUS", "status"),
    ("PROJECT", "project"),
    ("ENDPOINT", "endpoint"),
    ("EXECUTION", "execution"),
    ("BY", "by"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)


@click.group()
def retrainings() -> None:
    """Retrainings: what asked for them, and what came of it."""


@retrainings.command("list")
@click.option("--project")
@click.option("--endpoint")
@limit_option
@options
def list_(session: Session, **filters: Any) -> None:
    """Retrainings, newest first."""
    session.table(session.client.get("retrainings", **filters), COLUMNS)


@retrainings.command()
@click.argument("retraining")
@options
def show(session: Session, retraining: str) -> None:
    """One retraining: its cause, its data, its execution."""
    session.record(session.client.get("retrainings", retraining))


@click.command()
@click.argument("project")
@click.option("--endpoint", help="Whose captured rows it learns from (default: the project's own).")
@click.option("--reason")
@options
def retrain(session: Session, project: str, endpoint: str | None, reason: str | None) -> None:
    """Retrain a project's model now, from its data and the captured rows whose labels have arrived."""
    made = session.client.post("retrainings", project=project, endpoint=endpoint, reason=reason)
    session.done(made, f"retraining {made['id']} {made['status']}; see: loopline retrainings show {made['id']}")
