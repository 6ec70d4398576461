"""Runs: list, show, compare, metrics, artifact."""

import sys
from pathlib import Path
from typing import Any

import click

from loopline.cli.session import Session, limit_option, options

LOG_LINES = 5
MAX_LOG_BYTES = 1 << 20


def _best(run: dict[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:.4g}" for key, value in list((run["metrics"] or {}).items())[:4] if value is not None
    )


COLUMNS = (
    ("RUN", "id"),
    ("STATUS", "status"),
    ("PROJECT", "project"),
    ("EXPERIMENT", "experiment"),
    ("NAME", "name"),
    ("METRICS", _best),
    ("CREATED", "created_at"),
)


@click.group()
def runs() -> None:
    """Tracked runs: parameters, metrics, artifacts."""


@runs.command("list")
@click.option("--project")
@click.option("--experiment")
@click.option("--where", help="One comparison of a metric: 'accuracy > 0.9'.")
@click.option("--order", help="A metric; -METRIC for the greatest first.")
@limit_option
@options
def list_(session: Session, limit: int, **filters: str | None) -> None:
    """Runs, newest first or by a metric."""
    session.table(session.client.get("runs", **filters, limit=limit), COLUMNS)


@runs.command()
@click.argument("run")
@options
def show(session: Session, run: str) -> None:
    """One run."""
    found = session.client.get("runs", run)
    if not session.as_json:
        found["metrics"] = {key: last["value"] for key, last in (found["metrics"] or {}).items()}
        found["artifacts"] = [artifact["path"] for artifact in found["artifacts"]]
        found["log"] = _log_tail(session, found.pop("steps"))
    session.record(found)


def _log_tail(session: Session, steps: list[dict[str, Any]]) -> str:
    """The last lines that a step of the run printed."""
    for step in reversed(steps):
        if step["job"]:
            text = session.client.get("jobs", step["job"], "log", limit=MAX_LOG_BYTES)["text"].strip()
            if text:
                return "\n".join([f"({step['name']})", *text.splitlines()[-LOG_LINES:]])
    return ""


@runs.command()
@click.argument("first")
@click.argument("second")
@click.option("--all", "everything", is_flag=True, help="What is the same, too.")
@options
def compare(session: Session, first: str, second: str, everything: bool) -> None:
    """Two runs side by side."""
    found = session.client.get("runs", "compare", a=first, b=second)
    if not everything:
        found["items"] = [row for row in found["items"] if not row["same"]]
    columns = (("", "section"), ("KEY", "key"), (first, "a"), (second, "b"), ("DIFFERENCE", "difference"))
    session.table(found, columns, empty="the two runs are the same")


@runs.command()
@click.argument("run")
@click.argument("metric")
@options
def metrics(session: Session, run: str, metric: str) -> None:
    """The points of one metric."""
    session.table(
        session.client.get("runs", run, "metrics", metric), (("STEP", "step"), ("VALUE", "value"), ("AT", "at"))
    )


@runs.command()
@click.argument("run")
@click.argument("path")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file (default: stdout).")
@options
def artifact(session: Session, run: str, path: str, output: Path | None) -> None:
    """Fetch an artifact."""
    save(session.client.download("runs", run, "artifacts", path), output)


def save(chunks: Any, output: Path | None) -> None:
    """Write bytes to a file that does not exist yet, or to stdout."""
    if output is None:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        return
    check_target(output)
    with output.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)


def check_target(output: Path) -> None:
    """Refuse a file that is there already, and one whose folder is not."""
    if output.exists():
        raise click.UsageError(f"{output} exists already")
    if not output.parent.is_dir():
        raise click.UsageError(f"there is no folder {output.parent} to write {output.name} to")
