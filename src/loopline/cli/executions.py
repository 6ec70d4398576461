"""Executions: list, show, steps, log, wait, start, stop, retry."""

import sys
import time
from typing import Any

import click

from loopline.cli.session import Session, assignments, clean, limit_option, options
from loopline.domain.states import is_terminal

COLUMNS = (
    ("EXECUTION", "id"),
    ("STATUS", "status"),
    ("PROJECT", "project"),
    ("PIPELINE", "pipeline"),
    ("BY", "by"),
    ("CREATED", "created_at"),
    ("ENDED", "ended_at"),
    ("REASON", "reason"),
)
STEP_COLUMNS = (
    ("STEP", "name"),
    ("STATUS", "status"),
    ("SECONDS", "seconds"),
    ("CACHED", lambda step: bool(step.get("cached_from"))),
    ("REASON", "reason"),
)


@click.group()
def executions() -> None:
    """Executions of pipelines, their steps and logs."""


@executions.command("list")
@click.option("--project")
@click.option("--status")
@limit_option
@options
def list_(session: Session, project: str | None, status: str | None, limit: int) -> None:
    """Executions, newest first."""
    session.table(session.client.get("executions", project=project, status=status, limit=limit), COLUMNS)


@executions.command()
@click.argument("execution")
@options
def show(session: Session, execution: str) -> None:
    """One execution with its steps."""
    found = session.client.get("executions", execution)
    session.record(found, None if session.as_json else [key for key in found if key not in ("steps", "targets")])
    if not session.as_json:
        session.table({"items": found["steps"]}, STEP_COLUMNS)


@executions.command()
@click.argument("execution")
@options
def steps(session: Session, execution: str) -> None:
    """The steps of an execution."""
    session.table(session.client.get("executions", execution, "steps"), STEP_COLUMNS)


@executions.command()
@click.argument("execution")
@click.argument("step")
@click.option("--follow", "-f", is_flag=True, help="Go on until the step is over.")
@options
def log(session: Session, execution: str, step: str, follow: bool) -> None:
    """What a step wrote."""
    print_log(session, ("executions", execution, "steps", step, "log"), follow)


def print_log(session: Session, path: tuple[str, ...], follow: bool) -> None:
    """Print a log from its beginning to its (present) end."""
    offset, pause = 0, 0.1
    while True:
        piece = session.client.get(*path, offset=offset)
        if session.as_json and piece["text"]:
            session.json(piece)
        elif piece["text"]:
            click.echo(clean(piece["text"]) if sys.stdout.isatty() else piece["text"], nl=False)
        moved = piece["next_offset"] > offset
        offset = max(offset, piece["next_offset"])
        if piece["end"] or not (moved or follow):
            return
        if not moved:
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)


@executions.command()
@click.argument("execution")
@click.option("--timeout", type=float, help="Seconds to wait.")
@options
def wait(session: Session, execution: str, timeout: float | None) -> int:
    """Wait until an execution is over; exits 1 unless it succeeded, 4 when it took too long."""
    return follow(session, execution, timeout)


def follow(session: Session, execution: str, timeout: float | None) -> int:
    """Wait for an execution with its steps' progress on stderr; gives the exit code."""
    seen: dict[str, str] = {}

    def progress(found: dict[str, Any]) -> None:
        for step in found["steps"]:
            if seen.get(step["name"], "Pending") != step["status"]:
                seen[step["name"]] = step["status"]
                session.note(f"  {_line(step)}")

    found = session.client.wait_execution(execution, timeout, progress)
    if session.as_json:
        session.json(found)
    else:
        click.echo(
            clean(f"execution {execution} {found['status']}" + (f": {found['reason']}" if found["reason"] else ""))
        )
    return 0 if found["status"] == "Succeeded" else 1


def _line(step: dict[str, Any]) -> str:
    parts = [f"{step['name']}: {step['status']}"]
    if step.get("cached_from"):
        parts.append("(cached)")
    elif is_terminal("step", step["status"]) and step.get("seconds") is not None:
        parts.append(f"({step['seconds']:.1f} s)")
    if step.get("reason"):
        parts.append(f"- {step['reason']}")
    return " ".join(parts)


@executions.command()
@click.argument("project")
@click.option("--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE")
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@options
def start(session: Session, project: str, parameters: tuple[str, ...], no_cache: bool) -> None:
    """Run a project's pipeline again, from the tree that was applied last."""
    made = session.client.post("executions", project=project, parameters=assignments(parameters), cache=not no_cache)
    session.done(made, f"push {made['id']} {made['status']}; see: loopline pushes show {made['id']}")


@executions.command()
@click.argument("execution")
@click.option("--reason")
@options
def stop(session: Session, execution: str, reason: str | None) -> None:
    """Stop an execution."""
    found = session.client.post("executions", execution, "stop", reason=reason)
    session.done(found, f"execution {execution} {found['status']}")


@executions.command()
@click.argument("execution")
@click.option("--title", help="What it is called.")
@click.option("--description")
@click.option("--max-parallel", type=click.IntRange(min=1), help="How many of its steps may run at once from now on.")
@options
def update(
    session: Session, execution: str, title: str | None, description: str | None, max_parallel: int | None
) -> None:
    """Change what an execution is called, what is said of it, and how many of its steps run at once."""
    words = {"title": title, "description": description}
    found = session.client.put("executions", execution, max_parallel=max_parallel, **words)
    session.done(found, f"execution {execution} is changed")


@executions.command()
@click.argument("execution")
@options
def retry(session: Session, execution: str) -> None:
    """Start again from what failed."""
    found = session.client.post("executions", execution, "retry")
    session.done(found, f"execution {execution} {found['status']}")
