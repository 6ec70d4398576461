"""Functions: list, show, invoke, delete; what they print: loopline logs function:NAME."""

import json
import sys
from pathlib import Path

import click

from loopline.cli.session import Session, options

COLUMNS = (
    ("FUNCTION", "name"),
    ("STATUS", "status"),
    ("PROJECT", "project"),
    ("FILE", "settings.file"),
    ("MAY ASK", lambda row: ",".join(row["settings"]["endpoints"]) or None),
    ("REASON", "reason"),
)


@click.group()
def functions() -> None:
    """Functions behind routes of their own; [[functions]] of loop.toml declares them."""


@functions.command("list")
@click.option("--project")
@options
def list_(session: Session, project: str | None) -> None:
    """Functions by name."""
    session.table(session.client.get("functions", project=project), COLUMNS)


@functions.command()
@click.argument("function")
@options
def show(session: Session, function: str) -> None:
    """One function with its processes."""
    session.record(session.client.get("functions", function))


@functions.command()
@click.argument("function")
@click.argument("body", default="-")
@options
def invoke(session: Session, function: str, body: str) -> None:
    """Ask a function. BODY: JSON, @FILE, or - for stdin."""
    if body == "-":
        raw = sys.stdin.buffer.read()
    else:
        raw = Path(body[1:]).read_bytes() if body.startswith("@") else body.encode()
    try:
        json.loads(raw or b"null")
    except ValueError as error:
        raise click.UsageError(f"the body is not JSON: {error}; other bodies: curl ... /functions/{function}") from None
    kind, answer = session.client.invoke_function(function, raw)
    if kind.partition(";")[0] == "application/json":
        session.json(json.loads(answer))
    else:
        sys.stdout.buffer.write(answer)


@functions.command()
@click.argument("function")
@options
def delete(session: Session, function: str) -> None:
    """Take a function away, until its project is applied again."""
    session.done(session.client.delete("functions", function), f"function {function} deleted")
