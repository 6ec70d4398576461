"""Alarms: list, show, history, put, delete."""

from typing import Any

import click

from loopline.cli.session import Session, limit_option, options


def _rule(alarm: dict[str, Any]) -> str:
    rule = alarm["definition"] or {}
    return (
        f"{rule.get('statistic', '')} {rule.get('metric')} {rule.get('comparison')} {rule.get('threshold')}, "
        f"{rule.get('datapoints_to_alarm') or rule.get('evaluation_periods')} of {rule.get('evaluation_periods')} "
        f"x {rule.get('period_seconds')} s"
    )


COLUMNS = (
    ("ALARM", "name"),
    ("STATUS", "status"),
    ("ENDPOINT", "endpoint"),
    ("WHEN", _rule),
    ("SINCE", "since_at"),
    ("REASON", "reason"),
)


@click.group()
def alarms() -> None:
    """Alarms and their history."""


@alarms.command("list")
@click.option("--project")
@click.option("--endpoint")
@click.option("--status")
@options
def list_(session: Session, **filters: str | None) -> None:
    """Alarms by name."""
    session.table(session.client.get("alarms", **filters), COLUMNS)


@alarms.command()
@click.argument("name")
@options
def show(session: Session, name: str) -> None:
    """One alarm with what it sees now."""
    session.record(session.client.get("alarms", name))


@alarms.command()
@click.argument("name")
@limit_option
@options
def history(session: Session, name: str, limit: int) -> None:
    """What happened to an alarm."""
    columns = (("AT", "at"), ("WHAT", "kind"), ("TO", "after"), ("BY", "actor"), ("REASON", "reason"))
    session.table(session.client.get("alarms", name, "history", limit=limit), columns)


@alarms.command()
@click.argument("name")
@click.argument("endpoint")
@click.argument("metric")
@click.argument("comparison", type=click.Choice([">", ">=", "<", "<="]))
@click.argument("threshold", type=float)
@click.option("--statistic", help="Average, Sum, Minimum, Maximum, SampleCount, p99, ...")
@click.option("--period", "period_seconds", type=int, help="Seconds.")
@click.option("--periods", "evaluation_periods", type=int, help="How many periods are looked at.")
@click.option("--needed", "datapoints_to_alarm", type=int, help="How many of them must be wrong.")
@click.option("--missing", type=click.Choice(["missing", "breaching", "not_breaching", "ignore"]))
@click.option("--action", "actions", multiple=True, type=click.Choice(["notify", "rollback", "retrain"]))
@click.option("--variant")
@options
def put(session: Session, name: str, actions: tuple[str, ...], **body: Any) -> None:
    """Create or change an alarm: loopline alarms put slow patients latency_ms '>' 50 --statistic p99."""
    made = session.client.put("alarms", name, actions=list(actions) or None, **body)
    session.done(made, f"alarm {name}: {made['status']}")


@alarms.command()
@click.argument("name")
@options
def delete(session: Session, name: str) -> None:
    """Remove an alarm."""
    session.done(session.client.delete("alarms", name), f"alarm {name} removed")
