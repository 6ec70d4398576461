"""Triggers: list, show, enable, disable, fire."""

import click

from loopline.cli.session import Session, assignments, options

COLUMNS = (
    ("TRIGGER", "name"),
    ("KIND", "kind"),
    ("ENABLED", "enabled"),
    ("SETTINGS", "settings"),
    ("NEXT", "next_at"),
    ("LAST", "last"),
)


@click.group()
def triggers() -> None:
    """What starts pipelines by itself."""


@triggers.command("list")
@click.option("--project")
@options
def list_(session: Session, project: str | None) -> None:
    """Triggers by name."""
    session.table(session.client.get("triggers", project=project), COLUMNS)


@triggers.command()
@click.argument("trigger")
@options
def show(session: Session, trigger: str) -> None:
    """One trigger, by id or PROJECT/NAME."""
    session.record(session.client.get("triggers", trigger))


@triggers.command()
@click.argument("trigger")
@options
def enable(session: Session, trigger: str) -> None:
    """Switch a trigger on."""
    session.done(session.client.post("triggers", trigger, "enable"), f"trigger {trigger} is on")


@triggers.command()
@click.argument("trigger")
@click.option("--reason")
@options
def disable(session: Session, trigger: str, reason: str | None) -> None:
    """Switch a trigger off until somebody enables it."""
    session.done(session.client.post("triggers", trigger, "disable", reason=reason), f"trigger {trigger} is off")


@triggers.command()
@click.argument("trigger")
@click.option("--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE")
@options
def fire(session: Session, trigger: str, parameters: tuple[str, ...]) -> None:
    """Start a trigger's pipeline now."""
    made = session.client.post("triggers", trigger, "fire", parameters=assignments(parameters) or None)
    session.done(made, f"push {made['id']} {made['status']}")
