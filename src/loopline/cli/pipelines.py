"""Stored pipelines: list, show, put, start, delete."""

import json
from pathlib import Path
from typing import Any

import click

from loopline.cli.executions import follow
from loopline.cli.session import Session, assignments, limit_option, options
from loopline.errors import InvalidInput

COLUMNS = (
    ("PIPELINE", "name"),
    ("VERSION", "version"),
    ("TITLE", "title"),
    ("LAST STARTED", "last_started_at"),
    ("CHANGED", "changed_at"),
    ("BY", "changed_by"),
)
STEP_COLUMNS = (
    ("STEP", "name"),
    ("KIND", "kind"),
    ("AFTER", lambda step: " ".join(step.get("after") or ())),
    ("UNDER", lambda step: " ".join(f"{each['step']}={each['branch']}" for each in step.get("parents") or ())),
)


@click.group()
def pipelines() -> None:
    """Pipelines that are kept here by name, without a project."""


@pipelines.command("list")
@limit_option
@options
def list_(session: Session, limit: int) -> None:
    """Stored pipelines by name."""
    session.table(session.client.get("pipelines", limit=limit), COLUMNS, empty="no stored pipelines")


@pipelines.command()
@click.argument("pipeline")
@click.option("--version", type=click.IntRange(1), help="Default: the newest.")
@options
def show(session: Session, pipeline: str, version: int | None) -> None:
    """One stored pipeline with its parameters and steps."""
    found = session.client.get("pipelines", pipeline, version=version)
    session.record(found, None if session.as_json else [key for key in found if key not in ("spec", "definition")])
    if not session.as_json:
        for parameter in found["spec"].get("parameters") or ():
            default = "" if "default" not in parameter else f" = {parameter['default']}"
            session.note(f"parameter {parameter['name']}: {parameter['type']}{default}")
        session.table({"items": found["spec"]["steps"]}, STEP_COLUMNS)


@pipelines.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options
def put(session: Session, file: Path) -> None:
    """Keep a compiled pipeline (JSON) under its name; another content is the next version."""
    spec = _read(file)
    name = str(spec.get("name"))
    known = any(each["name"] == name for each in session.client.pages("pipelines"))
    send = session.client.put if known else session.client.post
    made = send("pipelines", *([name] if known else []), spec=spec, definition=file.read_text())
    session.done(made, f"pipeline {made['name']} version {made['version']}; start it: loopline pipelines start {name}")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise InvalidInput(f"{file} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{file} holds no compiled pipeline: a JSON object with version, name and steps")
    return found


@pipelines.command()
@click.argument("pipeline")
@click.option("--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE")
@click.option("--step", "steps", multiple=True, help="Run this step only (again and again for more).")
@click.option("--from", "source", metavar="EXECUTION", help="Where the other steps' results come from.")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("--wait", is_flag=True, help="Wait until it is over; exits 1 unless it succeeded.")
@options
def start(
    session: Session,
    pipeline: str,
    parameters: tuple[str, ...],
    steps: tuple[str, ...],
    source: str | None,
    no_cache: bool,
    wait: bool,
) -> int:
    """Start a stored pipeline."""
    body: dict[str, Any] = {"parameters": assignments(parameters), "cache": not no_cache}
    if steps:
        body |= {"steps": list(steps), "source": source}
    made = session.client.post("pipelines", pipeline, "executions", **body)
    if wait:
        return follow(session, made["id"], None)
    session.done(made, f"execution {made['id']} {made['status']}; see: loopline executions show {made['id']}")
    return 0


@pipelines.command()
@click.argument("pipeline")
@options
def delete(session: Session, pipeline: str) -> None:
    """Forget a stored pipeline; its executions stay."""
    session.done(session.client.delete("pipelines", pipeline), f"pipeline {pipeline} deleted")
