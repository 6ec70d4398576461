"""Alarms: list, show, history, put, set, lint, delete."""

from pathlib import Path
from typing import Any

import click

from loopline.cli.metrics import dimension_option, pairs
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
@click.option("--action", "actions", multiple=True, help="notify, rollback, retrain or topic:NAME.")
@click.option("--variant")
@click.option("--namespace", help="Of a metric that is no endpoint's; ENDPOINT is then -.")
@dimension_option
@options
def put(
    session: Session, name: str, endpoint: str, actions: tuple[str, ...], dimensions: tuple[str, ...], **body: Any
) -> None:
    """Create or change an alarm: loopline alarms put slow patients latency_ms '>' 50 --statistic p99."""
    made = session.client.put(
        "alarms",
        name,
        endpoint=None if endpoint == "-" else endpoint,
        actions=list(actions) or None,
        dimensions=pairs(dimensions) or None,
        **body,
    )
    session.done(made, f"alarm {name}: {made['status']}")


@alarms.command("set")
@click.argument("name")
@click.argument("state", type=click.Choice(["OK", "ALARM", "INSUFFICIENT_DATA"]))
@click.option("--reason", default="set by hand")
@options
def set_(session: Session, name: str, state: str, reason: str) -> None:
    """Put an alarm into a state until it is judged again, to see what it does."""
    session.done(session.client.post("alarms", name, "state", state=state, reason=reason), f"alarm {name}: {state}")


@alarms.command()
@click.argument("scripts", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@options
def lint(session: Session, scripts: tuple[Path, ...]) -> int:
    """What is wrong with the alarms that are there, or that scripts make by put_metric_alarm; exits 1 when one is."""
    found = _of_scripts(scripts) if scripts else session.client.get("alarms", "lint")["items"]
    if session.as_json or not scripts:
        session.table({"items": found, "next": None}, (("ALARM", "alarm"), ("WHAT", "message"), ("WRITE", "change")))
    else:
        for each in found:
            click.echo(f"{each['file']}:{each['line']}: {each['alarm']}: {each['message']}\n{each['call']}\n")
    return int(bool(found))


def _of_scripts(scripts: tuple[Path, ...]) -> list[dict[str, Any]]:
    """The findings of every script; none of them is run."""
    from loopline.domain import clientcode, cloudwatch

    return [
        {
            "file": str(path),
            "line": call.line,
            "alarm": call.name,
            "code": ", ".join(each.code for each in call.verdict.findings),
            "message": "; ".join(each.message for each in call.verdict.findings),
            "call": cloudwatch.python_call(call.verdict.call),
        }
        for path in scripts
        for call in clientcode.alarms(path.read_text(encoding="utf-8", errors="replace"))
    ]


@alarms.command()
@click.argument("name")
@options
def delete(session: Session, name: str) -> None:
    """Remove an alarm."""
    session.done(session.client.delete("alarms", name), f"alarm {name} removed")
