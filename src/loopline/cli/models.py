"""Models: list, show, create, alias, gate."""

import click

from loopline.cli.session import VERSION, Session, assignments, options
from loopline.cli.session import text as cell

COLUMNS = (
    ("MODEL", "name"),
    ("VERSIONS", "last_version"),
    ("GATE", "gate_mode"),
    ("ALIASES", lambda model: _aliases(model["aliases"])),
    ("PROJECT", "project"),
    ("DESCRIPTION", "description"),
)


def _aliases(found: object) -> str:
    if isinstance(found, dict):
        return ", ".join(f"{name}=v{number}" for name, number in found.items())
    return cell(found)


@click.group()
def models() -> None:
    """Registered models and their aliases."""


@models.command("list")
@click.option("--project")
@click.option("--contains", help="A part of the name.")
@options
def list_(session: Session, project: str | None, contains: str | None) -> None:
    """Registered models."""
    session.table(session.client.get("models", project=project, contains=contains), COLUMNS)


@models.command()
@click.argument("model")
@options
def show(session: Session, model: str) -> None:
    """One model."""
    session.record(session.client.get("models", model))


@models.command()
@click.argument("name")
@click.option("--gate", "gate_mode", type=click.Choice(["enforce", "advisory", "off"]))
@click.option("--description")
@options
def create(session: Session, name: str, gate_mode: str | None, description: str | None) -> None:
    """Create a model by hand."""
    made = session.client.post("models", name=name, gate_mode=gate_mode, description=description)
    session.done(made, f"model {name} created")


@models.command("delete")
@click.argument("model")
@options
def delete_(session: Session, model: str) -> None:
    """Take a model away that has no versions, and that no endpoint is there for."""
    session.done(session.client.delete("models", model), f"model {model} deleted")


@models.command()
@click.argument("model")
@click.argument("name")
@click.argument("version", type=VERSION, required=False)
@click.option("--delete", is_flag=True)
@options
def alias(session: Session, model: str, name: str, version: int | None, delete: bool) -> None:
    """Point an alias at a version: loopline models alias patients challenger 3."""
    if delete == (version is not None):
        raise click.UsageError("give a version, or --delete")
    if delete:
        session.done(session.client.delete("models", model, "aliases", name), f"alias {name} of {model} removed")
        return
    session.done(session.client.put("models", model, "aliases", name, number=version), f"{model}: {name} is v{version}")


@models.command()
@click.argument("model")
@click.argument("mode", type=click.Choice(["enforce", "advisory", "off"]))
@click.option("--reason", required=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="What it asks, as in [gate] of loop.toml.")
@options
def gate(session: Session, model: str, mode: str, reason: str, settings: tuple[str, ...]) -> None:
    """Enforce a model's gate, make it advice, or switch it off; audited."""
    body = {"mode": mode, "reason": reason, "settings": assignments(settings) or None}
    session.done(session.client.put("models", model, "gate-mode", **body), f"gate of {model}: {mode}")
