"""Rollouts: list, show."""

from collections.abc import Callable
from typing import Any

import click

from loopline.cli.session import Session, limit_option, options


def _to(rollout: dict[str, Any]) -> str:
    plan = rollout["plan"] or {}
    return f"{plan['model']} v{plan['number']}" if plan.get("number") else str(rollout["variant"])


COLUMNS = (
    ("ROLLOUT", "id"),
    ("STATUS", "status"),
    ("ENDPOINT", "endpoint"),
    ("KIND", "kind"),
    ("TO", _to),
    ("BY", "by"),
    ("CREATED", "created_at"),
    ("REASON", "reason"),
)


@click.group()
def rollouts() -> None:
    """How traffic moved, and why."""


@rollouts.command("list")
@click.option("--endpoint")
@limit_option
@options
def list_(session: Session, endpoint: str | None, limit: int) -> None:
    """Rollouts, newest first."""
    session.table(session.client.get("rollouts", endpoint=endpoint, limit=limit), COLUMNS)


@rollouts.command()
@click.argument("rollout")
@options
def show(session: Session, rollout: str) -> None:
    """One rollout with the figures that decided each step."""
    found = session.client.get("rollouts", rollout)
    if session.as_json:
        session.json(found)
        return
    plan = found["plan"] or {}
    shares = " ".join(f"{share:g}" for share in plan.get("shares") or ()) or None
    keys = ("id", "status", "endpoint", "kind", "strategy", "by", "created_at", "ended_at", "reason")
    told = {key: found[key] for key in keys}
    session.record({**told, "to": _to(found), "percent": shares, "servers": plan.get("servers")})
    session.table({"items": found["decisions"] or []}, STEPS, empty="nothing has been decided yet")


def _of(side: str, figure: str) -> Callable[[dict[str, Any]], Any]:
    """A column: one figure of one side."""
    return lambda note: ((note.get("figures") or {}).get(side) or {}).get(figure)


STEPS = (
    ("PERCENT", "share"),
    ("VERDICT", "verdict"),
    ("SECONDS", "figures.elapsed_seconds"),
    ("REQUESTS", _of("candidate", "requests")),
    ("5XX", _of("candidate", "errors_5xx")),
    ("P50 MS", _of("candidate", "p50_ms")),
    ("P99 MS", _of("candidate", "p99_ms")),
    ("OLD REQUESTS", _of("predecessor", "requests")),
    ("OLD P99 MS", _of("predecessor", "p99_ms")),
    ("REASON", "reason"),
)
