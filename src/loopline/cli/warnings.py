"""What callers were warned of."""

import click

from loopline.cli.session import Session, limit_option, options

COLUMNS = (("LAST", "last_at"), ("TIMES", "count"), ("BY", "by"), ("SOURCE", "source"), ("WARNING", "text"))


@click.group()
def warnings() -> None:
    """What callers were warned of: it was done, and goes otherwise elsewhere."""


@warnings.command("list")
@click.option("--source", help="Only those whose source begins so, such as sagemaker.")
@limit_option
@options
def list_(session: Session, limit: int, source: str | None) -> None:
    """Warnings, the latest first."""
    session.table(session.client.get("warnings", source=source, limit=limit), COLUMNS)
