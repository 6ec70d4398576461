"""The whole loop at a glance."""

from typing import Any

import click

from loopline.cli.session import Session, options


@click.command()
@options
def status(session: Session) -> None:
    """The whole loop at a glance: what serves, runs, waits and alarms."""
    found = session.client.get("status")
    if session.as_json:
        session.json(found)
        return
    for title, items, columns in (
        (
            "Endpoints",
            _served(found),
            (("ENDPOINT", "name"), ("STATUS", "status"), ("SERVES", "serves"), ("HOUR", "hour")),
        ),
        (
            "Functions",
            found["functions"],
            (("FUNCTION", "name"), ("STATUS", "status"), ("HOUR", _hour), ("REASON", "reason")),
        ),
        (
            "Executions",
            found["executions"],
            (
                ("EXECUTION", "id"),
                ("STATUS", "status"),
                ("PIPELINE", "pipeline"),
                ("STEPS", _steps),
                ("AT", "created_at"),
            ),
        ),
        (
            "Waiting for approval",
            found["waiting"],
            (
                ("MODEL", "model"),
                ("VERSION", "number"),
                ("GATE", "evaluation.status"),
                ("VERIFICATION", "verification"),
                ("BY", "requested_by"),
            ),
        ),
        (
            "Alarms",
            found["alarms"],
            (("ALARM", "name"), ("STATUS", "status"), ("SINCE", "since_at"), ("REASON", "reason")),
        ),
    ):
        if items:
            click.echo(click.style(title, bold=True))
            session.table({"items": items}, columns)
    if not any(found[key] for key in ("endpoints", "executions", "waiting", "alarms")):
        session.note("nothing here yet; begin with: loopline init my-project")


def _served(found: dict[str, Any]) -> list[dict[str, Any]]:
    shown = []
    for endpoint in found["endpoints"]:
        variants = [v for v in endpoint["variants"] if v["share"] > 0]
        serves = ", ".join(_said(v) for v in variants) or "nothing"
        shown.append({**endpoint, "serves": serves, "hour": _hour(endpoint)})
    return shown


def _said(variant: dict[str, Any]) -> str:
    """What serves with which share; a doubt about it is said."""
    doubt = "ungated" if variant.get("ungated") else variant.get("verification")
    name = f"{variant['model']} v{variant['number']}" if variant["number"] else variant["name"]
    return f"{name} {variant['share']:.0%}" + (f" ({doubt})" if doubt not in (None, "verified") else "")


def _hour(item: dict[str, Any]) -> str:
    return f"{item['last_hour']['requests']} requests, {item['last_hour']['errors_5xx']} errors"


def _steps(execution: dict[str, Any]) -> str:
    taken = [step for step in execution["steps"] if step["status"] != "Skipped"]
    return f"{sum(step['status'] == 'Succeeded' for step in taken)}/{len(taken)}"
