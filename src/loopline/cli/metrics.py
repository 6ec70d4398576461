"""Metrics that people send, and what the platform measures of endpoints."""

import click

from loopline.cli.session import Session, limit_option, options
from loopline.errors import InvalidInput


def pairs(given: tuple[str, ...]) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping."""
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise InvalidInput(f"{each!r}: write --dimension NAME=VALUE")
        found[name] = value
    return found


dimension_option = click.option("--dimension", "dimensions", multiple=True, help="NAME=VALUE; may be repeated.")


@click.group()
def metrics() -> None:
    """Metrics: list, read, put."""


@metrics.command("list")
@click.option("--namespace", help="loopline: what the platform measures itself.")
@click.option("--name")
@dimension_option
@limit_option
@options
def list_(session: Session, namespace: str | None, name: str | None, dimensions: tuple[str, ...], limit: int) -> None:
    """Metrics that have values."""
    found = session.client.get(
        "metrics", namespace=namespace, name=name, dimensions=list(dimensions) or None, limit=limit
    )
    columns = (("NAMESPACE", "namespace"), ("METRIC", "name"), ("DIMENSIONS", "dimensions"), ("SEEN", "seen_at"))
    session.table(found, columns)


@metrics.command()
@click.argument("namespace")
@click.argument("name")
@dimension_option
@click.option("--statistic", "statistics", multiple=True, help="Average, Sum, Minimum, Maximum, SampleCount, p99, ...")
@click.option("--period", "period_seconds", type=int, default=60, help="Seconds.")
@click.option("--start", help="A time; an hour ago unless given.")
@click.option("--end", help="A time; now unless given.")
@options
def read(
    session: Session,
    namespace: str,
    name: str,
    dimensions: tuple[str, ...],
    statistics: tuple[str, ...],
    **more: str | int | None,
) -> None:
    """The values of one metric by time."""
    wanted = list(statistics or ("SampleCount", "Average", "Minimum", "Maximum"))
    pairs(dimensions)
    found = session.client.get(
        "metrics",
        "read",
        namespace=namespace,
        name=name,
        dimensions=list(dimensions) or None,
        statistics=wanted,
        **{key: value for key, value in more.items() if value is not None},
    )
    session.table(found, (("AT", "at"), *((each.upper(), each) for each in wanted)))


@metrics.command()
@click.argument("namespace")
@click.argument("name")
@click.argument("value", type=float)
@dimension_option
@click.option("--unit", help="Count, Seconds, Milliseconds, Bytes, Percent, ...")
@options
def put(
    session: Session, namespace: str, name: str, value: float, dimensions: tuple[str, ...], unit: str | None
) -> None:
    """Send one value."""
    datum = {"name": name, "value": value, "dimensions": pairs(dimensions), **({"unit": unit} if unit else {})}
    sent = session.client.post("metrics", namespace=namespace, data=[datum])
    session.done(sent, f"{namespace} {name}: {value:g}")
