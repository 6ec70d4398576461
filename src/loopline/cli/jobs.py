"""Jobs: list, show, log, stop."""

import click

from loopline.cli.executions import print_log
from loopline.cli.session import Session, limit_option, options

COLUMNS = (
    ("JOB", "id"),
    ("STATUS", "status"),
    ("NAME", "name"),
    ("KIND", "kind"),
    ("FOR", lambda job: f"{job['owner']} {job['owner_id']}"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)


@click.group()
def jobs() -> None:
    """Work on compute, and its logs."""


@jobs.command("list")
@click.option("--owner", help="The noun that asked for it: step, push or evaluation.")
@limit_option
@options
def list_(session: Session, owner: str | None, limit: int) -> None:
    """Jobs, newest first."""
    session.table(session.client.get("jobs", owner=owner, limit=limit), COLUMNS)


@jobs.command()
@click.argument("job")
@options
def show(session: Session, job: str) -> None:
    """One job with its attempts."""
    session.record(session.client.get("jobs", job))


@jobs.command()
@click.argument("job")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job is over.")
@options
def log(session: Session, job: str, follow: bool) -> None:
    """What a job wrote."""
    print_log(session, ("jobs", job, "log"), follow)


@jobs.command()
@click.argument("job")
@click.option("--reason")
@options
def stop(session: Session, job: str, reason: str | None) -> None:
    """Stop a job that belongs to no execution."""
    found = session.client.post("jobs", job, "stop", reason=reason)
    session.done(found, f"job {job} {found['status']}")
